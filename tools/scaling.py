"""Measure what a ranking costs, and derive from it what larger models and more texts would cost: docs/scaling.md.

`python -m tools.scaling --model smollm2` measures on this machine (a few minutes of one core) and prints the tables;
`--device cuda` measures there. Every figure that is not measured is marked, with what it is derived from.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch

from lens_steer.activations.activations import Activations
from lens_steer.host.adapter import host_of
from lens_steer.host.load import load_model
from lens_steer.host.sites import find_sites
from lens_steer.host.tokens import tokenize
from lens_steer.ranking.experts import rank_experts
from lens_steer.statistics.sketches import Grid, Sketch

BINS, GROUPS = 256, 4  # cells of a unit, and halves of both sides of one concept
CELL_BYTES, GRID_BYTES, MOMENT_BYTES = 4, 2 * 4, 24  # a count; a cut, and its padded copy; mean, squares, two extremes
TOKENS = 32  # of a text
SHARE = 0.4  # of a device's matrix rate that a forward reaches
TEXTS = (10_000, 100_000, 10_000_000)


@dataclass(frozen=True)
class Model:
    """What a model's size says about a ranking of its mlp.hook_post: parameters of the trunk, layers, units a layer."""

    name: str
    parameters: float
    layers: int
    width: int

    @property
    def units(self) -> int:
        """Units of all layers."""
        return self.layers * self.width


MODELS = (
    Model("GPT-2 XL", 1.48e9, 48, 6_400),
    Model("Gemma-2-2B", 2.02e9, 26, 9_216),
    Model("Llama-3-8B", 6.98e9, 32, 14_336),
)
RATES = {"A100 (bfloat16, 312 TFLOP/s by its maker)": 312e12, "H100 (bfloat16, 990 TFLOP/s by its maker)": 990e12}


def seconds(call: Any, *, repeats: int = 3, device: str = "cpu") -> float:
    """Return the shortest of a few runs: of this one thread's own time on a processor, which others do not lengthen."""
    clock, times = process_time if device == "cpu" else perf_counter, []
    for _ in range(repeats):
        start = clock()
        call()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(clock() - start)
    return min(times)


