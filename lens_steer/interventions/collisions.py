"""Collisions: the units that two interventions both edit, and how much their order matters there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_steer.activations.activations import Activations
from lens_steer.display.shown_result import shown_result
from lens_steer.errors import MapError
from lens_steer.host.scope import Scope
from lens_steer.interventions.edit import Edit
from lens_steer.interventions.intervention import Intervention, require_interventions
from lens_steer.interventions.maps import ActivationMap, DiagonalAffine
from lens_steer.settings import require_settings

if TYPE_CHECKING:
    import pandas as pd

_CONSTANT = 1e-6  # a spread below this share of a unit's largest value is rounding, not variation


@dataclass(frozen=True, eq=False)
class Collisions:
    """The units that two interventions both edit, and how much it matters which of them acts first.

    Attributes
    ----------
    frame:
        One row per unit and pair of edits that collide. Columns: site, layer, unit; first_scope, later_scope;
        first_scale, first_shift, later_scale, later_shift (nan where a map is not diagonal); order, the distance
        between later(first(h)) and first(later(h)) in the unit's own scale; how ("closed form": two diagonal maps
        differ by |(s2 - 1) b1 - (s1 - 1) b2| at every h; "measured": the mean over the given activations; "unknown":
        no closed form and no activations); sd, the unit's standard deviation over the given texts, both sides taken
        together (nan without activations, or where it is constant); order_sd, the distance in that unit.
    settings:
        The methods, under "first" and "later", and tol.

    """

    frame: pd.DataFrame
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.frame)

    def __repr__(self) -> str:
        first, later = self.settings.get("first"), self.settings.get("later")
        return f"Collisions({first} and {later}: {len(self)} at {self.frame['site'].nunique()} sites)"

    def _repr_html_(self) -> str:
        return shown_result(repr(self), table=self.by_site() if len(self) else None, rest=".by_site()")

    def by_site(self) -> pd.DataFrame:
        """Return one row per site: layer, units that collide, how many of them feel the order, mean and largest order.

        A unit feels it where `order` is above tol. The means are over the units that collide; order_sd_mean and
        order_sd_max are nan without activations.
        """
        frame = self.frame.assign(felt=self.frame["order"] > self.settings.get("tol", 0.0))
        return (
            frame.groupby(["layer", "site"], sort=True)
            .agg(
                units=("unit", "nunique"),
                order_matters=("felt", "sum"),
                order_mean=("order", "mean"),
                order_max=("order", "max"),
                order_sd_mean=("order_sd", "mean"),
                order_sd_max=("order_sd", "max"),
            )
            .reset_index()
        )


def collisions(
    first: Intervention, later: Intervention, *, activations: Activations | None = None, tol: float = 1e-5
) -> Collisions:
    """Name the sites and units where two interventions collide, and say how much their order matters there.

    What collides is what `compose` says. The maps are compared at strength 1, at their own site: what an edit does to
    later sites, and how two edits of different sites add up, is `interaction`'s question.

    Parameters
    ----------
    first, later:
        The interventions. Swapping them changes no distance.
    activations:
        Pooled activations (`collect`, `Activations.from_arrays`) of the sites that collide: a ruler for every unit, and
        the values on which maps without a closed form are compared.
    tol:
        As for `Intervention.support`.

    Raises
    ------
    ActivationError
        `activations` lack a site where the two collide.
    MapError
        A site's width differs between the interventions, or between them and the activations.

    """
    require_settings(collisions, locals())
    import pandas as pd

    require_interventions(first, later)
    require_equal_widths(first, later)
    frames = [
        _frame(edit, later.edits[place], units, activations) for edit, place, units in colliding(first, later, tol)
    ]
    frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=_COLUMNS)
    methods = [intervention.provenance.get("method", "intervention") for intervention in (first, later)]
    return Collisions(frame, {"first": methods[0], "later": methods[1], "tol": tol})


_PARAMETERS = ("first_scale", "first_shift", "later_scale", "later_shift")
_COLUMNS = ["site", "layer", "unit", "first_scope", "later_scope", *_PARAMETERS, "order", "how", "sd", "order_sd"]


def _frame(first: Edit, later: Edit, units: Bool[Tensor, " unit"], activations: Activations | None) -> pd.DataFrame:
    import pandas as pd

    site, chosen = first.site, units.nonzero()[:, 0]
    values = None if activations is None else activations.values[site].float().cpu()
    if values is not None and values.shape[1] != site.width:
        raise MapError(f"{site.name} has {site.width} units in the interventions, {values.shape[1]} in the activations")
    nothing = torch.full((len(chosen),), torch.nan)
    columns: dict[str, Any] = {"site": site.name, "layer": site.layer, "unit": chosen.numpy()}
    columns |= {"first_scope": str(first.scope), "later_scope": str(later.scope)}
    for name in _PARAMETERS:
        edit, parameter = (first if name.startswith("first") else later), name.split("_")[1]
        value = getattr(edit.map, parameter) if isinstance(edit.map, DiagonalAffine) else None
        columns[name] = (nothing if value is None else value[chosen]).numpy()
    order, how = _order(first.map, later.map, values)
    sd = nothing if values is None else _spread(values)[chosen]
    order = nothing if order is None else order[chosen]
    columns |= {"order": order.double().numpy(), "how": how, "sd": sd.double().numpy()}
    columns["order_sd"] = (order.double() / sd.double()).numpy()
    return pd.DataFrame(columns)[_COLUMNS]


def _order(
    first: ActivationMap, later: ActivationMap, values: Float[Tensor, "text unit"] | None
) -> tuple[Float[Tensor, " unit"] | None, str]:
    """Return how far apart the two orders bring every unit, and how that is known."""
    one_way, other_way = first.then(later), later.then(first)
    if isinstance(one_way, DiagonalAffine) and isinstance(other_way, DiagonalAffine):
        # The scales of the two are one product; only the shifts differ. Of doubles, and not of the fused float32 ones:
        # shifts far larger than their difference would drown it.
        s1, b1, s2, b2 = (getattr(m, part).double() for m in (first, later) for part in ("scale", "shift"))
        return ((s2 - 1) * b1 - (s1 - 1) * b2).abs(), "closed form"
    if values is None:
        return None, "unknown"
    with torch.no_grad():
        h = values.double()[:, None]  # texts of one token: some maps treat rows differently
        return (later(first(h)) - first(later(h))).abs().mean((0, 1)), "measured"


def _spread(values: Float[Tensor, "text unit"]) -> Float[Tensor, " unit"]:
    spread = values.double().std(0, correction=0)
    return spread.masked_fill(spread <= _CONSTANT * values.abs().amax(0), math.nan)


def colliding(
    first: Intervention, later: Intervention, tol: float
) -> Iterator[tuple[Edit, int, Bool[Tensor, " unit"]]]:
    """Yield the pairs of edits that collide, the later one by its place, and at which units of their site."""
    for place, new in enumerate(later.edits):
        for old in first.edits:
            if old.site != new.site or not _share_tokens(old.scope, new.scope):
                continue
            moved, moved_later = old.map.moved(tol), new.map.moved(tol)
            if old.map.unit_by_unit and new.map.unit_by_unit:
                units = moved & moved_later
            else:
                units = (moved | moved_later) & moved.any() & moved_later.any()
            if bool(units.any()):
                yield old, place, units


def _share_tokens(one: Scope, other: Scope) -> bool:
    """Whether there may be a token that both scopes mean."""
    if one.name == other.name == "tokens" and not set(one.tokens) & set(other.tokens):
        return False
    return {one.name, other.name} != {"prompt", "generated"} and one.within(other) is not None


def require_equal_widths(first: Intervention, later: Intervention) -> None:
    """Raise MapError where a site has another width in one intervention than in the other."""
    widths = {site: site.width for site in first.sites}
    for site in later.sites:
        if widths.get(site, site.width) != site.width:
            raise MapError(
                f"{site.name} has {widths[site]} units in one intervention and {site.width} in the other: they were "
                "fitted on different models"
            )
