"""The affine maps of activation transport, unit by unit in closed form from pooled activations (arXiv 2410.23054).

Each takes source [n, unit] and target [m, unit] and returns scale and shift, float64. A unit without spread in the
source keeps scale 1 and shift 0: what its transport would be is anyone's guess, and a slope fitted to rounding errors
reaches 1e7. Refused are fewer than two texts on a side and sides of different units.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_steer.errors import ActivationError
from lens_steer.statistics.unit_chunks import check_sides, map_units
from lens_steer.statistics.wasserstein import quantile_coupling

ScaleAndShift = tuple[Float[Tensor, " unit"], Float[Tensor, " unit"]]

# Below this share of a unit's largest value a spread is what averaging a constant over tokens in float32 leaves.
_ROUNDING = 16 * torch.finfo(torch.float32).eps


def mean_transport(source: Float[Tensor, "n unit"], target: Float[Tensor, "m unit"]) -> ScaleAndShift:
    """Move the mean: scale 1, shift mean(target) - mean(source)."""
    _require_spread(source, target)
    return _completed(torch.ones(source.shape[1]), source, target)


def gaussian_transport(source: Float[Tensor, "n unit"], target: Float[Tensor, "m unit"]) -> ScaleAndShift:
    """Move mean and standard deviation (n - 1): scale sd(target) / sd(source), the transport between two Gaussians."""
    _require_spread(source, target)
    return _completed(target.double().std(0) / source.double().std(0), source, target)


def linear_transport(source: Float[Tensor, "n unit"], target: Float[Tensor, "m unit"]) -> ScaleAndShift:
    """Move the sorted source onto the sorted target by least squares: no scale is negative.

    With unequal counts the quantile functions are matched, each pair of texts with the mass that they share.
    """
    _require_spread(source, target)
    i, j, weights = (part.numpy() for part in quantile_coupling(source.shape[0], target.shape[0]))

    def slope(
        from_values: Float[np.ndarray, "unit n"], to_values: Float[np.ndarray, "unit m"]
    ) -> Float[np.ndarray, " unit"]:
        begins = np.sort(from_values, axis=1).astype(np.float64)
        begins -= begins.mean(axis=1, keepdims=True)
        variance = np.square(begins).mean(axis=1)
        covariance = (begins[:, i] * np.sort(to_values, axis=1)[:, j]) @ weights
        return np.asarray(np.divide(covariance, variance, out=np.ones_like(variance), where=variance > 0))

    return _completed(torch.from_numpy(map_units(slope, source, target)).clamp_min(0), source, target)


def unit_quantiles(values: Float[Tensor, "row unit"], share: float) -> Float[Tensor, " unit"]:
    """Return each unit's quantile over the rows, interpolated linearly; float32 in, float32 out."""
    return torch.from_numpy(map_units(lambda chunk: np.quantile(chunk, share, axis=1), values))


def without_spread(values: Float[Tensor, "text unit"]) -> Bool[Tensor, " unit"]:
    """Which units hold one value on all texts, as far as float32 can tell."""
    low, high = values.aminmax(dim=0)
    return high - low <= _ROUNDING * torch.maximum(low.abs(), high.abs())


def _require_spread(source: Tensor, target: Tensor) -> None:
    check_sides(source, target)
    if min(len(source), len(target)) < 2:
        raise ActivationError(
            f"activation transport needs two texts a side to see a spread, not {len(source)} source and {len(target)} "
            "target: give more texts, or use CAA"
        )


def _completed(scale: Tensor, source: Tensor, target: Tensor) -> ScaleAndShift:
    """Add the shift that carries mean to mean, and leave units without spread alone."""
    source, target, scale = source.cpu(), target.cpu(), scale.cpu().double()
    shift = target.double().mean(0) - scale * source.double().mean(0)
    dead = without_spread(source)
    return torch.where(dead, 1.0, scale), torch.where(dead, 0.0, shift)
