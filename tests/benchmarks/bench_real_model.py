"""The same questions on SmolLM2-135M: collecting, LinEAS's gradient, generation, sites, loading, memory, bfloat16.

Run alone with `python -m tests.benchmarks.bench_real_model`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from time import perf_counter
from typing import Any

import torch

from lens_steer.evaluation.generation import generate
from lens_steer.host.adapter import host_of
from lens_steer.host.load import load_model
from lens_steer.host.sites import find_sites
from lens_steer.host.tokens import tokenize
from lens_steer.host.trunk import frozen
from lens_steer.interventions.intervention import Edit, Intervention
from lens_steer.interventions.maps import DiagonalAffine
from lens_steer.texts.contrast import ContrastSet
from tests.benchmarks.bench_collect import against_trunk, texts_of
from tests.benchmarks.bench_lineas import gradient_against_passes, loss_of, passes_of
from tests.benchmarks.memory import peak_bytes
from tests.benchmarks.timing import ratio, two_threads
from tests.conftest import SHARED
from tools.scaling import pass_of

MODEL = "smollm2"
PROMPTS = [f"Write two sentences about {who} and {what}." for who in ("Tom", "Lily", "Ben", "Mia") for what in
           ("his dog", "a boat", "the rain", "a long day")]  # fmt: skip
Row = tuple[str, str, str, str]


def rows() -> Iterator[Row]:
    """Yield (what, reach, measured, detail), one by one as they are measured."""
    start = perf_counter()
    model = load_model(MODEL, dtype=torch.float32)
    yield "load smollm2, float32, seconds", "< 5", f"{perf_counter() - start:.2f}", ""
    start = perf_counter()
    sites = find_sites(model, "mlp.hook_post")
    yield "first find_sites, smollm2, seconds", "< 1", f"{perf_counter() - start:.3f}", f"{len(sites)} sites"
    tweets = _tweets(64)
    for name, texts, size in (
        ("32 x 32 tokens", texts_of(model, 64, 32), 32),
        ("8 x 128 tokens", texts_of(model, 16, 128), 8),
        ("tweets of mixed length, 32 a batch", tweets, 32),
    ):
        got = against_trunk(model, texts, size, repeats=5)
        yield f"collect all mlp.hook_post against the trunk, smollm2, {name}", "<= 1.10", *_timed(got, "trunk")
    with two_threads():
        sketched = pass_of(MODEL, "cpu")
    detail = f"{sketched['update'] * 1e3:.0f} ms against {sketched['forward'] * 1e3:.0f} ms"
    yield (
        "sketch update at every mlp.hook_post against the trunk, smollm2",
        "<= 0.05",
        f"{sketched['share']:.3f}",
        detail,
    )
    contrast = ContrastSet(texts_of(model, 32, 24), tweets[:32])
    got = gradient_against_passes(model, contrast, repeats=4)
    yield "LinEAS gradient against trunk forward + backward, smollm2, 32 texts", "<= 1.15", *_timed(got, "bare")
    for name, (reach, got) in _generation(model).items():
        yield f"{name}, smollm2, tokens/s", reach, *_timed(got, "other")
    for name, got in _memory(model, contrast).items():
        detail = f"{got['ours'] / 2**20:.0f} MiB against {got['theirs'] / 2**20:.0f} MiB"
        yield f"peak memory of {name}, smollm2", "about 1", f"{got['ours'] / got['theirs']:.2f}", detail
    got = _bfloat16(model, texts_of(model, 32, 32))
    yield "forward in bfloat16 against float32, smollm2, 32 x 32 tokens", "< 1", *_timed(got, "float32")


def _timed(got: Mapping[str, float], other: str) -> tuple[str, str]:
    return f"{got['ratio']:.3f}", f"{got['seconds']:.2f} s against {got[f'{other}_seconds']:.2f} s"


def _tweets(count: int) -> list[str]:
    path = SHARED / "data" / "hate_offensive_tweets"
    (table,) = itertools.islice(sorted(path.glob("*.csv")), 1)
    import pandas as pd

    return pd.read_csv(table)["tweet"].head(count).tolist()


def _generation(model: Any) -> dict[str, tuple[str, dict[str, float]]]:
    """Time steered against unsteered, and unsteered against plain transformers, as shares of tokens per second."""
    sites = find_sites(model, "hook_resid_post")
    identity = Intervention(tuple(Edit(site, DiagonalAffine.identity(site.width)) for site in sites))
    tokens = 24
    tokenizer = model.tokenizer
    plain_model = model.original_model

    def unsteered() -> Any:
        return generate(model, PROMPTS, max_new_tokens=tokens, progress=False)

    def steered() -> Any:
        return generate(model, PROMPTS, max_new_tokens=tokens, progress=False, intervention=identity)

    def nucleus() -> Any:
        return generate(model, PROMPTS, max_new_tokens=tokens, top_p=0.9, progress=False)

    def transformers_own(top_p: float) -> Any:
        tokenizer.padding_side = "left"
        batch = tokenizer(PROMPTS, return_tensors="pt", padding=True)
        drawn: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": top_p}
        with torch.no_grad():
            written = plain_model.generate(**batch, max_new_tokens=tokens, **drawn)
        return tokenizer.batch_decode(written, skip_special_tokens=True)

    def against(one: Any, other: Any) -> dict[str, float]:
        share, others, ones = ratio(other, one, repeats=5)
        return {"ratio": share, "seconds": ones, "other_seconds": others}

    with two_threads():
        return {
            "steered generate against unsteered": (">= 0.95", against(steered, unsteered)),
            "generate against transformers' own": (">= 0.97", against(unsteered, lambda: transformers_own(1.0))),
            "generate, top_p .9, against transformers' own": (
                ">= 0.97",
                against(nucleus, lambda: transformers_own(0.9)),
            ),
        }


def _memory(model: Any, contrast: ContrastSet) -> dict[str, dict[str, float]]:
    """Measure the peak of a LinEAS gradient against the model's own forward and backward of the same texts."""
    with frozen(model):
        loss = loss_of(model, contrast, 32)
        zero = torch.zeros(len(loss.layout.group))
        ours, theirs = peak_bytes(lambda: loss.with_gradient(zero)), peak_bytes(passes_of(model, contrast, 1))
    return {"a LinEAS gradient against trunk forward + backward": {"ours": ours, "theirs": theirs}}


def _bfloat16(model: Any, texts: list[str]) -> dict[str, float]:
    half = load_model(MODEL, dtype=torch.bfloat16)

    def forward(of: Any) -> Any:
        batch = tokenize(of, texts).batch(range(len(texts)))

        def run() -> None:
            with torch.no_grad():
                host_of(of).trunk(batch.ids, batch.mask)

        return run

    with two_threads():
        share, seconds, full = ratio(forward(half), forward(model), repeats=5)
    return {"ratio": share, "seconds": seconds, "float32_seconds": full}


if __name__ == "__main__":
    for row in rows():
        print(*row, sep="  ", flush=True)
