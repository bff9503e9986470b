"""What activations must be to be ranked, and to measure a ranking of others."""

from __future__ import annotations

import numpy as np
import torch

from lens_steer.activations.activations import Activations, require_activations
from lens_steer.errors import ActivationError


def require_finite(activations: Activations) -> None:
    """Raise an ActivationError that names the first value which is not a finite number: site, unit and text.

    One too for what is no activations, and where there are no values, as with the texts of a sketch.
    """
    require_activations(activations)
    for site in activations.sites:
        values = activations.values[site]
        if values.is_meta:
            raise ActivationError(f"a sketch keeps no text's value at {site}: collect(...) without reduce=")
        if not bool(torch.isfinite(values.sum())):
            bad = (~torch.isfinite(values)).nonzero()
            if len(bad):
                text, unit = bad[0].tolist()
                raise ActivationError(
                    f"{site.name}[{unit}] is {float(values[text, unit])} for text {text}, so it has no rank: leave the "
                    f"text or the unit out ({len(bad)} such values at this site)"
                )


def matching_holdout(ranked: Activations, heldout: Activations) -> Activations:
    """Return the part of `heldout` that can measure a ranking of `ranked`; ActivationError naming what differs."""
    require_finite(heldout)
    if missing := [name for name in ranked.concepts if name not in heldout.concepts]:
        raise ActivationError(
            f"the held-out activations are not of {', '.join(map(repr, missing))} but of "
            f"{', '.join(map(repr, heldout.concepts))}: give texts of the same concept, or name the contrasts alike"
        )
    if missing := [site.name for site in ranked.sites if site not in heldout.sites]:
        raise ActivationError(f"the held-out activations lack {len(missing)} sites, first {missing[0]}: collect them")
    if heldout.pool != ranked.pool:
        raise ActivationError(
            f"the held-out activations are pooled by {heldout.pool}, the ranked ones by {ranked.pool}"
        )
    widths = {site.name: site.width for site in heldout.sites}
    for site in ranked.sites:
        if widths[site.name] != site.width:
            raise ActivationError(
                f"{site.name} has {widths[site.name]} units in the held-out activations and {site.width} in the ranked "
                "ones: they are of different models"
            )
    if shared := sum(_shared(ranked.concept(name), heldout.concept(name)) for name in ranked.concepts):
        raise ActivationError(
            f"{shared} of the held-out texts are ranked as well, and cannot measure what they choose: hold out other "
            "texts (contrast.split()), or a share (holdout=0.5)"
        )
    return heldout.at(ranked.sites)


def _shared(ranked: Activations, heldout: Activations) -> int:
    """Return how many held-out texts are among the ranked: by their hashes, else by equal values at every site."""
    if ranked.hashes is not None and heldout.hashes is not None:
        return int(np.isin(heldout.hashes[:, 0].numpy(), ranked.hashes[:, 0].numpy()).sum())
    rows = [
        {row.tobytes() for row in torch.cat([one.values[site] for site in ranked.sites], dim=1).numpy()}
        for one in (ranked, heldout)
    ]
    return len(rows[0] & rows[1])
