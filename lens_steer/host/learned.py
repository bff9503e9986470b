"""What was tried on a model in one state of its weights and switches, and the stamp that tells states apart."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Firing:
    """How a hook point fires in one forward pass: its rank among all, its tensor's shape, and how often."""

    order: int
    shape: tuple[int, ...]
    times: int


@dataclass
class Learned:
    """What was tried on a model whose stamp is `stamp`; dropped as a whole when the stamp changes.

    `canonical` maps every name of a hook point to the host's own, `firings` the latter to how it fires (None until
    that was tried), `readings` whatever was read on the probe to what it read.
    """

    stamp: Hashable
    canonical: dict[str, str]
    firings: dict[str, Firing] | None = None
    checked_sites: set[str] = field(default_factory=set)
    checked_fingerprints: set[int] = field(default_factory=set)
    readings: dict[str, Any] = field(default_factory=dict)


def weight_stamp(model: nn.Module) -> Hashable:
    """Return what changes when a model's weights, switches or processing do: cheap, and no forward pass.

    It holds compatibility mode, the config's use_* switches and, for each parameter, its place in memory, its version
    counter and the sums of one row and one column, because `parameter.data += x`, as adapters are merged, moves neither
    place nor counter. A write through `.data` that leaves the middle row and column alone is not seen.
    """
    settings: dict[str, Any] = vars(getattr(model, "cfg", model))
    switches = tuple(sorted((name, bool(value)) for name, value in settings.items() if name.startswith("use_")))
    parameters = list(getattr(model, "original_model", model).parameters())
    places = tuple((parameter.data_ptr(), _version(parameter)) for parameter in parameters)
    return bool(getattr(model, "compatibility_mode", False)), switches, places, _sums(parameters)


def count_firings(firings: dict[str, Firing]) -> Callable[..., None]:
    """Return a hook that notes in `firings`, by canonical name, how its point fires."""

    def note(tensor: Any, hook: Any) -> None:
        if isinstance(tensor, Tensor):
            first = firings.get(hook.name, Firing(len(firings), tuple(tensor.shape), 0))
            firings[hook.name] = replace(first, times=first.times + 1)

    return note


def _version(parameter: Tensor) -> int:
    # A tensor made in inference mode counts no versions.
    return 0 if parameter.is_inference() else parameter._version


def _sums(parameters: list[nn.Parameter]) -> tuple[float, ...]:
    """Sum the middle row and the middle column of every parameter; all are read from each device at once."""
    by_device: dict[torch.device, list[Tensor]] = {}
    with torch.no_grad():
        for parameter in parameters:
            if parameter.numel() and parameter.device.type != "meta":
                by_device.setdefault(parameter.device, []).extend(line.float().sum() for line in _lines(parameter))
        return tuple(value for sums in by_device.values() for value in torch.stack(sums).tolist())


def _lines(parameter: Tensor) -> Iterator[Tensor]:
    row = column = parameter.detach()
    while row.ndim > 1:
        row = row[len(row) // 2]
    while column.ndim > 1:
        column = column[..., column.shape[-1] // 2]
    yield row
    if parameter.ndim > 1:
        yield column
