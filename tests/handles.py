"""What hangs on a model: counted before and after, to see that nothing is left."""

from __future__ import annotations

from typing import Any

import torch


def handles(model: Any) -> dict[str, int]:
    """Return how many hooks each module and hook point carries; those without any are left out."""
    counts: dict[str, int] = {}
    for name, module in model.named_modules():
        own = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        lens = (getattr(module, "fwd_hooks", ()), getattr(module, "bwd_hooks", ()))
        if total := sum(map(len, own + lens)):
            counts[name] = total
    original = getattr(model, "original_model", None)
    if original is not None:
        counts |= {f"original.{name}": count for name, count in handles(original).items()}
    return counts


class Forwards:
    """Counts the forward passes of a model inside a `with`, by the first block, which every route runs."""

    def __init__(self, model: Any) -> None:
        self._block = model.blocks[0]
        self.count = 0

    def _add(self, *_: Any) -> None:
        self.count += 1

    def __enter__(self) -> Forwards:
        self._handle = self._block.register_forward_hook(self._add)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(ids)
    return out
