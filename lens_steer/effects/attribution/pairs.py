"""Pairs of prompts, aligned: which token of the corrupted prompt stands where which token of the clean one does."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from lens_steer.errors import SettingError, TokenError
from lens_steer.host.tokens import TokenBatch, Tokens, filled, tokenize
from lens_steer.texts.blocks import blocks_of
from lens_steer.texts.contrast import Row
from lens_steer.texts.messages import Conversation

Place = int | tuple[int, int]
"""A token's number in both prompts of a pair, or (in the clean, in the corrupted); below 0 it counts from the end."""
Places = Sequence[Place] | Sequence[Sequence[Place]]
"""Places for all pairs, or a list of them for each pair."""
Prompts = str | Sequence[Row | Conversation]


@dataclass(frozen=True)
class PairBatch:
    """Some of the pairs as two right-padded batches.

    `clean_at` and `corrupted_at` are the places that are compared; pairs with fewer repeat their last, and `counted` is
    False there. `clean_read` and `corrupted_read` are where the metric reads the logits.
    """

    pairs: Int[Tensor, " pair"]
    clean: TokenBatch
    corrupted: TokenBatch
    clean_at: Int[Tensor, "pair place"]
    corrupted_at: Int[Tensor, "pair place"]
    counted: Bool[Tensor, "pair place"]
    clean_read: Int[Tensor, " pair"]
    corrupted_read: Int[Tensor, " pair"]


@dataclass(frozen=True)
class Pairs:
    """Tokenised pairs, with the places of each that are compared and the one that the metric reads.

    `blocks` number what belongs together: pairs that share a prompt, or a group.
    """

    clean: Tokens
    corrupted: Tokens
    places: tuple[tuple[tuple[int, int], ...], ...]
    read: tuple[tuple[int, int], ...]
    blocks: Int[Tensor, " pair"]

    def __len__(self) -> int:
        return len(self.clean)

    @property
    def most_places(self) -> int:
        """Most places that one pair compares."""
        return max(map(len, self.places))

    @property
    def alike(self) -> bool:
        """Whether all pairs compare the same number of places."""
        return len(set(map(len, self.places))) == 1

    def batches(self, batch_size: int | None, *, budget: int, device: torch.device) -> Iterator[PairBatch]:
        """Yield all pairs, longest first, in batches of a size or of as many as `budget` tokens take."""
        lengths = [max(pair) for pair in zip(self.clean.lengths, self.corrupted.lengths, strict=True)]
        for rows in filled(sorted(range(len(self)), key=lambda row: -lengths[row]), lengths, batch_size, budget):
            yield self._batch(rows, device)

    def _batch(self, rows: Sequence[int], device: torch.device) -> PairBatch:
        most = max(len(self.places[row]) for row in rows)
        places = torch.tensor(
            [[*self.places[row], *self.places[row][-1:] * (most - len(self.places[row]))] for row in rows]
        )
        counted = torch.tensor([[place < len(self.places[row]) for place in range(most)] for row in rows])
        read = torch.tensor([self.read[row] for row in rows])
        return PairBatch(
            torch.tensor(rows, device=device),
            self.clean.batch(rows).to(device),
            self.corrupted.batch(rows).to(device),
            places[..., 0].to(device),
            places[..., 1].to(device),
            counted.to(device),
            read[:, 0].to(device),
            read[:, 1].to(device),
        )


