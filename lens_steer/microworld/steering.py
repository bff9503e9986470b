"""How far a model's next words are from those of the grammar given an attribute: the exact error of steering.

Nothing here knows a model: it asks a function for log probabilities, one row per prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lens_steer.errors import MicroworldError
from lens_steer.microworld.grammar import BOS, EOS
from lens_steer.microworld.oracle import Oracle
from lens_steer.microworld.sampler import sample
from lens_steer.microworld.shapes import Array, Float

NextLogProbs = Callable[[Sequence[Sequence[int]]], Float[Array, "prefix word"]]
"""Prefixes of token ids (`<bos>` first, unequal lengths) -> log P(next token) in nats, in token-id order."""


@dataclass(frozen=True, eq=False)
class Prefixes:
    """Beginnings of documents drawn given attributes, with the exact law of what follows."""

    ids: tuple[tuple[int, ...], ...]
    laws: Float[Array, "prefix word"]
    grammatical: Float[Array, "prefix word"]


@dataclass(frozen=True)
class SteeringError:
    """Mean KL(grammar given the attributes || model) in nats per token, and the mean mass on impossible tokens."""

    nats: float
    ungrammatical: float
    prefixes: int


def draw_prefixes(given: Mapping[str, str], *, n: int = 512, seed: int = 0, oracle: Oracle | None = None) -> Prefixes:
    """`n` of the beginnings of `n` documents with these attributes, every token position equally likely.

    `laws[i]` is the law of the next token given the attributes, `grammatical[i]` is 1 where the grammar allows the
    token at all.
    """
    if n < 1:
        raise MicroworldError(f"Cannot draw {n} prefixes; ask for 1 or more.")
    oracle = oracle or Oracle()
    documents = [document.text.split() for document in sample(n, seed=seed, **given)]
    places = [(row, length) for row, words in enumerate(documents) for length in range(len(words) + 1)]
    chosen = np.random.default_rng([seed, 4711]).permutation(len(places))[:n]
    ids, laws, allowed = [], [], []
    for row, length in sorted(places[index] for index in chosen):
        prefix = documents[row][:length]
        ids.append((oracle.grammar.ids[BOS], *(oracle.grammar.ids[word] for word in prefix)))
        laws.append(oracle.next_token(" ".join(prefix), given=given).probabilities)
        allowed.append((oracle.next_token(" ".join(prefix)).probabilities > 0).astype(float))
    return Prefixes(tuple(ids), np.stack(laws), np.stack(allowed))


def steering_error_from_log_probs(
    next_log_probs: NextLogProbs,
    *,
    given: Mapping[str, str],
    n: int = 512,
    seed: int = 0,
    batch_size: int = 64,
) -> SteeringError:
    """The steering error of whatever `next_log_probs` speaks for; finite whenever its log probabilities are.

    Call it twice, with and without the intervention: the same seed gives the same prefixes. Refused: rows that are
    not laws over the vocabulary.
    """
    prefixes = draw_prefixes(given, n=n, seed=seed)
    divergence, impossible = [], []
    for first in range(0, len(prefixes.ids), batch_size):
        some = slice(first, first + batch_size)
        logs = np.asarray(next_log_probs(prefixes.ids[some]), dtype=float)
        law = prefixes.laws[some]
        if logs.shape != law.shape or not np.allclose(np.exp(logs).sum(-1), 1.0, atol=1e-3):
            raise MicroworldError(
                f"next_log_probs must give one row of log probabilities per prefix over the {law.shape[-1]} words "
                f"(ending {EOS!r} included), each summing to 1; it gave shape {logs.shape}."
            )
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(law > 0, law * (np.log(law) - logs), 0.0)
        divergence.append(terms.sum(-1))
        impossible.append((np.exp(logs) * (1 - prefixes.grammatical[some])).sum(-1))
    return SteeringError(
        float(np.concatenate(divergence).mean()), float(np.concatenate(impossible).mean()), len(prefixes.ids)
    )
