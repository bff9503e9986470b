"""Downstream shift: what an intervention does to the activations after it, as distances between source and target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from lens_steer.activations.pooling import Pool
from lens_steer.display.shown_result import shown_result
from lens_steer.effects.shifts import Untouched, deviations
from lens_steer.effects.text_groups import Sides, Texts, pooled_sides, tokenized_groups
from lens_steer.errors import SettingError, SiteError
from lens_steer.host.adapter import Host, host_of
from lens_steer.host.guards import require_eval
from lens_steer.host.sites import Site, SitePattern, find_sites
from lens_steer.interventions.intervention import Intervention, require_interventions
from lens_steer.progress import progress_bar
from lens_steer.settings import require_settings
from lens_steer.statistics.intervals import require_confidence
from lens_steer.statistics.jackknife import jackknife_intervals
from lens_steer.statistics.verdict import verdict_of
from lens_steer.texts.contrast import ContrastSet, Row
from lens_steer.texts.messages import Conversation

if TYPE_CHECKING:
    import pandas as pd


Key = tuple[str, str, int, str]
"""texts, edited, layer, measure."""

_KEYS = ["texts", "edited", "layer", "measure"]
SIDED = ("apart", "removed", "arrived", "left")
"""Measures that need a target; the others are of every kind of texts."""


@dataclass(frozen=True, eq=False)
class DownstreamShift:
    """How far source lies from target before and after an edit, at every layer that the edit can reach.

    Attributes
    ----------
    frame:
        One row per texts, edited part, site and unit. Columns: texts (heldout, neutral, foreign); edited ("all", or
        "layer 3" for that layer's edits alone); site, layer, unit; wasserstein_before and wasserstein_after (distance
        of order 1 from the source, unedited and edited, to the *unedited* target, in the unit's own scale: it has a
        floor, and is not 0 between samples of one law); gap (the target's mean less the source's, unedited); moved (how
        far the edit moves the source's mean: beyond gap it overshoots); collateral (how far a text of the target, or a
        neutral text, moves: mean absolute size); sd (standard deviation of the held-out contrast's source and target
        texts taken together, unedited: one ruler for all texts; nan where the unit is constant); counted (whether the
        unit counts in `measures`). Neutral texts have no sides: wasserstein_before and gap are 0, wasserstein_after is
        the distance of the edited texts from the unedited ones. Sites that the forward pass reaches before the edit are
        left out: nothing can change there.
    estimates:
        (texts, edited, layer, measure) -> the measure's value on all texts, then with one group of texts left out each.
    settings:
        method, contrast, foreign, pool, strength, confidence, the number of texts, their hash, and edited_layers.

    """

    frame: pd.DataFrame
    estimates: Mapping[Key, Float[np.ndarray, " case"]]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def measures(self) -> pd.DataFrame:
        """One row per texts, edited part, layer and measure: value, and low and high of its interval.

        apart: energy distance of the unedited source from the unedited target, in sd per unit. removed: share of it
        that the edit removes: 1 brings source onto target, 0 does nothing, below 0 drives them apart; without a floor,
        so the same on average at any number of texts. The energy distance grows like the square of a small shift: an
        edit that goes half a short way removes about three quarters. arrived: how far the source's mean has gone to the
        target's, as a share of that way (1 arrives, above it overshoots), cross-fitted. left: arrived, less what it is
        at the edited layer itself (one layer's edits alone). moved: size of the mean move of source or neutral texts,
        root mean square over units, in sd, less what chance adds to it. collateral: how far each text that should have
        stayed moves (target; of neutral texts themselves), mean over units, in sd.

        Units whose sd is below a tenth of their site's median do not count, before and after alike: an edit moves them
        by thousands of their sd, and sums over units would be about them alone. They are told by `counted` in `frame`.

        Intervals are of a delete-a-group jackknife over blocks of texts: a text and its edited self, equal texts and
        pairs are left out together. removed and arrived are nan where source and target are not shown to differ.
        """
        import pandas as pd

        rows = [
            (*key, float(values[0]), *jackknife_intervals(values[:, None], confidence=self._confidence)[:, 0])
            for key, values in self.estimates.items()
        ]
        frame = pd.DataFrame(rows, columns=[*_KEYS, "value", "low", "high"])
        unsigned = frame["measure"].isin(["moved", "collateral"])
        return frame.assign(low=frame["low"].mask(unsigned, frame["low"].clip(lower=0)))

    def change_from(self, other: DownstreamShift) -> pd.DataFrame:
        """Return how this edit's measures differ from another's on the same texts, as one row per common measure.

        Columns: texts, edited, layer, measure, before (the other's value), after (this one's), low, high (of after -
        before: both are measured on the same texts, so what texts have in common cancels out), verdict. SettingError
        where the texts are not the same.
        """
        import pandas as pd

        if self.settings.get("texts_hash") != other.settings.get("texts_hash"):
            raise SettingError("the two edits were measured on other texts: give downstream_shift the same ones")
        rows = []
        for key, values in self.estimates.items():
            if key in other.estimates:
                difference = values - other.estimates[key]
                low, high = jackknife_intervals(difference[:, None], confidence=self._confidence)[:, 0].tolist()
                rows.append(
                    (*key, float(other.estimates[key][0]), float(values[0]), low, high, verdict_of(low, high).value)
                )
        return pd.DataFrame(rows, columns=[*_KEYS, "before", "after", "low", "high", "verdict"])

    @property
    def _confidence(self) -> float:
        return float(self.settings.get("confidence", 0.95))

    def __repr__(self) -> str:
        removed = self.measures.query("texts == 'heldout' and edited == 'all' and measure == 'removed'")
        last = removed.sort_values("layer").iloc[-1]
        method, where = self.settings.get("method", "intervention"), f"at layer {last['layer']}"
        if np.isnan(last["value"]):
            return f"DownstreamShift({method}: what it removes {where} cannot be judged, no distance is shown there)"
        interval = f"{last['value']:.0%} [{last['low']:.0%}, {last['high']:.0%}]"
        return f"DownstreamShift({method}: {interval} of the held-out distance removed {where})"

    def _repr_html_(self) -> str:
        whole = self.measures.query("edited == 'all'")
        last = whole[whole["layer"] == whole["layer"].max()]
        return shown_result(repr(self), table=last.drop(columns="edited"), rest=".measures")

    def matrix(self, texts: Texts = "heldout", measure: str = "removed", *, column: str = "value") -> pd.DataFrame:
        """Return one measure, edited layer (and "all") x measured layer.

        `column` is value, low or high. nan where the measured layer lies before the edited one, and where the measure
        cannot be judged, see `measures`. SettingError for texts that were not measured, or that have no such measure
        (neutral texts have no sides: nothing to remove, nowhere to arrive).
        """
        kinds = list(self.frame["texts"].unique())
        if texts not in kinds:
            raise SettingError(f"no {texts} texts were measured: pass {texts}= to downstream_shift; there are {kinds}")
        rows = self.measures[self.measures["texts"] == texts]
        if measure not in (names := list(rows["measure"].unique())):
            remedy = ': use collateral("neutral")' if texts == "neutral" and measure in SIDED else ""
            raise SettingError(f"{texts} texts have no measure {measure!r}, only {', '.join(names)}{remedy}")
        if column not in ("value", "low", "high"):
            raise SettingError(f"column is value, low or high, not {column!r}")
        layers = [_layer_name(layer) for layer in self.settings.get("edited_layers", ())]
        # A layer whose edits come after every measured site keeps its row, empty.
        index = [*(layers if self.frame["edited"].nunique() > 1 else ()), "all"]
        wide = rows[rows["measure"] == measure].pivot(index="edited", columns="layer", values=column)
        return wide.reindex(index).rename_axis(index="edited", columns="measured layer")

    def collateral(self, texts: Texts = "neutral", *, column: str = "value") -> pd.DataFrame:
        """Return how far texts moved that should have stayed, edited layer (and "all") x measured layer.

        The move of each text, mean over units and texts, in standard deviations: of neutral texts, or of the target
        side of the held-out or foreign ones. It is 0 where nothing moves, at any number of texts.
        """
        return self.matrix(texts, "collateral", column=column)

    def plot(self) -> Any:
        """Return heat maps: edited layer x measured layer."""
        from lens_steer.report.plots import plot

        return plot(self)


def downstream_shift(
    model: nn.Module,
    intervention: Intervention,
    contrast: ContrastSet,
    *,
    sites: SitePattern = "hook_resid_post",
    pool: Pool = "mean",
    neutral: Sequence[Row | Conversation] = (),
    foreign: ContrastSet | None = None,
    strength: float = 1.0,
    by_layer: bool = True,
    confidence: float = 0.95,
    batch_size: int | None = None,
    check_model: bool = True,
    progress: bool = True,
) -> DownstreamShift:
    """Measure the distance between source and target at every later site and unit, before and after an edit.

    The question is how close the *edited* source comes to the *untouched* target; how far the edit moves the target
    itself, and neutral texts, is reported beside it.

    Parameters
    ----------
    model:
        A TransformerLens model.
    intervention:
        What to judge. An edit of generated tokens acts on the completions of pairs, and on plain texts behind BOS; one
        for prompts alone, or with a gate, needs pairs.
    contrast:
        Held-out texts: split before you fit (`contrast.split()`), and give the part that the fit has not seen. On the
        texts of the fit the distance removed is flattered.
    sites:
        Where to measure, a pattern for `find_sites`. Sites that the forward pass reaches before the first edited one
        are dropped: the edit changes them by exactly 0.
    pool:
        How a text's tokens become one value.
    neutral:
        Texts of neither side, in the contrast's chat format; the contrast's control texts when none are given.
    foreign:
        A contrast of the same concept from another data set: does the effect hold out of sample?
    strength:
        As for `Intervention.on`.
    by_layer:
        Whether each edited layer's edits are also applied alone, one pass over the texts per layer.
    confidence:
        Of the intervals.
    batch_size:
        Texts per batch; chosen by length when None.
    check_model:
        As for `Intervention.on`.
    progress:
        Whether to show a progress bar.

    Raises
    ------
    SettingError
        The confidence is not between 0 and 1, or the neutral texts are none.
    SiteError
        The intervention edits a site that this model does not have, or no measured site comes at or after an edit.
    ActivationError
        A value is not finite (the site and the text are named).
    ModelError, ArtifactError, TokenError
        As `Intervention.on` and `tokenize` say.

    """
    require_settings(downstream_shift, locals())
    import pandas as pd

    require_confidence(confidence)
    require_eval(model)
    require_interventions(intervention)
    host = host_of(model)
    edited = find_sites(model, [site.name for site in intervention.sites])
    measured = reached(host, find_sites(model, sites), edited)
    if not measured:
        raise SiteError(f"none of the sites {sites!r} comes at or after the first edit, at {edited[0].name}")
    groups = tokenized_groups(model, contrast, neutral, foreign)

    def values(what: str) -> list[Sides]:
        return [pooled_sides(model, group, measured, pool, batch_size, what) for group in groups]

    unedited = values("the unedited model")
    ruler = deviations(unedited[0])
    untouched = [Untouched(group, sides, ruler) for group, sides in zip(groups, unedited, strict=True)]
    layers = sorted({site.layer for site in edited})
    parts = _parts(intervention, layers if by_layer else [])
    frames: list[pd.DataFrame] = []
    estimates: dict[Key, Float[np.ndarray, " case"]] = {}
    for name, part in progress_bar(parts.items(), desc="downstream shift", unit="edit", show=progress):
        later = reached(host, measured, part.sites)
        if not later:
            continue  # these edits come after everything that is measured
        moved = unedited
        if name == "all" or part.units(tol=0.0):  # a sparse fit leaves whole layers alone
            with part.on(model, strength, check_model=check_model):
                moved = values(f"the model edited at {name}")
        for group, before, after in zip(groups, untouched, moved, strict=True):
            frames += [_frame(site, before.units(after, site), texts=group.name, edited=name) for site in later]
            for layer in sorted({site.layer for site in later}):
                here = [site for site in later if site.layer == layer]
                for measure, cases in before.measures(after, here, confidence=confidence).items():
                    estimates[group.name, name, layer, measure] = cases
    frame = pd.concat(frames, ignore_index=True)
    if by_layer and len(layers) == 1:
        (name,) = map(_layer_name, layers)
        frame = pd.concat([frame, frame.assign(edited=name)], ignore_index=True)
        estimates |= {(texts, name, layer, measure): v for (texts, _, layer, measure), v in estimates.items()}
    estimates |= _left(estimates, layers)
    about = {
        "method": intervention.provenance.get("method", "intervention"),
        "contrast": contrast.name,
        "foreign": None if foreign is None else foreign.name,
        "pool": pool,
        "strength": strength,
        "confidence": confidence,
        "texts": {f"{group.name} {side}": len(rows) for group in groups for side, rows in group.tokens.items()},
        "texts_hash": [contrast.data_hash, tuple(neutral), foreign and foreign.data_hash],
        "edited_layers": layers,
    }
    return DownstreamShift(frame, estimates, about)


def _left(
    estimates: Mapping[Key, Float[np.ndarray, " case"]], layers: Sequence[int]
) -> dict[Key, Float[np.ndarray, " case"]]:
    """What is left of one layer's edits at every layer: arrived there, less arrived at the edited layer itself."""
    own = {_layer_name(layer): layer for layer in layers}
    return {
        (texts, edited, layer, "left"): cases - estimates[texts, edited, own[edited], measure]
        for (texts, edited, layer, measure), cases in estimates.items()
        if measure == "arrived" and edited in own and (texts, edited, own[edited], measure) in estimates
    }


def reached(host: Host, sites: Sequence[Site], edited: Sequence[Site]) -> tuple[Site, ...]:
    """Return the sites that a forward pass comes to at the first edit or later."""
    first = min(host.firing_order(site.name) for site in edited)
    return tuple(site for site in sites if host.firing_order(site.name) >= first)


def _parts(intervention: Intervention, layers: Sequence[int]) -> dict[str, Intervention]:
    """The intervention, and each layer's edits alone where there are several layers."""
    parts = {"all": intervention}
    for layer in layers if len(layers) > 1 else ():
        parts[_layer_name(layer)] = intervention.restrict([s for s in intervention.sites if s.layer == layer])
    return parts


def _layer_name(layer: int) -> str:
    return f"layer {layer}"


def _frame(site: Site, rows: Mapping[str, Tensor], **what: str) -> pd.DataFrame:
    import pandas as pd

    place = {**what, "site": site.name, "layer": site.layer, "unit": range(site.width)}
    return pd.DataFrame({**place, **{name: value.numpy() for name, value in rows.items()}})
