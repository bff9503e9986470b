"""The kinds of maps that an artifact may hold, by the name under which it holds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lens_steer.errors import MapError
from lens_steer.interventions.gated_map import Gated
from lens_steer.interventions.low_rank import LowRankAffine
from lens_steer.interventions.maps import ActivationMap, Chain, DiagonalAffine
from lens_steer.interventions.project_out import ProjectOut
from lens_steer.interventions.resample import Resample

KINDS: dict[str, type[ActivationMap]] = {
    kind.__name__: kind for kind in (Chain, DiagonalAffine, Gated, LowRankAffine, ProjectOut, Resample)
}


def build_map(spec: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ActivationMap:
    """Make a map from what its `spec` and `tensors` gave; MapError for a kind this version does not know."""
    kind = spec["kind"]
    if kind not in KINDS:
        raise MapError(f"no map of kind {kind!r} is known to this version of lens_steer")
    return KINDS[kind].rebuilt(spec, tensors, build_map)
