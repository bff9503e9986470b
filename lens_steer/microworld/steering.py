"""How far a model's next words are from those of the grammar given an attribute: the exact error of steering.

Nothing here knows a model: it asks a function for log probabilities, one document at a time or many.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from lens_steer.errors import MicroworldError
from lens_steer.microworld.grammar import BOS
from lens_steer.microworld.oracle import Oracle
from lens_steer.microworld.requests import checked_count
from lens_steer.microworld.sampler import sample

NextLogProbs = Callable[[Sequence[Sequence[int]]], Sequence[Float[np.ndarray, "_ word"]]]
"""Documents as token ids (`<bos>` first, unequal lengths) -> for each, log P(next token) in nats after every one of
its tokens, in token-id order."""


@dataclass(frozen=True)
class Measured:
    """A mean over prefixes and its standard error; documents are independent, the prefixes of one are not.

    `by_document` is each document's sum over its prefixes less the mean's share of it, over the mean length: how far
    the document alone carries the mean (linearised). Two speakers are compared on the same documents by it.
    """

    mean: float
    standard_error: float
    by_document: tuple[float, ...] = field(default=(), repr=False)

    def change_error(self, before: Measured) -> float:
        """Return the standard error of this mean less that of `before`, paired over the same documents."""
        change = np.array(self.by_document) - np.array(before.by_document)
        return float(change.std(ddof=1) / np.sqrt(len(change)))


@dataclass(frozen=True)
class SteeringError:
    """How far a speaker is from the grammar given some attributes.

    Attributes
    ----------
    nats:
        KL(grammar given the attributes || speaker), in nats per token; 0 for the grammar itself.
    ungrammatical:
        The probability the speaker gives to next tokens that the grammar allows under no attributes.
    prefixes, documents:
        Over how many the means run, and how many were drawn.

    """

    nats: Measured
    ungrammatical: Measured
    prefixes: int
    documents: int


@dataclass(frozen=True, eq=False, repr=False)
class SteeringTask:
    """Documents drawn given attributes, with the exact law of what follows each of their beginnings.

    `ids` begin with `<bos>`; `laws[d][p]` is the law of the token behind position p of document d given the
    attributes, `allowed[d][p]` marks the tokens that the grammar allows there at all.
    """

    ids: tuple[tuple[int, ...], ...]
    laws: tuple[Float[np.ndarray, "_ word"], ...]
    allowed: tuple[np.ndarray, ...]

    @classmethod
    def draw(cls, given: Mapping[str, str], *, n: int = 128, seed: int = 0) -> SteeringTask:
        """Draw `n` documents (about 0.5 MB each with their laws); every one of their beginnings is a prefix."""
        n = checked_count(n, "documents for a steering error and its standard error", least=2)
        oracle, ids, laws, allowed = Oracle(), [], [], []
        for document in sample(n, seed=seed, **given):
            words = document.text.split()
            ids.append((oracle.grammar.ids[BOS], *(oracle.grammar.ids[word] for word in words)))
            laws.append(np.stack(list(oracle.follow(words, given=given))))
            allowed.append(np.stack([law > 0 for law in oracle.follow(words)]))
        return cls(tuple(ids), tuple(laws), tuple(allowed))

    def error(self, next_log_probs: NextLogProbs, *, batch_size: int = 16) -> SteeringError:
        """The steering error of whatever `next_log_probs` speaks for; finite wherever its logarithms are.

        MicroworldError where a row is no law over the vocabulary, or gives probability 0 to what the grammar says.
        """
        divergence, impossible = [], []
        batch_size = checked_count(batch_size, "documents per batch")
        for first in range(0, len(self.ids), batch_size):
            some = range(first, min(first + batch_size, len(self.ids)))
            answers = next_log_probs([self.ids[row] for row in some])
            if len(answers) != len(some):
                raise MicroworldError(f"{len(some)} documents were asked about and {len(answers)} were answered.")
            for row, answer in zip(some, answers):
                logs = np.asarray(answer, dtype=float)
                self._check(row, logs)
                law, possible = self.laws[row], self.laws[row] > 0
                divergence.append(float((law[possible] * (np.log(law[possible]) - logs[possible])).sum()))
                impossible.append(float(np.exp(logs[~self.allowed[row]]).sum()))
        lengths = np.array([len(ids) for ids in self.ids], dtype=float)
        return SteeringError(
            nats=_per_prefix(np.array(divergence), lengths),
            ungrammatical=_per_prefix(np.array(impossible), lengths),
            prefixes=int(lengths.sum()),
            documents=len(lengths),
        )

    def _check(self, row: int, logs: np.ndarray) -> None:
        law = self.laws[row]
        if logs.shape != law.shape or not np.allclose(np.exp(logs).sum(-1), 1.0, atol=1e-3):
            raise MicroworldError(
                f"Each document needs one row of log probabilities per token over the {law.shape[-1]} words, each row "
                f"summing to 1: document {row} needs shape {law.shape} and got {logs.shape}."
            )
        if not np.isfinite(logs[law > 0]).all():
            raise MicroworldError(
                f"Document {row} has a next token with probability 0 that the grammar says: the error is infinite. "
                "Give the logarithms of a softmax, which are finite."
            )


def steering_error_from_log_probs(
    next_log_probs: NextLogProbs, *, given: Mapping[str, str], n: int = 128, seed: int = 0
) -> SteeringError:
    """The steering error of any speaker over the beginnings of `n` documents; the same seed draws the same ones."""
    return SteeringTask.draw(given, n=n, seed=seed).error(next_log_probs)


def _per_prefix(sums: Float[np.ndarray, " document"], lengths: Float[np.ndarray, " document"]) -> Measured:
    """Every prefix weighs the same: a ratio of two means, its standard error by linearisation."""
    mean = sums.sum() / lengths.sum()
    residual = (sums - mean * lengths) / lengths.mean()
    return Measured(float(mean), float(residual.std(ddof=1) / np.sqrt(len(sums))), tuple(residual.tolist()))
