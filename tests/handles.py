"""What hangs on a model: counted before and after, to see that nothing is left."""

from __future__ import annotations

from typing import Any

import torch


def handles(model: Any) -> dict[str, int]:
    """Return how many hooks each module and hook point carries; those without any are left out.

    A bridge's blocks hang capture hooks of their own in their first pass, for good. They are left out: what a
    test counts must not depend on whether another test ran the same model before it.
    """
    blocks_own = {handle.id for module in model.modules() for handle in getattr(module, "_capture_hook_handles", ())}
    return _count(model, blocks_own)


def _count(model: Any, left_out: set[int]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name, module in model.named_modules():
        own = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        lens = (getattr(module, "fwd_hooks", ()), getattr(module, "bwd_hooks", ()))
        if total := sum(len(hooks.keys() - left_out) for hooks in own) + sum(map(len, lens)):
            counts[name] = total
    original = getattr(model, "original_model", None)
    if original is not None:
        counts |= {f"original.{name}": count for name, count in _count(original, left_out).items()}
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
