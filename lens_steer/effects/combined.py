"""Measures of an edit alone, and of two edits together beside the sum of their parts, at one site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from lens_steer.effects.shifts import Untouched
from lens_steer.effects.text_groups import Sides
from lens_steer.host.sites import Site
from lens_steer.statistics.distances import Sample, along_gap, ratio_of_shown, squared_gap

Effect = Mapping[str, Sample]
"""Side -> what an edit adds to every text at a site, in standard deviations."""
Measures = dict[tuple[str, str], Float[np.ndarray, " case"]]
"""(side, measure) -> its value on all texts, then with one group of texts left out each."""


class CombinedAt:
    """The unedited values of one site: what effects are counted from, in which unit, and which way is to the target."""

    def __init__(self, untouched: Untouched, site: Site, *, confidence: float) -> None:
        self._untouched, self._site, self._confidence = untouched, site, confidence
        self._source, self._target = (
            untouched.sample(untouched.sides[side], [site], side) for side in ("source", "target")
        )
        self._squared_gap = squared_gap(self._source, self._target)

    def effect(self, edited: Sides) -> Effect:
        """Return what an edited run differs by from the unedited one."""
        return {side: self._untouched.effects(edited, [self._site], side) for side in ("source", "target")}

    def alone(self, effect: Effect, halved: Effect) -> Measures:
        """Return the measures of any run: `halved` is the effect of the same edits at half their strength."""
        measures = {}
        for side, of_texts in effect.items():
            measures[side, "moved"] = _size(of_texts)
            measures[side, "towards"] = self._towards(of_texts)
            measures[side, "curvature"] = _size(_less(of_texts, halved[side], halved[side]))
        return measures

    def pair(self, effect: Effect, halved: Effect, *, one: Effect, other: Effect, turned: Effect) -> Measures:
        """Return the measures of a pair: `one` and `other` are its parts alone, `turned` the pair the other way."""
        measures = self.alone(effect, halved)
        for side, of_texts in effect.items():
            beyond = _less(of_texts, one[side], other[side])
            measures[side, "additivity"] = _size(beyond)
            measures[side, "excess"] = measures[side, "additivity"] - measures[side, "curvature"]
            measures[side, "commutation"] = _size(_less(of_texts, turned[side]))
            measures[side, "synergy"] = self._towards(beyond)
        return measures

    def _towards(self, of_texts: Sample) -> Float[np.ndarray, " case"]:
        product = along_gap(of_texts, self._source, self._target)
        return ratio_of_shown(product, self._squared_gap, confidence=self._confidence)


def _less(effect: Sample, *others: Sample) -> Sample:
    return replace(effect, values=effect.values - sum(other.values for other in others))


def _size(of_texts: Sample) -> Float[np.ndarray, " case"]:
    """The mean over texts of the root mean square over units."""
    if not of_texts.values.shape[1]:
        return np.zeros(len(of_texts.kept))
    return of_texts.mean(np.sqrt(np.square(of_texts.values).mean(1)))
