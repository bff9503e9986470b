"""Measures of a traced shift: its parts on the contrast's own scale, with the cases of a jackknife over texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from lens_steer.effects.paths.lens import WordReadings
from lens_steer.effects.paths.parts import Parts, Place
from lens_steer.effects.shifts import Untouched
from lens_steer.host.next_tokens import TextDivergences
from lens_steer.host.sites import Site
from lens_steer.statistics.distances import Sample, along_gap, ratio_of_shown, squared_gap, squared_size
from lens_steer.statistics.jackknife import case_means

Cases = Float[np.ndarray, " _"]  # of one length per kind of texts
_TAIL = 0.99


class Key(NamedTuple):
    """What is measured of a part: of which layer (-1: of the whole model) and head (-1: all), at which site."""

    part: str
    layer: int
    head: int
    site: str
    measure: str


@dataclass(frozen=True, eq=False)
class Measured:
    """The values of one measure, case by case: as a share of the way to the target, and as a size in sd (or nan)."""

    value: Cases
    size: Cases


class PathMeasures:
    """Holds the way from source to target at the traced site, and measures effects on the source's texts against it."""

    def __init__(self, untouched: Untouched, site: Site, *, confidence: float) -> None:
        self._untouched, self._site, self._confidence = untouched, site, confidence
        self._source, self._target = (untouched.sample(untouched.sides[side], [site], side) for side in _SIDES)
        self._way = squared_gap(self._source, self._target)

    def sample(self, effect: Tensor) -> Sample:
        """Return an effect in standard deviations, units that hardly vary left out."""
        return self._untouched.sample({self._site: effect}, [self._site], "source")

    def of(self, effect: Tensor) -> Measured:
        """Measure an effect along the way to the target, and its size."""
        sample = self.sample(effect)
        along = along_gap(sample, self._source, self._target)
        size = np.sqrt(np.maximum(0, squared_size(sample)) / max(1, sample.values.shape[1]))
        return Measured(ratio_of_shown(along, self._way, confidence=self._confidence), size)

    def against(self, effect: Tensor, written: Tensor) -> Measured:
        """Project an effect on what edits wrote, text by text: -1 takes all of it back, 0 leaves it alone."""
        ours, theirs = self.sample(effect), self.sample(written)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = ours.mean((ours.values * theirs.values).sum(1)) / ours.mean(np.square(theirs.values).sum(1))
        return Measured(share, np.full(len(share), np.nan))


_SIDES = ("source", "target")


def measured_parts(parts: Parts, measures: PathMeasures) -> Iterator[tuple[Key, Measured]]:
    """Yield every measure of every part, in forward order within a measure."""
    site = measures._site.name
    for part, effect in {"whole": parts.whole, "direct": parts.direct, "through": parts.through}.items():
        yield Key(part, -1, -1, site, "adds"), measures.of(effect)
    yield Key("through", -1, -1, site, "against"), measures.against(parts.through, parts.direct)
    for place in parts.order:
        if place in parts.writes:
            yield _key(place, "adds"), measures.of(parts.writes[place])
            continue
        yield _key(place, "adds"), measures.of(parts.adds[place])
        for head, effect in enumerate(parts.head_effects(place)):
            yield Key("head", place.layer, head, place.site, "adds"), measures.of(effect)
        yield _key(place, "against"), measures.against(parts.adds[place], parts.before(place))
        yield from _measured_causes(parts, place, measures)


def _measured_causes(parts: Parts, place: Place, measures: PathMeasures) -> Iterator[tuple[Key, Measured]]:
    effects: dict[str, Tensor] = {cause: effect for (at, cause), effect in parts.causes.items() if at == place}
    if effects:
        effects["interaction"] = effects["lost"] - effects["alone"]
    if "looks" in effects:
        effects["carries"] = effects["lost"] - effects["looks"]
    for measure, effect in effects.items():
        yield _key(place, measure), measures.of(effect)


def _key(place: Place, measure: str) -> Key:
    return Key(place.part, place.layer, -1, place.site, measure)


def word_changes(words: WordReadings, kept: Float[np.ndarray, "case text"]) -> list[tuple[Site, Cases, Cases]]:
    """Return, layer by layer, the mean probability of the words before and after, case by case."""
    before, after = (case_means(kept, one) for one in (words.before, words.after))
    return [(site, before[:, column], after[:, column]) for column, site in enumerate(words.sites)]


def law_changes(divergences: TextDivergences, kept: Float[np.ndarray, "case text"]) -> dict[str, Cases]:
    """Return mean and 99th percentile of the divergence over tokens (nats), case by case."""
    with np.errstate(invalid="ignore"):  # nothing is left of a single block
        mean = (kept @ divergences.sums) / (kept @ divergences.counts)
    tail = [
        float(np.quantile(np.concatenate(_chosen(divergences.tokens, keep)), _TAIL)) if keep.any() else np.nan
        for keep in kept
    ]
    return {"mean": mean, "p99": np.array(tail)}


def _chosen(
    texts: Sequence[Float[np.ndarray, " _"]], keep: Float[np.ndarray, " text"]
) -> list[Float[np.ndarray, " _"]]:
    return [tokens for tokens, kept in zip(texts, keep, strict=True) if kept]
