"""`make bench`: every ratio that the project promises, measured in one run and written to results.csv."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

from lens_steer.errors import ModelError
from tests.benchmarks.bench_attribution import linear_against_passes, patching_against_forwards
from tests.benchmarks.bench_causal import causal_against_trunk
from tests.benchmarks.bench_closed_form import fit_seconds
from tests.benchmarks.bench_collect import collect_against_trunk, collect_memory
from tests.benchmarks.bench_forward import edited_against_unedited
from tests.benchmarks.bench_generate import collected_against_plain, steered_against_unsteered
from tests.benchmarks.bench_lineas import memory_in_texts, step_against_forward_backward
from tests.benchmarks.bench_ranking import auroc_against_sklearn, ranking_against_sklearn
from tests.benchmarks.bench_real_model import rows as real_model_rows
from tests.benchmarks.bench_scale import (
    padding_of_tweets,
    site_of_a_store,
    sketch_memory,
    store_against_model,
    two_processes_against_one,
)
from tests.benchmarks.bench_startup import startup
from tests.benchmarks.bench_trace import traced_by_layers, traced_memory
from tests.conftest import SHARED

RESULTS = Path(__file__).with_name("results.csv")
Row = tuple[str, str, str, str]


def rows() -> Iterator[Row]:
    """Yield (what, reach, measured, detail), one by one as they are measured."""
    times = startup()
    yield (
        "import lens_steer, seconds, best of 5",
        "< 0.3",
        f"{times['import']:.3f}",
        f"python alone {times['python']:.3f}",
    )
    yield "lens-steer --help, seconds, best of 5", "< 0.5", f"{times['help']:.3f}", ""
    area = auroc_against_sklearn()
    detail = f"{area['seconds']:.2f} s against {area['sklearn_seconds']:.1f} s; largest difference {area['largest_difference']:.1e}"
    yield (
        "AUROC + AP, 50,000 units x 2,000 texts, times faster than scikit-learn",
        ">= 40",
        f"{area['ratio']:.1f}",
        detail,
    )
    ranked = ranking_against_sklearn()
    for name, what in (("whole", "nothing held out"), ("half", "half held out")):
        yield (
            f"rank_experts, {what}, 9,000 units x 2,000 texts, times faster than scikit-learn's AUROC + AP",
            ">= 40",
            f"{ranked[f'{name}_ratio']:.1f}",
            f"{ranked[f'{name}_seconds']:.2f} s against {ranked['sklearn_seconds']:.1f} s",
        )
    fits = fit_seconds()
    detail = ", ".join(f"{method} {seconds:.2f}" for method, seconds in fits.items())
    yield "closed-form fits, 10,000 units x 1,000 texts, slowest, seconds", "< 2", f"{max(fits.values()):.2f}", detail
    if not SHARED.is_dir():
        print("the other figures need the real models in ../shared", file=sys.stderr)
        return
    for size, reach in (((32, 32), "<= 1.10"), ((8, 32), "<= 1.15")):
        got = collect_against_trunk(*size)
        detail = f"{got['seconds']:.3f} s against {got['trunk_seconds']:.3f} s"
        yield (
            f"collect all mlp.hook_post against the trunk, {size[0]} x {size[1]} tokens",
            reach,
            f"{got['ratio']:.3f}",
            detail,
        )
    step = step_against_forward_backward()
    detail = f"{step['seconds']:.3f} s against {step['bare_seconds']:.3f} s; a step of a ten-step descent {step['ten_steps']:.3f}"
    yield "LinEAS step against trunk forward + backward, 32 texts", "<= 1.15", f"{step['ratio']:.3f}", detail
    for sites, got in causal_against_trunk().items():
        detail = f"{got['seconds']:.3f} s against {got['trunk_seconds']:.3f} s"
        yield f"causal LinearAcT at {sites} sites against the trunk, 192 texts", "<= 2.5", f"{got['ratio']:.2f}", detail
    for (name, got), reach in zip(edited_against_unedited().items(), ("<= 1.05", "1.00"), strict=True):
        detail = f"{got['seconds'] * 1e3:.1f} ms against {got['bare_seconds'] * 1e3:.1f} ms"
        what = f"forward with maps at every hook_mlp_out, {name}, against unedited, 32 x 64 tokens"
        yield what, reach, f"{got['ratio']:.3f}", detail
    patching = patching_against_forwards()
    detail = f"{patching['seconds']:.3f} s against {patching['bare_seconds']:.3f} s, {patching['rows']} rows"
    what = "exact patching of every unit of one MLP site against bare rows from that layer on"
    yield what, "<= 1.30", f"{patching['ratio']:.3f}", detail
    for method, got in linear_against_passes().items():
        detail = f"{got['seconds']:.3f} s against {got['bare_seconds']:.3f} s"
        what = f"{method} over all units of all sites against two forwards and one backward, 16 pairs"
        yield what, "<= 1.20", f"{got['ratio']:.3f}", detail
    generation = steered_against_unsteered()
    detail = f"{generation['steered_tokens_per_second']:.0f} against {generation['unsteered_tokens_per_second']:.0f} tokens/s"
    yield "steered generate against unsteered, tokens/s", ">= 0.95", f"{generation['ratio']:.3f}", detail
    written = collected_against_plain()
    detail = f"{written['seconds']:.3f} s against {written['plain_seconds']:.3f} s"
    yield "generate with all mlp.hook_post collected against plain", "<= 1.15", f"{written['ratio']:.3f}", detail
    memory = collect_memory()
    detail = (
        f"{memory['bytes'] / 2**20:.1f} MiB above the forward's, {memory['kept'] / 2**20:.1f} MiB of it kept values"
    )
    yield (
        "peak memory of collect above kept values, in sites of one batch",
        "<= 2",
        f"{memory['sites_above_kept']:.2f}",
        detail,
    )
    traced = traced_by_layers()
    few, most = min(traced), max(traced)
    passes = {layers: got["passes"] for layers, got in traced.items()}
    slope = (passes[most] - passes[few]) / (most - few)
    detail = ", ".join(
        f"{layers} layers {got['passes']:.0f} passes, {got['seconds']:.2f} s against {got['shift_seconds']:.2f} s"
        for layers, got in traced.items()
    )
    yield "trace_shift, passes over the texts per later layer", "linear", f"{slope:.2f}", detail
    got = traced_memory()
    detail = f"{got['bytes'] / 2**20:.1f} MiB against {got['shift_bytes'] / 2**20:.1f} MiB"
    yield (
        "peak memory of trace_shift against downstream_shift, 60 + 60 texts",
        "about 1",
        f"{got['bytes'] / got['shift_bytes']:.2f}",
        detail,
    )
    yield from scale_rows()
    flat = memory_in_texts()
    detail = f"{flat['bytes_256'] / 2**20:.1f} MiB against {flat['bytes_32'] / 2**20:.1f} MiB, micro-batches of 8"
    yield "peak memory of a LinEAS gradient, 256 texts against 32", "flat", f"{flat['ratio']:.3f}", detail
    try:
        yield from real_model_rows()
    except ModelError as error:
        print(f"the figures of a real model need it: {error}", file=sys.stderr)


def scale_rows() -> Iterator[Row]:
    """Yield what runs of any size are promised."""
    got = store_against_model()
    detail = f"{got['written'] / 2**20:.1f} against {got['produced'] / 2**20:.2f} MiB/s, embedded model"
    yield "a store is written, times faster than the model produces", ">= 5", f"{got['ratio']:.0f}", detail
    got = two_processes_against_one()
    detail = f"{got['two']:.2f} s against {got['one']:.2f} s, 2,000 texts; two that share nothing {got['apart']:.2f}"
    yield "a stored pass by two processes, times faster than by one", ">= 1.7", f"{got['ratio']:.2f}", detail
    got = padding_of_tweets()
    detail = f"{got['texts']} tweets; {got['unsorted']:.1%} in the same batches without sorting"
    yield "padded tokens in length-sorted batches of tweets", "<= 5%", f"{got['padded']:.2%}", detail
    got = sketch_memory()
    detail = f"{got['many'] / 2**20:.0f} against {got['few'] / 2**20:.0f} MiB resident in all, {got['more'] / 2**20:.1f} MiB more"
    yield "peak memory of a sketch of a stream, 65,536 texts against 4,096", "<= 1.05", f"{got['ratio']:.3f}", detail
    got = site_of_a_store()
    detail = f"{got['touched'] / 2**20:.2f} MiB in memory, the site has {got['site'] / 2**20:.2f} of {got['shard'] / 2**20:.0f}"
    yield "bytes touched to read one site of a shard, against its own", "about 1", f"{got['ratio']:.3f}", detail


def main() -> None:
    """Measure, print and write."""
    done = []
    for row in rows():
        print(f"{row[0]:75} reach {row[1]:>8}  measured {row[2]:>8}  {row[3]}", flush=True)
        done.append(row)
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("what", "reach", "measured", "detail"), *done])


if __name__ == "__main__":
    main()