def align(
    model: nn.Module,
    clean: Prompts,
    corrupted: Prompts,
    *,
    positions: Places | None,
    metric_position: Place | Sequence[Place],
    groups: Sequence[Hashable] | None,
) -> Pairs:
    """Tokenise pairs and find the places that are compared.

    Raises
    ------
    SettingError
        There are no pairs, more prompts of one kind than of the other, two equal prompts, or a place that a prompt does
        not have.
    TokenError
        The prompts of a pair differ in length and no positions are given; and as `tokenize` says.

    """
    rows = [_listed(prompts) for prompts in (clean, corrupted)]
    if len(rows[0]) != len(rows[1]):
        raise SettingError(f"{len(rows[0])} clean and {len(rows[1])} corrupted prompts: give one of each per pair")
    if not rows[0]:
        raise SettingError("there is no pair of prompts")
    settings = {"special_in_pool": True, "format_in_pool": True}
    tokens = [
        tokenize(model, prompts, overflow="refuse", what=f"{kind} prompt", **settings)  # type: ignore[arg-type]
        for prompts, kind in zip(rows, ("clean", "corrupted"), strict=True)
    ]
    lengths = list(zip(*(side.lengths for side in tokens), strict=True))
    for pair, (one, other) in enumerate(zip(tokens[0].ids, tokens[1].ids, strict=True)):
        if one == other:
            raise SettingError(f"pair {pair}: both prompts are the same tokens, so there is nothing to attribute")
        if positions is None and len(one) != len(other):
            raise TokenError(
                f"pair {pair}: the clean prompt has {len(one)} tokens and the corrupted one {len(other)}. Choose "
                "prompts of one length, or say which tokens stand for each other: positions=[-1] (the last), or pairs "
                "(clean, corrupted) of token numbers"
            )
    numbers = range(len(lengths))
    if groups is not None and len(groups) != len(lengths):
        raise SettingError(f"{len(groups)} groups are given for {len(lengths)} pairs: give one per pair")
    ties = [[*numbers] * 2] + ([] if groups is None else [[*groups] * 2])
    return Pairs(
        tokens[0],
        tokens[1],
        tuple(_places(pair, own, lengths[pair]) for pair, own in enumerate(_each(positions, lengths))),
        tuple(_found(pair, place, lengths[pair], "metric_position") for pair, place in _read(metric_position, lengths)),
        torch.from_numpy(blocks_of([*rows[0], *rows[1]], *ties)[: len(lengths)]),
    )


def _listed(prompts: Prompts) -> list[Row | Conversation]:
    return [prompts] if isinstance(prompts, str) else list(prompts)


def _each(positions: Places | None, lengths: Sequence[tuple[int, int]]) -> Iterable[Sequence[Place]]:
    """Return the places of every pair, as given."""
    if positions is None:
        return [range(one) for one, _ in lengths]
    if isinstance(positions, int | str) or not len(positions):
        raise SettingError(f"positions is a list of token numbers, not {positions!r}: write a single one as [-1]")
    own = [not isinstance(place, int | tuple) for place in positions]
    if not any(own):
        return [positions] * len(lengths)  # type: ignore[list-item]
    if not all(own) or len(positions) != len(lengths):
        raise SettingError(
            f"positions holds {sum(own)} lists for {len(lengths)} pairs: give one list of token numbers for all pairs, "
            "or a list per pair; (clean, corrupted) is a tuple"
        )
    return positions  # type: ignore[return-value]


def _places(pair: int, places: Sequence[Place], lengths: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    given = tuple(_found(pair, place, lengths, "positions") for place in places)
    if not given:
        raise SettingError(f"pair {pair} has no positions: give one or more token numbers")
    for side, kind in enumerate(("clean", "corrupted")):
        if len({place[side] for place in given}) != len(given):
            raise SettingError(f"positions of pair {pair} name a token of the {kind} prompt twice")
    return given


def _read(places: Place | Sequence[Place], lengths: Sequence[tuple[int, int]]) -> Iterable[tuple[int, Place]]:
    if isinstance(places, int | tuple):
        return [(pair, places) for pair in range(len(lengths))]
    if len(places) != len(lengths):
        raise SettingError(f"metric_position lists {len(places)} places for {len(lengths)} pairs: give one per pair")
    return enumerate(places)


def _found(pair: int, place: Place, lengths: tuple[int, int], setting: str) -> tuple[int, int]:
    both = (place, place) if isinstance(place, int) else place
    if len(both) != 2 or not all(isinstance(one, int) for one in both):
        raise SettingError(f"{setting}: {place!r} is neither a token number nor two of them, (clean, corrupted)")
    for one, length, kind in zip(both, lengths, ("clean", "corrupted"), strict=True):
        if not -length <= one < length:
            raise SettingError(
                f"{setting}: the {kind} prompt of pair {pair} has {length} tokens, there is no token {one}"
            )
    return both[0] % lengths[0], both[1] % lengths[1]
