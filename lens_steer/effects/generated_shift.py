"""The shift on generated text: what an edit does to the activations of what the model writes, beside given text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Unpack

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lens_steer.activations.activations import Activations
from lens_steer.activations.collect import collect
from lens_steer.activations.pooling import Pool
from lens_steer.display.shown_result import shown_result
from lens_steer.effects.downstream import reached
from lens_steer.effects.shifts import Untouched, deviations
from lens_steer.effects.text_groups import Sides, TextGroup
from lens_steer.errors import SiteError
from lens_steer.host.adapter import host_of
from lens_steer.host.decode import Sampling
from lens_steer.host.sites import Site, SitePattern, find_sites
from lens_steer.interventions.intervention import Intervention, require_interventions
from lens_steer.settings import require_settings
from lens_steer.statistics.intervals import require_confidence
from lens_steer.statistics.jackknife import jackknife_intervals
from lens_steer.statistics.verdict import verdict_of
from lens_steer.texts.contrast import ContrastSet

if TYPE_CHECKING:
    import pandas as pd

Of = Literal["given", "generated"]
_MEASURES = ("apart", "removed", "arrived", "moved")


@dataclass(frozen=True, eq=False)
class GeneratedShift:
    """How far an edit moves the model on given text and on the text that it then writes itself, layer by layer.

    The two texts that a row becomes, with and without the edit, differ: no statistic compares them token by token or
    text by text. All measures are of the sides' means and laws, in the same units on both kinds of text.

    Attributes
    ----------
    estimates:
        (of, layer, measure) -> the measure's value on all rows, then with one group of rows left out each.
    settings:
        method, contrast, pool, strength, confidence, sampling, rows (of each side, those that wrote something in both
        runs) and silent (the numbers of the others, left out of both kinds).

    """

    estimates: Mapping[tuple[Of, int, str], Float[np.ndarray, " case"]]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row per kind of text, layer and measure: of ("given", "generated"), layer, measure, value, low, high.

        apart, removed, arrived and moved are those of `DownstreamShift.measures`: the unedited source's distance from
        the unedited target (both given, or both written by the unedited model), the share of it that the edit removes,
        how far the source's mean has gone to the target's, and the size of its move. The standard deviations that they
        are counted in are those of the given texts, for both. Intervals are of a jackknife over the contrast's blocks.
        """
        import pandas as pd

        rows = [(*key, *self._value_and_ends(values)) for key, values in self.estimates.items()]
        frame = pd.DataFrame(rows, columns=["of", "layer", "measure", "value", "low", "high"])
        return frame.assign(low=frame["low"].mask(frame["measure"] == "moved", frame["low"].clip(lower=0)))

    @cached_property
    def differences(self) -> pd.DataFrame:
        """Generated less given, one row per layer and measure.

        Columns: layer, measure, given, generated, low, high (of the difference), verdict. Both are measured on the
        same rows, so that what rows have in common cancels out of the interval.
        """
        import pandas as pd

        rows = []
        for (of, layer, measure), values in self.estimates.items():
            if of == "generated":
                given = self.estimates["given", layer, measure]
                _, low, high = self._value_and_ends(values - given)
                rows.append((layer, measure, float(given[0]), float(values[0]), low, high, verdict_of(low, high).value))
        return pd.DataFrame(rows, columns=["layer", "measure", "given", "generated", "low", "high", "verdict"])

    def _value_and_ends(self, values: Float[np.ndarray, " case"]) -> tuple[float, float, float]:
        confidence = float(self.settings.get("confidence", 0.95))
        low, high = jackknife_intervals(values[:, None], confidence=confidence)[:, 0].tolist()
        return float(values[0]), low, high

    def __repr__(self) -> str:
        last = max(layer for _, layer, _ in self.estimates)
        row = self.differences.query("measure == 'moved' and layer == @last").iloc[0]
        method = self.settings.get("method", "intervention")
        return (
            f"GeneratedShift({method}: moves the source by {row['given']:.2f} sd on given text and by "
            f"{row['generated']:.2f} on generated text at layer {last}; {row['verdict']})"
        )

    def _repr_html_(self) -> str:
        return shown_result(repr(self), table=self.differences, rest=".differences")

    def plot(self) -> Any:
        """Return a figure: how far the source moves, layer by layer, on given and on generated text."""
        from lens_steer.report.plots import plot

        return plot(self)


