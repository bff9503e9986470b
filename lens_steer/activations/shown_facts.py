"""Facts that activations show of themselves in a notebook: where they were read, and of which model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from lens_steer.host.sites import Site

_MOST_KINDS = 4


def shown_sites(sites: Sequence[Site]) -> str:
    """Say which kinds of sites there are, at how many layers, with how many units."""
    kinds = list(dict.fromkeys(site.kind for site in sites))
    more = f" and {len(kinds) - _MOST_KINDS} more kinds" if len(kinds) > _MOST_KINDS else ""
    units, layers = sum(site.width for site in sites), len({site.layer for site in sites})
    named = ", ".join(kinds[:_MOST_KINDS]) + more
    return f"{named}: {len(sites)} at {layers} layer{'s' * (layers != 1)}, {units:,} units"


def shown_model(about: Mapping[str, Any]) -> str:
    """Name a model with its dtype; of a directory its own name alone."""
    named = PurePath(str(about.get("model", "")))
    return " ".join(filter(None, [named.name if named.is_absolute() else str(named), about.get("dtype")])) or ""
