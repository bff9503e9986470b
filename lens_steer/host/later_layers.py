"""Running a batch from a layer on: what the blocks before it give is taken from an earlier pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from lens_steer.host.adapter import host_of

BlockOutputs = Mapping[int, Any]
"""Layer -> what its block returned: the stream [text, pos, dim], alone or first in a tuple."""


@contextmanager
def keeping_outputs(model: nn.Module, layers: Iterable[int]) -> Iterator[BlockOutputs]:
    """Keep what the blocks of these layers return in the last pass inside, without its graph."""
    kept: dict[int, Any] = {}

    def keep(layer: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            kept[layer] = _stream_mapped(output, Tensor.detach)

        return hook

    blocks = host_of(model).model.blocks
    with ExitStack() as stack:
        for layer in layers:
            stack.callback(blocks[layer].register_forward_hook(keep(layer)).remove)
        yield kept


@contextmanager
def starting_at(model: nn.Module, layer: int, outputs: BlockOutputs, rows: Int[Tensor, " row"]) -> Iterator[None]:
    """Let passes inside begin at a layer: row i goes on from row rows[i] of what the block before it returned.

    Blocks before `layer` are not run and their hooks do not fire; what stands in front of the first block still runs.
    """
    blocks = host_of(model).model.blocks
    if layer == 0:
        yield
        return
    stream = _stream_mapped(outputs[layer - 1], lambda kept: kept.index_select(0, rows.to(kept.device)))

    def skip(*_args: Any, **_kwargs: Any) -> Any:
        return stream

    skipped = [blocks[before] for before in range(layer)]
    for block in skipped:
        block.__dict__["forward"] = skip  # an instance's own comes before its class's, and leaves no trace when gone
    try:
        yield
    finally:
        for block in skipped:
            del block.__dict__["forward"]


def _stream_mapped(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a block's output with its stream changed."""
    return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)