def generated_shift(
    model: nn.Module,
    intervention: Intervention,
    contrast: ContrastSet,
    *,
    sites: SitePattern = "hook_resid_post",
    pool: Pool = "mean",
    strength: float = 1.0,
    confidence: float = 0.95,
    batch_size: int | None = None,
    progress: bool = True,
    **sampling: Unpack[Sampling],
) -> GeneratedShift:
    """Measure an edit's shift on the tokens that the model writes after every row, beside that on the rows themselves.

    Four passes over the contrast: given and generated, without and with the edit. The runs that generate draw from the
    same random streams, so that a row whose text the edit does not change has no shift.

    Parameters
    ----------
    model:
        A TransformerLens model.
    intervention:
        What to judge.
    contrast:
        Held-out texts, which are the prompts too; of (prompt, completion) pairs the prompts are continued, so that the
        given completion stands beside the model's own.
    sites:
        Where to measure; sites that the forward pass reaches before the first edited one are dropped.
    pool, batch_size, progress, sampling:
        As for `collect`: max_new_tokens, temperature, seed, ...
    strength:
        As for `Intervention.on`.
    confidence:
        Of the intervals.

    Raises
    ------
    SiteError
        No measured site comes at or after an edit.
    ActivationError
        No row of a side wrote anything in both runs.
    SettingError, TokenError, ModelError
        As for `collect`.

    """
    require_settings(generated_shift, locals())
    require_confidence(confidence)
    require_interventions(intervention)
    edited = find_sites(model, [site.name for site in intervention.sites])
    measured = reached(host_of(model), find_sites(model, sites), edited)
    if not measured:
        raise SiteError(f"none of the sites {sites!r} comes at or after the first edit, at {edited[0].name}")
    names = [site.name for site in measured]

    def run(edit: Intervention | None, of: Of) -> Activations:
        how: dict[str, Any] = {
            "pool": pool,
            "batch_size": batch_size,
            "intervention": edit,
            "strength": strength if edit is not None else 1.0,
            "progress": progress,
        }
        values: Activations
        if of == "given":
            values = collect(model, contrast, names, **how)
        else:
            values = collect(model, contrast, names, of="generated", **how, **sampling)
        return values

    runs = {of: (run(None, of), run(intervention, of)) for of in ("generated", "given")}
    silent = sorted({row for one in runs["generated"] for row in one.provenance["silent"]})
    given = runs["given"][0]
    keep = [row for row in range(len(given.labels)) if row not in silent]
    labels, blocks = given.labels[keep, 0], given.blocks[keep].numpy()
    at = {"source": labels == 1, "target": labels == 0}
    group = TextGroup("heldout", {}, {side: blocks[rows.numpy()] for side, rows in at.items()})

    def sides(one: Activations) -> Sides:
        left_out = set(one.provenance.get("silent", ()))
        wrote = [row for row in range(len(given.labels)) if row not in left_out]
        kept = torch.tensor([place for place, row in enumerate(wrote) if row not in silent], dtype=torch.long)
        return {side: _at(one, kept[rows], measured) for side, rows in at.items()}

    ruler = deviations(sides(given))
    estimates: dict[tuple[Of, int, str], Float[np.ndarray, " case"]] = {}
    for of in ("given", "generated"):
        before, after = map(sides, runs[of])
        untouched = Untouched(group, before, ruler)
        for layer in sorted({site.layer for site in measured}):
            here = [site for site in measured if site.layer == layer]
            measures = untouched.measures(after, here, confidence=confidence)
            estimates |= {(of, layer, measure): measures[measure] for measure in _MEASURES}
    about = {
        "method": intervention.provenance.get("method", "intervention"),
        "contrast": contrast.name,
        "pool": pool,
        "strength": strength,
        "confidence": confidence,
        "sampling": runs["generated"][0].provenance["sampling"],
        "rows": {side: int(rows.sum()) for side, rows in at.items()},
        "silent": silent,
    }
    return GeneratedShift(estimates, about)


def _at(activations: Activations, rows: Tensor, sites: tuple[Site, ...]) -> dict[Site, Tensor]:
    return {site: activations.values[site.name][rows] for site in sites}
