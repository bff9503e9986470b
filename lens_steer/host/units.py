"""Units: one dimension of one site, printed as `blocks.5.mlp.hook_post[123]`, and the tables that list them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import numpy as np
from torch import nn

from lens_steer.errors import SiteError, UnitError
from lens_steer.host.adapter import host_of
from lens_steer.host.sites import Site, site_at, split_name
from lens_steer.settings import require_settings

if TYPE_CHECKING:
    import pandas as pd

_UNIT = re.compile(r"([\w.]+)\[\s*(\d+)\s*(?:,\s*(\d+)\s*)?\]")


@dataclass(frozen=True, order=True)
class Unit:
    """Dimension `index` of a site; at a site of heads `index` is head * d_head + dim, printed as [head, dim]."""

    site: Site
    index: int

    def __post_init__(self) -> None:
        if type(self.index) is not int or type(self.site) is not Site:  # there are many units: the quick way first
            require_settings(type(self), vars(self))
        if not 0 <= self.index < self.site.width:
            raise UnitError(f"{self.site.name} has {self.site.width} units: there is no unit {self.index}")

    def __str__(self) -> str:
        if self.site.heads == 1:
            return f"{self.site.name}[{self.index}]"
        head, dim = divmod(self.index, self.site.width // self.site.heads)
        return f"{self.site.name}[{head}, {dim}]"

    @staticmethod
    def parse(text: str, sites: Iterable[Site]) -> Unit:
        """Read a printed unit back; `sites` are the sites it may lie at (`find_sites`)."""
        require_unit_name(text)
        match = _UNIT.fullmatch(text.strip())
        assert match is not None
        site = _lookup(match[1], {s.name: s for s in sites}, None)
        if match[3] is None:
            return Unit(site, int(match[2]))
        head, dim, d_head = int(match[2]), int(match[3]), site.width // site.heads
        if head >= site.heads or dim >= d_head:
            raise UnitError(f"{text!r}: {site.name} has {site.heads} heads of {d_head} dimensions")
        return Unit(site, head * d_head + dim)


def require_unit_name(text: str) -> str:
    """Return the site's name in a printed unit; UnitError for what is no unit, before any model is asked."""
    match = _UNIT.fullmatch(text.strip())
    if match is None:
        raise UnitError(
            f"{text!r} is not a unit; write it as blocks.5.mlp.hook_post[123] or blocks.5.attn.hook_z[3, 7]"
        )
    split_name(match[1])
    return match[1]


def unit_in(model: nn.Module, unit: Unit | str) -> Unit:
    """Return a unit of this model, given as it is printed or from elsewhere.

    UnitError or SiteError, saying why, where the model has no such unit.
    """
    host = host_of(model)
    host.refresh()
    name = unit.site.name if isinstance(unit, Unit) else require_unit_name(unit)
    host.canonical(name)  # which names the nearest
    site = site_at(host, name)
    if isinstance(unit, str):
        return Unit.parse(unit, [site])
    if unit.site.width != site.width:
        raise SiteError(f"{name} has {site.width} units in this model, the unit's site has {unit.site.width}")
    return Unit(site, unit.index)


@runtime_checkable
class RanksUnits(Protocol):
    """Anything that can name its units, such as an ExpertRanking."""

    def units(self) -> tuple[Unit, ...]:
        """Return the units it stands for."""
        ...


if TYPE_CHECKING:
    UnitsLike = RanksUnits | pd.DataFrame | str | os.PathLike[str] | Sequence[Unit | str | tuple[str, int]]
else:
    UnitsLike = Any


def as_units(units: UnitsLike, *, sites: Iterable[Site] = ()) -> tuple[Unit, ...]:
    """Read units from whatever lists them.

    Parameters
    ----------
    units:
        An ExpertRanking, a frame or the path of a csv with columns `site` and `unit` (and `width`, as rankings write
        it), or a sequence of Unit, of printed units, or of (site name, index) pairs.
    sites:
        Where widths are looked up when `units` does not carry them.

    Raises
    ------
    UnitError
        There is no such file or it is no table; a column is missing; a table holds several concepts; a unit is no
        whole number or out of range; a width is unknown.

    """
    known = {site.name: site for site in sites}
    if isinstance(units, (str, os.PathLike)):
        units = _read_csv(units)
    # A frame first: `frame.units` may be a column of it.
    if hasattr(units, "columns"):
        return _from_frame(cast("pd.DataFrame", units), known)
    if isinstance(units, RanksUnits):
        return units.units()
    if not isinstance(units, Iterable):
        raise UnitError(f"{type(units).__name__} lists no units: give a ranking, a table, a csv or a list of units")
    listed = tuple(_one(unit, known) for unit in units)
    if not listed:
        raise UnitError("the list of units is empty")
    return listed


def _read_csv(path: str | os.PathLike[str]) -> pd.DataFrame:
    import pandas as pd

    if _UNIT.fullmatch(os.fspath(path).strip()):
        raise UnitError(f"{path!r} is a single unit: write it as a list, [{path!r}]")
    try:
        return pd.read_csv(path)
    except (FileNotFoundError, IsADirectoryError):
        raise UnitError(f"there is no file {os.fspath(path)!r}; give a csv with columns site and unit") from None
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise UnitError(f"{os.fspath(path)!r} is no csv that can be read ({error})") from error


def _from_frame(frame: pd.DataFrame, known: Mapping[str, Site]) -> tuple[Unit, ...]:
    missing = {"site", "unit"} - set(frame.columns)
    if missing:
        raise UnitError(f"a table of units needs columns site and unit; it has {', '.join(map(str, frame.columns))}")
    if frame.empty:
        raise UnitError("the table of units has no rows")
    if "concept" in frame.columns and frame["concept"].nunique() > 1:
        concepts = ", ".join(map(str, frame["concept"].unique()))
        raise UnitError(f"the table lists units of several concepts ({concepts}): keep the rows of one")
    widths = frame["width"] if "width" in frame.columns else [None] * len(frame)
    rows = zip(frame["site"], frame["unit"], widths, strict=True)
    return tuple(_at(str(name), index, known, width) for name, index, width in rows)


def _one(unit: Any, known: Mapping[str, Site]) -> Unit:
    if isinstance(unit, Unit):
        return unit
    if isinstance(unit, str):
        return Unit.parse(unit, known.values())
    try:
        name, index = unit
    except (TypeError, ValueError):
        raise UnitError(f"{unit!r} is no unit: write it as a (site name, index) pair or as it is printed") from None
    return _at(str(name), index, known, None)


def _at(name: str, index: Any, known: Mapping[str, Site], width: Any) -> Unit:
    try:
        number = int(index)
        exact = number == float(index)
    except (TypeError, ValueError, OverflowError):
        exact = False
    if not exact:
        raise UnitError(f"{name}: the unit {index!r} is no whole number")
    return Unit(_lookup(name, known, width), number)


def _lookup(name: str, known: Mapping[str, Site], width: Any) -> Site:
    if name in known:
        return known[name]
    if not isinstance(width, int | float | np.number) or not 1 <= width < float("inf"):
        raise UnitError(
            f"the width of {name} is unknown here: pass model= or activations=, or a table with a width column"
        )
    layer, kind = split_name(name)
    return Site(name, layer, kind, int(width))
