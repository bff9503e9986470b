"""Metrics: what is asked of the next token, one number per row of logits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lens_steer.errors import SettingError, TokenError
from lens_steer.host.adapter import host_of
from lens_steer.host.scope import special_ids
from lens_steer.settings import require_settings

Token = str | int
"""A text that is one token of the model's (mind the space in front: " Mary"), or a token's id."""


@dataclass(frozen=True)
class Rows:
    """What a metric may know of the rows it reads: the number of each row's pair, and its logits in the clean run."""

    pairs: Int[Tensor, " row"]
    clean: Float[Tensor, "row vocab"]


BoundMetric = Callable[[Float[Tensor, "row vocab"], Rows], Float[Tensor, " row"]]
"""Takes logits and what is known of their rows, and returns one number per row; gradients flow through it."""


@runtime_checkable
class Metric(Protocol):
    """A metric that looks something up first: tokens in the model's vocabulary, the pairs that it is asked for."""

    def bind(self, model: nn.Module, pairs: int) -> BoundMetric:
        """Return the function for a model and a number of pairs; TokenError, SettingError for what cannot be read."""
        ...


MetricLike = Metric | Callable[[Float[Tensor, "row vocab"]], Float[Tensor, " row"]]
"""A metric, or any function of logits [row, vocab] that gives one number per row."""


@dataclass(frozen=True)
class LogitDifference:
    """Logit of the correct token less that of the wrong one.

    Each is one token for all pairs, or a list with one per pair. TokenError for what is not exactly one token of the
    vocabulary.
    """

    correct: Token | Sequence[Token]
    wrong: Token | Sequence[Token]

    def __post_init__(self) -> None:
        require_settings(type(self), vars(self))

    def bind(self, model: nn.Module, pairs: int) -> BoundMetric:
        """Look both up."""
        correct, wrong = (_per_pair(model, tokens, pairs) for tokens in (self.correct, self.wrong))
        if clash := (correct == wrong).nonzero().flatten().tolist():
            raise SettingError(f"pair {clash[0]} has one token as correct and as wrong: its difference is always 0")

        def difference(logits: Float[Tensor, "row vocab"], rows: Rows) -> Float[Tensor, " row"]:
            right, other = correct[rows.pairs][:, None], wrong[rows.pairs][:, None]
            return (logits.gather(1, right) - logits.gather(1, other))[:, 0]

        return difference


@dataclass(frozen=True)
class LogProbability:
    """Log-probability (nats) that the next token is one of a set: the log of their summed probability.

    One set for all pairs, or a list of lists, one per pair. TokenError for what is not exactly one token.
    """

    tokens: Sequence[Token] | Sequence[Sequence[Token]]

    def __post_init__(self) -> None:
        require_settings(type(self), vars(self))

    def bind(self, model: nn.Module, pairs: int) -> BoundMetric:
        """Look the tokens up."""
        sets = _token_sets(model, self.tokens, pairs)

        def log_probability(logits: Float[Tensor, "row vocab"], rows: Rows) -> Float[Tensor, " row"]:
            counted = sets[rows.pairs]
            inside = logits.masked_fill(~counted, -torch.inf).logsumexp(1)
            return inside - logits.logsumexp(1)

        return log_probability


@runtime_checkable
class HasWords(Protocol):
    """A scorer that reads words, such as `WordList`."""

    @property
    def words(self) -> Sequence[str]:
        """The words."""
        ...


@dataclass(frozen=True, init=False)
class ConceptProbability:
    """Probability (0 to 1) that the next token is one of a concept's words.

    Every token counts that reads as one of the words, whatever its case and the space in front of it. `words` is a list
    or a scorer that has words (`WordList`). TokenError for words that are no single token: leave them out.
    """

    words: tuple[str, ...]

    def __init__(self, words: Iterable[str] | HasWords) -> None:
        if isinstance(words, str):
            raise SettingError(f"words must be a list: write a single word as [{words!r}]")
        if not isinstance(words, HasWords | Iterable):
            raise SettingError(f"ConceptProbability: words is a list of texts or a WordList, not {words!r}")
        listed = tuple(words.words) if isinstance(words, HasWords) else tuple(words)
        if not listed or not all(isinstance(word, str) and word.strip() for word in listed):
            raise SettingError("a concept needs one or more words, none of them blank")
        object.__setattr__(self, "words", listed)

    def bind(self, model: nn.Module, pairs: int) -> BoundMetric:
        """Find the tokens of every word."""
        ids = _tokens_reading(model, self.words)

        def probability(logits: Float[Tensor, "row vocab"], rows: Rows) -> Float[Tensor, " row"]:
            return logits.softmax(1)[:, ids].sum(1)

        return probability


@dataclass(frozen=True)
class KLToClean:
    """KL divergence (nats) of the next-token law from that of the clean run: KL(clean || run), 0 in the clean run.

    A part that carries what differs has a negative effect: with its clean activation the law comes nearer.
    """

    def bind(self, model: nn.Module, pairs: int) -> BoundMetric:
        """Return the divergence."""

        def divergence(logits: Float[Tensor, "row vocab"], rows: Rows) -> Float[Tensor, " row"]:
            clean = rows.clean.log_softmax(1)
            return (clean.exp() * (clean - logits.log_softmax(1))).sum(1)

        return divergence


