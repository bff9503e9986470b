"""Downstream shift: what an intervention does to the activations after it, as distances between source and target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lens_steer.activations.pooling import Pool
from lens_steer.effects.distances import Sides, Texts, Untouched, pooled_sides, tokenized_groups
from lens_steer.errors import SettingError, SiteError
from lens_steer.host.adapter import Host, host_of
from lens_steer.host.guards import require_eval
from lens_steer.host.sites import Site, SitePattern, find_sites
from lens_steer.interventions.intervention import Intervention
from lens_steer.progress import progress_bar
from lens_steer.texts.contrast import ContrastSet, Row

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class DownstreamShift:
    """How far source lies from target before and after an edit, at every site and unit that the edit can reach.

    Attributes
    ----------
    frame:
        One row per texts, edited part, site and unit. Columns: texts (heldout, neutral, foreign); edited ("all", or
        "layer 3" for that layer's edits alone); site, layer, unit; before and after (Wasserstein distance of order 1
        from the source, unedited and edited, to the *unedited* target, in the unit's own scale); removed (before -
        after: negative where the edit drives the sides apart); target_moved (distance of the edited target from the
        unedited one: collateral); gap (the target's mean less the source's, unedited) and moved (how far the edit moves
        the source's mean: beyond gap it overshoots); sd (standard deviation of the held-out contrast's source and
        target texts taken together, unedited: one ruler for all texts; nan where the unit is constant); before_sd and
        after_sd (in that unit, so that units may be added up). Neutral texts have no sides: before and gap are 0, after
        is the distance of the edited texts from the unedited ones, target_moved nan.
        Sites that the forward pass reaches before the edit are left out: nothing can change there.
    settings:
        method, contrast, foreign, pool, strength, the number of texts, and edited_layers.

    """

    frame: pd.DataFrame
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        shares = self.matrix().loc["all"].dropna()
        last = shares.index[-1]
        method = self.settings.get("method", "intervention")
        return f"DownstreamShift({method}: {shares[last]:.0%} of the held-out distance removed at layer {last})"

    def matrix(self, texts: Texts = "heldout") -> pd.DataFrame:
        """Return the share of the source-target distance removed: edited layer (and "all") x measured layer.

        A share is the removed distance over the distance before, each added up over the layer's units in standard
        deviations: 1 brings source onto target, 0 does nothing, below 0 drives them apart. nan where the measured layer
        lies before the edited one, or source and target did not differ there. SettingError for neutral texts, which
        have no sides: ask `collateral`.
        """
        if texts == "neutral":
            raise SettingError('neutral texts have no distance to remove: use collateral("neutral")')
        part = self._of(texts)
        sums = part.groupby(["edited", "layer"])[["before_sd", "after_sd"]].sum()
        share = 1 - sums["after_sd"] / sums["before_sd"].where(sums["before_sd"] > 0)
        return self._wide(share)

    def collateral(self, texts: Texts = "neutral") -> pd.DataFrame:
        """Return how far texts moved that should have stayed, edited layer (and "all") x measured layer.

        The mean over units of the distance from unedited to edited, in standard deviations; of neutral texts, or of the
        target side of the held-out or foreign ones.
        """
        part = self._of(texts)
        moved = part["after" if texts == "neutral" else "target_moved"] / part["sd"]
        return self._wide(moved.groupby([part["edited"], part["layer"]]).mean())

    def _of(self, texts: Texts) -> pd.DataFrame:
        there = list(self.frame["texts"].unique())
        if texts not in there:
            raise SettingError(f"no {texts} texts were measured: pass {texts}= to downstream_shift; there are {there}")
        return self.frame[self.frame["texts"] == texts]

    def _wide(self, values: pd.Series) -> pd.DataFrame:
        layers = [_layer_name(layer) for layer in self.settings.get("edited_layers", ())]
        present = set(self.frame["edited"])
        # A layer whose edits come after every measured site keeps its row, empty.
        rows = [*(layers if len(present) > 1 else ()), "all"]
        return values.unstack("layer").reindex(rows).rename_axis(index="edited", columns="measured layer")

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
    neutral: Sequence[Row] = (),
    foreign: ContrastSet | None = None,
    strength: float = 1.0,
    by_layer: bool = True,
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
        What to judge. It edits whole texts here, so the scope "generated" does nothing (warned).
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
    batch_size:
        Texts per batch; chosen by length when None.
    check_model:
        As for `Intervention.on`.
    progress:
        Whether to show a progress bar.

    Raises
    ------
    SiteError
        The intervention edits a site that this model does not have, or no measured site comes at or after an edit.
    ActivationError
        A value is not finite (the site and the text are named).
    ModelError, ArtifactError, TokenError
        As `Intervention.on` and `tokenize` say.

    """
    import pandas as pd

    require_eval(model)
    host = host_of(model)
    edited = find_sites(model, [site.name for site in intervention.sites])
    measured = reached(host, find_sites(model, sites), edited)
    if not measured:
        raise SiteError(f"none of the sites {sites!r} comes at or after the first edit, at {edited[0].name}")
    groups = tokenized_groups(model, contrast, neutral, foreign)

    def values(what: str) -> list[Sides]:
        return [pooled_sides(model, group, measured, pool, batch_size, what) for group in groups]

    unedited = values("the unedited model")
    untouched = [Untouched(sides) for sides in unedited]
    layers = sorted({site.layer for site in edited})
    parts = _parts(intervention, layers if by_layer else [])
    frames = []
    for name, part in progress_bar(parts.items(), desc="downstream shift", unit="edit", show=progress):
        later = reached(host, measured, part.sites)
        if not later:
            continue  # these edits come after everything that is measured
        moved = unedited
        if name == "all" or part.units(tol=0.0):  # a sparse fit leaves whole layers alone
            with part.on(model, strength, check_model=check_model):
                moved = values(f"the model edited at {name}")
        for group, before, after in zip(groups, untouched, moved, strict=True):
            for site in later:
                rows = before.compare(after, site, ruler=untouched[0].deviation(site))
                frames.append(_frame(site, rows, texts=group.name, edited=name))
    frame = pd.concat(frames, ignore_index=True)
    if by_layer and len(layers) == 1:
        frame = pd.concat([frame, frame.assign(edited=_layer_name(layers[0]))], ignore_index=True)
    about = {
        "method": intervention.provenance.get("method", "intervention"),
        "contrast": contrast.name,
        "foreign": None if foreign is None else foreign.name,
        "pool": pool,
        "strength": strength,
        "texts": {f"{group.name} {side}": len(rows) for group in groups for side, rows in group.tokens.items()},
        "edited_layers": layers,
    }
    return DownstreamShift(frame, about)


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
