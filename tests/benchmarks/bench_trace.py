"""Tracing a shift on tinytalk-neo against the number of layers traced, and against `downstream_shift` on the same texts.

Run alone with `python -m tests.benchmarks.bench_trace`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lens_steer.effects.downstream import downstream_shift
from lens_steer.effects.paths.trace import trace_shift
from lens_steer.host.adapter import host_of
from lens_steer.host.load import load_model
from lens_steer.host.sites import find_sites
from lens_steer.interventions.intervention import Edit, Intervention
from lens_steer.interventions.maps import DiagonalAffine
from lens_steer.texts.contrast import ContrastSet
from tests.benchmarks.bench_collect import _texts
from tests.benchmarks.memory import peak_bytes
from tests.benchmarks.timing import ratio, two_threads
from tests.conftest import SHARED

TEXTS, TOKENS = 12, 40


@contextmanager
def counted_tokens(model: Any) -> Iterator[list[int]]:
    """Note how many tokens, pads included, every pass of the trunk inside runs."""
    host, seen = host_of(model), list[int]()
    trunk = host.trunk

    def note(ids: Any, mask: Any) -> None:
        seen.append(ids.numel())
        trunk(ids, mask)

    host.trunk = note  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        del host.trunk


def traced_by_layers(*, repeats: int = 2) -> dict[int, dict[str, float]]:
    """Trace an edit of layer 0 through 1, 4 and 7 later layers: passes over the source's texts, and time.

    The time stands beside that of `downstream_shift` at every layer up to the same one.
    """
    model, contrast, edit = _setting(TEXTS)
    found = {}
    for layers in (1, 4, 7):
        upto = list(range(layers + 1))
        sites = [one.name for one in find_sites(model, "hook_resid_post", layers=upto)]

        def ours() -> object:
            return trace_shift(model, edit, contrast, site=sites[-1], progress=False)  # noqa: B023

        def theirs() -> object:
            return downstream_shift(model, edit, contrast, sites=sites, progress=False)  # noqa: B023

        with counted_tokens(model) as seen:
            ours()
        passes = (sum(seen) - 2 * TEXTS * TOKENS) / (TEXTS * TOKENS)  # but the one that reads source and target
        with two_threads():
            share, mine, other = ratio(ours, theirs, repeats=repeats)
        found[layers] = {"passes": passes, "ratio": share, "seconds": mine, "shift_seconds": other}
    return found


def traced_memory(*, texts: int = 60) -> dict[str, float]:
    """Peak memory of a trace to the last layer and of `downstream_shift` at every layer, in bytes.

    Without causes, whose passes hold no more than the first two do: the profiler takes long over many passes.
    """
    model, contrast, edit = _setting(texts)
    traced = peak_bytes(lambda: trace_shift(model, edit, contrast, causal=False, progress=False))
    return {"bytes": traced, "shift_bytes": peak_bytes(lambda: downstream_shift(model, edit, contrast, progress=False))}


def _setting(texts: int) -> tuple[Any, ContrastSet, Intervention]:
    """Return tinytalk-neo, texts of two sides, and a random shift of layer 0."""
    model = load_model(SHARED / "models" / "tinytalk-neo")
    rows = _texts(model, 2 * texts, TOKENS)
    site = find_sites(model, "blocks.0.hook_resid_post")[0]
    shift = 0.1 * torch.randn(site.width, generator=torch.Generator().manual_seed(0))
    edit = Intervention((Edit(site, DiagonalAffine(torch.ones(site.width), shift)),))
    return model, ContrastSet(rows[:texts], rows[texts:]), edit


if __name__ == "__main__":
    print(json.dumps({"layers": traced_by_layers(), "memory": traced_memory()}, indent=2))
