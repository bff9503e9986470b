"""The result of `trace_shift`: tables, the figure's matrices, and one sentence from intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from lens_steer.display.shown_result import shown_result
from lens_steer.effects.paths.measures import Cases, Key, Measured
from lens_steer.errors import SettingError
from lens_steer.host.sites import Site
from lens_steer.statistics.intervals import Interval, confidence_of_each
from lens_steer.statistics.jackknife import jackknife_interval, jackknife_intervals

if TYPE_CHECKING:
    import pandas as pd

Measure = Literal["adds", "lost", "alone", "interaction", "in_turn", "looks", "carries", "against"]
_FINE = 0.01  # share below which one more digit is told
_COMPONENTS = ("attention", "mlp")
_NAMES = {
    "attention": ("the attention of layer", "the attention of layers"),
    "mlp": ("the MLP of layer", "the MLPs of layers"),
}


@dataclass(frozen=True, eq=False)
class TraceShift:
    """How the shift that an edit makes at a later site of the stream got there.

    Attributes
    ----------
    frame:
        One row per part and measure. Columns: part, layer, head, site, measure; value, low, high; size, size_low,
        size_high. `value` is a share of the way from the source's mean to the target's at the traced site (1 arrives,
        below 0 leads away), cross-fitted like `arrived` of `downstream_shift`, nan where the two are not shown to
        differ. `size` is the root mean square over units of the mean effect, in sd, less what chance adds.

        Parts: whole (the shift), direct (what all edits write), through (what all components add), write (what the
        edits at one place write: into the stream, or into the output of the component they lie in), attention, mlp (of
        one layer) and head. whole = direct + through, in value; writes add up to direct, components to through, heads
        to their attention.

        Measures of a component. adds: its output on the edited stream less its output in the unedited model, behind its
        post-norm, its own edits' writes left out: an exact part of the sum. lost: what the shift loses when the
        component is held at its unedited value. alone: the shift when it alone is set to its edited value in the
        unedited model. interaction: lost - alone: what it brings about only together with the rest. in_turn: what is
        lost when it is held after all components before it: direct and these add up to whole. looks: of attention, what
        is lost when its pattern alone is held; carries: lost - looks. In all of them the edits' writes stay what they
        were. against (value alone): the projection, text by text, of what it adds on what edits had written before it:
        -1 takes all of it back (self-repair), 0 leaves it alone, above 0 it repeats it.
    words:
        One row per layer: layer, site, before, after, low, high: the probability that the words would have together if
        the model stopped at the layer (logit lens), mean over the source's texts; low and high bound after - before.
    law:
        Of the next tokens of neutral texts, KL(unedited || edited) in nats: measure (mean, p99: over tokens), value,
        low, high.
    estimates:
        Key -> value and size on all texts, then with one group of texts left out each.
    settings:
        method, contrast, site, edited_layers, pool, strength, confidence, words, the number of texts, and unexplained
        (the size of the shift less its parts, in sizes of the shift: rounding).

    """

    frame: pd.DataFrame
    words: pd.DataFrame
    law: pd.DataFrame
    estimates: Mapping[Key, Measured] = field(repr=False, default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        estimates: Mapping[Key, Measured],
        words: Sequence[tuple[Site, Cases, Cases]],
        law: Mapping[str, Cases],
        *,
        settings: Mapping[str, Any],
    ) -> TraceShift:
        """Make the tables of estimates; intervals are jackknives at the settings' confidence."""
        import pandas as pd

        confidence = float(settings["confidence"])
        frame = pd.DataFrame([key._asdict() for key in estimates])
        frame = frame.astype({"layer": "Int64", "head": "Int64"})
        frame[["layer", "head"]] = frame[["layer", "head"]].mask(frame[["layer", "head"]] < 0)
        for column, prefix in (("value", ""), ("size", "size_")):
            cases = np.stack([getattr(measured, column) for measured in estimates.values()], axis=1)
            low, high = jackknife_intervals(cases, confidence=confidence)
            frame[column] = cases[0]
            frame[f"{prefix}low"] = np.maximum(low, 0) if prefix else low
            frame[f"{prefix}high"] = high
        read = [
            (site.layer, site.name, before[0], after[0], *_ends(after - before, confidence))
            for site, before, after in words
        ]
        laws = [(name, cases[0], *np.maximum(0, _ends(cases, confidence))) for name, cases in law.items()]
        return cls(
            frame,
            pd.DataFrame(read, columns=["layer", "site", "before", "after", "low", "high"]),
            pd.DataFrame(laws, columns=["measure", "value", "low", "high"]),
            estimates,
            settings,
        )

    def __repr__(self) -> str:
        return f"TraceShift({self.sentence})"

    def _repr_html_(self) -> str:
        rows = self.frame[(self.frame["measure"] == "adds") & (self.frame["part"] != "head")]
        columns = ["part", "layer", "value", "low", "high", "size"]
        return shown_result("Trace of a shift", sentences=[f"{self.sentence}."], table=rows[columns])

    def of_measure(self, measure: Measure) -> pd.DataFrame:
        """Return the rows of one measure."""
        if measure not in get_args(Measure):
            raise SettingError(f"measure is one of {', '.join(get_args(Measure))}, not {measure!r}")
        return self.frame[self.frame["measure"] == measure]

    def matrix(self, measure: Measure = "adds", *, column: str = "value") -> pd.DataFrame:
        """Return one measure as component x layer; of `adds` also what the edits write at every layer."""
        rows = self.of_measure(measure)
        rows = rows[rows["part"].isin(["write", *_COMPONENTS])]
        wide = rows.pivot_table(index="part", columns="layer", values=column, aggfunc=_sum)
        order = [part for part in ("write", *_COMPONENTS) if part in wide.index]
        return wide.loc[order]

    @property
    def sentence(self) -> str:
        """What was shown: the intervals of all components hold together at the settings' confidence."""
        method, site = self.settings.get("method", "intervention"), self.settings.get("site")
        whole, direct, through = (self._interval(part) for part in ("whole", "direct", "through"))
        if not np.isfinite(whole.estimate):
            doubt = "cannot be judged, source and target are not shown to differ there"
            return f"{method}: whether its shift at {site} leads to the target {doubt}"
        text = (
            f"{method} goes {_written(whole)} of the way to the target at {site}: {_written(direct)} by what it writes "
        )
        text += f"itself, {_written(through)} through later components"
        shown = self._shown()
        onward, back = ([key for key, sign in shown.items() if sign == side] for side in (1, -1))
        if onward:
            text += f"; shown to add to it: {self._listed(onward)}"
        if back:
            text += f"; shown to work against it: {self._listed(back)}"
        return text if shown else f"{text}; no single component was shown to take part"

    def plot(self) -> Any:
        """Return heat maps, components x layers: the exact parts of the shift, and what components cause."""
        from lens_steer.report.plots import plot

        return plot(self)

    def _interval(self, part: str) -> Interval:
        cases = next(one.value for key, one in self.estimates.items() if key.part == part and key.measure == "adds")
        return jackknife_interval(float(cases[0]), cases[1:], confidence=float(self.settings["confidence"]))

    def _shown(self) -> dict[Key, int]:
        """Return the components whose interval leaves out 0, all at once, with the sign of what they add."""
        keys = [key for key in self.estimates if key.part in _COMPONENTS and key.measure == "adds"]
        if not keys:
            return {}
        confidence = confidence_of_each(float(self.settings["confidence"]), len(keys))
        low, high = jackknife_intervals(
            np.stack([self.estimates[key].value for key in keys], axis=1), confidence=confidence
        )
        signs = np.where(low > 0, 1, np.where(high < 0, -1, 0))
        return {key: int(sign) for key, sign in zip(keys, signs, strict=True) if sign}

    def _listed(self, keys: Sequence[Key]) -> str:
        """Name components, neighbouring layers of one kind together, and what they add in all."""
        parts = []
        for part in _COMPONENTS:
            layers = sorted(key.layer for key in keys if key.part == part)
            for run in _runs(layers):
                total = sum(
                    float(self.estimates[key].value[0]) for key in keys if key.part == part and key.layer in run
                )
                one, many = _NAMES[part]
                where = f"{one} {run[0]}" if len(run) == 1 else f"{many} {run[0]} to {run[-1]}"
                parts.append((abs(total), f"{where} ({total:+.{0 if abs(total) >= _FINE else 1}%})"))
        return ", ".join(text for _, text in sorted(parts, reverse=True))


def _sum(values: Any) -> float:
    return float(values.sum(skipna=False))


def _ends(cases: Cases, confidence: float) -> tuple[float, float]:
    interval = jackknife_interval(float(cases[0]), cases[1:], confidence=confidence)
    return interval.low, interval.high


def _written(interval: Interval) -> str:
    if not np.isfinite(interval.low):
        return f"{interval.estimate:.0%} (no interval)"
    return f"{interval.estimate:.0%} [{interval.low:.0%}, {interval.high:.0%}]"


def _runs(layers: Sequence[int]) -> list[list[int]]:
    """Split ascending numbers where one is left out."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return runs