def growth_of_ranking(units: int = 600, texts: int = 800) -> Iterator[tuple[str, int, int, float, float]]:
    """Yield (what grew, units, texts, seconds exact, seconds from a sketch), texts and units times 1, 4 and 16."""
    for what, times in (("texts", 1), ("texts", 4), ("texts", 16), ("units", 1), ("units", 4), ("units", 16)):
        n, width = (texts * times, units) if what == "texts" else (texts, units * times)
        values = torch.randn(n, width, generator=torch.Generator().manual_seed(0))
        site = "blocks.0.mlp.hook_post"
        acts = Activations.from_arrays(source={site: values[: n // 2]}, target={site: values[n // 2 :]})
        exact = seconds(lambda acts=acts: rank_experts(acts), repeats=2)
        label, held = acts.labels[:, 0], torch.arange(n) % 2 == 0
        members = torch.stack([(label == side) & (held == half) for side in (1, 0) for half in (False, True)])
        sketch = Sketch(Grid.of(values[torch.randperm(n)[:1024]], BINS), GROUPS)

        def update(sketch: Sketch = sketch, values: torch.Tensor = values, members: torch.Tensor = members) -> None:
            for start in range(0, len(values), 32):
                sketch.add(values[start : start + 32], members[:, start : start + 32])

        yield what, width, n, exact, seconds(update, repeats=1)


def pass_of(name: str, device: str, rows: int = 32) -> dict[str, float]:
    """Time the trunk of a model on batches of short texts, and the sketch of what it gives, per batch."""
    model = load_model(name, device=device)
    host, sites = host_of(model), find_sites(model, "mlp.hook_post")
    text = "the quick brown fox jumps over the lazy dog and runs away from it again while all of the others look on as"
    batch = next(batch for _, batch in tokenize(model, [text] * rows).batches(rows)).to(host.device)
    with torch.no_grad():
        forward = seconds(lambda: host.trunk(batch.ids, batch.mask), repeats=5, device=device)
    values = torch.randn(rows, sites[0].width).to(host.device)
    sketch = Sketch(Grid.of(torch.randn(1024, sites[0].width).to(host.device), BINS), GROUPS)
    members = torch.nn.functional.one_hot(torch.arange(rows) % GROUPS, GROUPS).T.bool()
    update = seconds(lambda: sketch.add(values, members), repeats=9, device=device) * len(sites)
    tokens = batch.ids.numel()
    parameters = sum(part.numel() for key, part in model.named_parameters() if "embed" not in key)
    return {
        "texts": rows,
        "tokens": tokens,
        "forward": forward,
        "update": update,
        "share": update / forward,
        "flops": 2 * parameters * tokens / forward,
    }


def exact_bytes(model: Model, texts: int) -> float:
    """Bytes of pooled float32 values: on disk in a store, in memory without one."""
    return 4.0 * model.units * texts


def sketch_bytes(model: Model) -> float:
    """Bytes of a sketch of one concept, whatever the number of texts."""
    return model.units * ((BINS * (GROUPS * CELL_BYTES + GRID_BYTES)) + GROUPS * MOMENT_BYTES)


def forward_hours(model: Model, texts: int, rate: float) -> float:
    """Hours of the forwards: two operations per parameter and token, at `SHARE` of the device's rate."""
    return 2 * model.parameters * TOKENS * texts / (rate * SHARE) / 3600


def tables(measured: dict[str, float], growth: list[tuple[str, int, int, float, float]]) -> Iterator[str]:
    """Yield the lines of docs/scaling.md's tables."""
    yield "| grew | units | texts | exact ranking, s | ns a value | sketch of the same values, s | ns a value |"
    yield "|---|---|---|---|---|---|---|"
    for what, units, texts, exact, sketch in growth:
        nanoseconds = [f"{1e9 * time / (units * texts):.0f}" for time in (exact, sketch)]
        yield f"| {what} | {units:,} | {texts:,} | {exact:.2f} | {nanoseconds[0]} | {sketch:.2f} | {nanoseconds[1]} |"
    yield ""
    yield (
        f"Pass: {measured['texts']:.0f} texts of {measured['tokens'] / measured['texts']:.0f} tokens a batch, trunk "
        f"{measured['forward']:.3f} s, sketch update {measured['update']:.3f} s ({measured['share']:.1%}), "
        f"{measured['flops'] / 1e9:.0f} GFLOP/s."
    )
    yield ""
    largest = max(growth, key=lambda row: row[1] * row[2])
    per_value = largest[3] / (largest[1] * largest[2])
    rate, name = min((rate, name) for name, rate in RATES.items())
    yield f"Forwards on {name}, {SHARE:.0%} of it reached: extrapolated (†)."
    yield ""
    yield "| model | units | texts | store | exact ranking, one core † | sketch | forwards, 1 GPU † | 8 GPUs † |"
    yield "|---|---|---|---|---|---|---|---|"
    for model in MODELS:
        for texts in TEXTS:
            # A sort's cost a value grows with the logarithm of the texts.
            sort = per_value * model.units * texts * max(1.0, math.log(texts) / math.log(largest[2]))
            hours = forward_hours(model, texts, rate)
            cells = [model.name, f"{model.units:,}", f"{texts:,}", size(exact_bytes(model, texts)), span(sort)]
            cells += [size(sketch_bytes(model)), span(3600 * hours), span(3600 * hours / 8)]
            yield f"| {' | '.join(cells)} |"


def size(number: float) -> str:
    """Write bytes."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9)):
        if number >= scale:
            return f"{number / scale:.1f} {unit}"
    return f"{number / 1e6:.0f} MB"


def span(time: float) -> str:
    """Write seconds."""
    for unit, scale in (("d", 86400), ("h", 3600), ("min", 60)):
        if time >= 2 * scale:
            return f"{time / scale:.1f} {unit}"
    return f"{time:.0f} s"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    np.empty(30 << 20, dtype=np.uint8)
    measured = pass_of(chosen.model, chosen.device)
    for line in tables(measured, list(growth_of_ranking())):
        sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main()
