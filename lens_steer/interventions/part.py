"""The part of an intervention that is asked for: whole sites, and single units of the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lens_steer.errors import SiteError, UnitError
from lens_steer.host.sites import Site
from lens_steer.host.units import Unit, as_units


def sites_and_units(listed: Any, edited: Sequence[Site]) -> tuple[set[str], tuple[Unit, ...]]:
    """Return the names of whole sites in a list, and its units; SiteError or UnitError for what is not edited."""
    names = {site.name: site for site in edited}
    whole: set[str] = set()
    if isinstance(listed, str) and listed in names:
        listed = [listed]
    if isinstance(listed, Sequence) and not isinstance(listed, str):
        sites = [item for item in listed if isinstance(item, Site) or (isinstance(item, str) and "[" not in item)]
        whole = {str(item) for item in sites}
        unknown = sorted(whole - names.keys())
        if unknown:
            raise SiteError(f"{unknown[0]} is not edited here; these sites are: {', '.join(names)}")
        listed = [item for item in listed if item not in sites]
        if not listed and whole:
            return whole, ()
    units = as_units(listed, sites=edited)
    for unit in units:
        if unit.site.name not in names:
            raise UnitError(f"{unit} lies at none of the edited sites, {', '.join(names)}")
        Unit(names[unit.site.name], unit.index)  # refuses an index that a narrower site does not have
    return whole, units
