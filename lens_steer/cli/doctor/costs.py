"""What work costs here: seconds per forward pass and per LinEAS step, measured, and the memory for both, estimated."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import psutil
import torch

from lens_steer.cli.doctor.check import Check
from lens_steer.cli.doctor.installation import available_memory
from lens_steer.errors import LensSteerWarning
from lens_steer.host.adapter import host_of
from lens_steer.host.scope import special_ids
from lens_steer.methods.lineas import LinEAS
from lens_steer.methods.micro_batches import graph_bytes
from lens_steer.texts.contrast import ContrastSet

TEXTS, LENGTH = 4, 24
"""Texts a side, and tokens of each, that the seconds are of."""
_IN_MEMORY = 32  # texts whose graphs LinEAS keeps at once by default
_REPEATS = 3


@dataclass(frozen=True)
class Costs:
    """Seconds of one forward pass over `TEXTS` texts, and of one LinEAS step (nan: not measured); bytes of memory.

    weights:
        Of the weights.
    forward, step:
        Of a forward pass with logits, and of a step with the graphs of 32 texts, both with the weights.
    load:
        Processes that run or wait, per core, over the last minute.
    """

    forward_seconds: float
    step_seconds: float
    weights: int
    forward: int
    step: int
    available: int
    load: float


def measure_costs(model: Any) -> Costs:
    """Run a few passes and two short fits, and estimate the memory that they need."""
    host = host_of(model)
    available = available_memory(host.device)
    weights = sum(one.numel() * one.element_size() for one in {id(one): one for one in model.parameters()}.values())
    logits = 3 * 4 * TEXTS * LENGTH * host.vocabulary
    return Costs(
        forward_seconds=_forward_seconds(model),
        step_seconds=_step_seconds(model),
        weights=weights,
        forward=weights + logits,
        step=weights + _IN_MEMORY * graph_bytes(model, LENGTH),
        available=available,
        load=psutil.getloadavg()[0] / (os.cpu_count() or 1),
    )


def _forward_seconds(model: Any) -> float:
    host = host_of(model)
    ids = host.probe_ids(TEXTS * LENGTH).reshape(TEXTS, LENGTH)
    mask, seconds = torch.ones_like(ids, dtype=torch.bool), []
    with torch.no_grad():
        for _ in range(_REPEATS + 1):
            begun = perf_counter()
            host.logits(ids, mask).sum().item()  # waits for the device
            seconds.append(perf_counter() - begun)
    return min(seconds[1:])  # whatever else the machine does only adds


def _step_seconds(model: Any) -> float:
    """Return the seconds that two more steps of a dense fit take, halved: the same work around them drops out."""
    texts = _texts(model)
    contrast = ContrastSet(texts[:TEXTS], texts[TEXTS:], name="probe")
    taken = {}
    for steps in (1, 3):
        begun = perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LensSteerWarning)
            fitted = LinEAS(gamma=0.0, steps=steps, progress=False).fit(model, contrast)
        taken[fitted.provenance["steps_done"]] = perf_counter() - begun
    (fewer, less), (more, longer) = min(taken.items()), max(taken.items())
    return (longer - less) / (more - fewer) if more > fewer and longer > less else float("nan")


def _texts(model: Any) -> list[str]:
    """Return texts of random tokens, which every tokenizer can read back."""
    host = host_of(model)
    special = special_ids(host.tokenizer)
    usable = [token for token in range(min(host.vocabulary, len(host.tokenizer))) if token not in special]
    drawn = torch.randint(len(usable), (2 * TEXTS, LENGTH), generator=torch.Generator().manual_seed(0))
    return [host.tokenizer.decode([usable[place] for place in row]) for row in drawn.tolist()]


def check_costs(costs: Costs) -> Iterator[Check]:
    """Say what was measured, and whether the memory suffices."""
    of = f"{TEXTS} texts of {LENGTH} tokens"
    step = "no telling" if math.isnan(costs.step_seconds) else f"{costs.step_seconds:.3g} s"
    timed = f"{costs.forward_seconds:.3g} s a forward pass, {step} a LinEAS step ({of} a side)"
    busy = costs.load > 1.5
    if busy or math.isnan(costs.step_seconds):
        waiting = f"{costs.load:.1f} processes wait for each core"
        yield Check("speed", "note", f"{timed}; {waiting}, so that seconds say little", "ask again on an idle machine")
    else:
        yield Check("speed", "ok", timed)
    for name, bytes_needed, remedy in (
        ("memory of a forward pass", costs.forward, "give --dtype bfloat16, or a smaller model"),
        ("memory of a fit", costs.step, "fit with a smaller --batch-size, on shorter texts"),
    ):
        further = bytes_needed - costs.weights  # the weights are there already
        detail = f"about {bytes_needed / 2**30:.2f} GiB, {further / 2**30:.2f} of it beside the weights"
        if further > costs.available:
            yield Check(name, "fault", f"{detail}, and {costs.available / 2**30:.2f} GiB are available", remedy)
        else:
            yield Check(name, "ok", detail)
