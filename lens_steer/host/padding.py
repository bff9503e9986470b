"""How many pads a batch may have before its short texts are better run in a pass of their own."""

from __future__ import annotations

from torch import nn

from lens_steer.host.adapter import host_of

# What a pass costs beside its tokens, in tokens: fitted to times on one core of five models of widths 64 to 640, with
# gradients and without. The second number falls with the square of the width, as a wide model's tokens cost more.
_FIXED, _BY_WIDTH = 48, 1_600_000


def most_pads(model: nn.Module) -> int | None:
    """Return how many pads cost as much as another pass; None on an accelerator, where a pass outweighs any batch."""
    host = host_of(model)
    if host.device.type != "cpu":
        return None
    return _FIXED + _BY_WIDTH // int(host.model.cfg.d_model) ** 2
