"""Counting what hangs on a model, so that a test can say nothing was left."""

from __future__ import annotations

from typing import Any


def handles(model: Any) -> int:
    """Return the number of hooks of every kind on all of a model's modules, TransformerLens's own lists included."""
    modules = {
        id(module): module for root in (model, getattr(model, "original_model", model)) for module in root.modules()
    }
    count = 0
    for module in modules.values():
        count += len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)
        count += len(getattr(module, "fwd_hooks", ())) + len(getattr(module, "bwd_hooks", ()))
    return count
