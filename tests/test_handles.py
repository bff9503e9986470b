from __future__ import annotations

from typing import Any

import torch

from tests.families import make_tiny
from tests.handles import handles


def test_the_first_pass_of_a_model_adds_nothing_and_a_hook_is_counted() -> None:
    """A bridge hangs its capture hooks in its first pass: no test's count may depend on which came first."""
    fresh: Any = make_tiny("gpt2")
    before = handles(fresh)
    fresh(torch.tensor([[1, 5, 6]]))
    assert handles(fresh) == before == {}
    hook = fresh.blocks[1].ln1.register_forward_pre_hook(lambda module, inputs: None)
    assert set(handles(fresh).values()) == {1}
    hook.remove()
    assert handles(fresh) == {}