def bind_metric(metric: MetricLike, model: nn.Module, pairs: int) -> BoundMetric:
    """Return a metric as a function that checks itself: floats, one per row and finite, or SettingError."""
    if isinstance(metric, type):
        raise SettingError(f"metric is {metric.__name__}, a class: give one with its tokens, as {metric.__name__}(...)")
    if isinstance(metric, Metric):
        name, bound = type(metric).__name__, metric.bind(model, pairs)
    elif callable(metric):
        given, name = metric, getattr(metric, "__name__", type(metric).__name__)

        def bound(logits: Float[Tensor, "row vocab"], rows: Rows) -> Any:
            return given(logits)

    else:
        raise SettingError(
            f"metric is {type(metric).__name__}: give LogitDifference, LogProbability, ConceptProbability, KLToClean "
            "or a function of logits [row, vocab]"
        )

    def checked(logits: Float[Tensor, "row vocab"], rows: Rows) -> Float[Tensor, " row"]:
        values = bound(logits, rows)
        if not isinstance(values, Tensor) or values.shape != logits.shape[:1] or not values.is_floating_point():
            got = f"a tensor {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
            raise SettingError(
                f"the metric {name} gave {got} for logits {tuple(logits.shape)}: it must give one number per row, a "
                f"float tensor ({len(logits)},)"
            )
        if not torch.isfinite(values).all():
            row = int((~torch.isfinite(values)).nonzero()[0, 0])
            raise SettingError(f"the metric {name} is {float(values[row])} on pair {int(rows.pairs[row])}")
        return values

    return checked


def token_id(model: nn.Module, token: Token) -> int:
    """Return the id of one token; TokenError where a text is several or unknown, or an id is out of range."""
    host = host_of(model)
    vocabulary = host.vocabulary
    if isinstance(token, bool) or not isinstance(token, str | int):
        raise TokenError(f"{token!r} is no token: give a text such as ' Mary', or a token's id")
    if isinstance(token, int):
        if not 0 <= token < vocabulary:
            raise TokenError(f"there is no token {token}: the vocabulary has {vocabulary}")
        return token
    tokenizer = host.tokenizer
    ids = _encoded(tokenizer, token)
    if len(ids) == 1 and (ids[0] != tokenizer.unk_token_id or token == tokenizer.unk_token):
        return ids[0]
    if not ids or tokenizer.unk_token_id in ids:
        raise TokenError(f"{token!r} is not in the vocabulary of this model: choose another token")
    pieces = " ".join(repr(tokenizer.decode([one])) for one in ids)
    other = token[1:] if token.startswith(" ") else f" {token}"
    remedy = f"{other!r} is one" if len(_encoded(tokenizer, other)) == 1 else "choose a word, or a name, that is one"
    raise TokenError(f"{token!r} is {len(ids)} tokens for this model ({pieces}), and a metric reads one: {remedy}")


def _encoded(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def _per_pair(model: nn.Module, tokens: Token | Sequence[Token], pairs: int) -> Int[Tensor, " pair"]:
    listed = [tokens] * pairs if isinstance(tokens, str | int) else list(tokens)
    if len(listed) != pairs:
        raise SettingError(f"{len(listed)} tokens are given for {pairs} pairs: give one per pair, or one for all")
    ids = {token: token_id(model, token) for token in dict.fromkeys(listed)}
    return torch.tensor([ids[token] for token in listed], device=host_of(model).device)


def _token_sets(model: nn.Module, tokens: Sequence[Token] | Sequence[Sequence[Token]], pairs: int) -> Tensor:
    """Mark the tokens of each pair's set in the vocabulary, [pair, vocab]."""
    if isinstance(tokens, str | int):
        raise SettingError(f"tokens are a list: write a single one as [{tokens!r}]")
    if not len(tokens):
        raise SettingError("the set of tokens is empty")
    own = [one for one in tokens if not isinstance(one, str | int)]
    shared = [one for one in tokens if isinstance(one, str | int)]
    if own and shared:
        raise SettingError("tokens are one set for all pairs, or a list of sets, one per pair: not both at once")
    sets: list[Sequence[Token]] = own or [shared]
    if own and len(own) != pairs:
        raise SettingError(f"{len(own)} sets of tokens are given for {pairs} pairs: give one per pair, or one for all")
    host = host_of(model)
    marked = torch.zeros(len(sets), host.vocabulary, dtype=torch.bool)
    for row, one in enumerate(sets):
        if not len(one):
            raise SettingError(f"the set of tokens of pair {row} is empty")
        marked[row, [token_id(model, token) for token in one]] = True
    return marked.expand(pairs, -1).to(host.device)


def _tokens_reading(model: nn.Module, words: Sequence[str]) -> Int[Tensor, " token"]:
    """Return the ids of all tokens that read as one of the words."""
    host = host_of(model)
    tokenizer, wanted = host.tokenizer, {word.strip().casefold() for word in words}
    size = min(len(tokenizer), host.vocabulary)
    special = special_ids(tokenizer)
    read = {number: tokenizer.decode([number]).strip().casefold() for number in range(size) if number not in special}
    numbers = [number for number, text in read.items() if text in wanted]
    if missing := sorted(wanted - {read[number] for number in numbers}):
        raise TokenError(
            f"no single token of this model reads as {', '.join(map(repr, missing[:5]))}: leave out words of more than "
            "one token"
        )
    return torch.tensor(numbers, device=host.device)
