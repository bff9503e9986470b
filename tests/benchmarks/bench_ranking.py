"""AUROC and average precision of every unit, alone and as `rank_experts` gives them: lens_steer against scikit-learn.

Run alone with `python -m tests.benchmarks.bench_ranking`.
"""

import json
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import TypeVar

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from threadpoolctl import threadpool_limits
from torch import Tensor

from lens_steer.activations.activations import Activations
from lens_steer.ranking.experts import rank_experts
from lens_steer.statistics.scores import auroc_and_average_precision
from tests.benchmarks.timing import THREADS, two_threads

# scikit-learn takes minutes for all units; its time is strictly proportional to their number.
REFERENCE_UNITS = 1_000
REFERENCE_CHUNK = 10

_Result = TypeVar("_Result")


def auroc_against_sklearn(*, units: int = 50_000, texts: int = 2_000, repeats: int = 3) -> dict[str, float]:
    """Time both on `units` units and `texts` texts, in alternating runs; medians in seconds, and how many times faster.

    A third of the units is continuous, a third clipped at zero, a third rounded to bfloat16. scikit-learn runs on an
    even sample of the units, columns contiguous as it likes them, and its time is scaled to all of them.
    """
    values = _activations(units, texts)
    n = texts // 2
    sample = np.linspace(0, units - 1, min(units, REFERENCE_UNITS)).astype(int)
    sampled = np.asfortranarray(values[:, sample].numpy())
    ours_seconds, reference_seconds = [], []
    threads_before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        with threadpool_limits(THREADS):
            for _ in range(repeats):
                seconds, ours = _timed(lambda: auroc_and_average_precision(values[:n], values[n:]))
                ours_seconds.append(seconds)
                seconds, reference = _timed(lambda: _scikit_learn(sampled, n))
                reference_seconds.append(seconds * units / len(sample))
    finally:
        torch.set_num_threads(threads_before)
    difference = max(float(np.abs(a[sample].numpy() - b).max()) for a, b in zip(ours, reference, strict=True))
    ours_median, reference_median = median(ours_seconds), median(reference_seconds)
    return {
        "units": units,
        "texts": texts,
        "repeats": repeats,
        "threads": THREADS,
        "seconds": ours_median,
        "sklearn_seconds": reference_median,
        "ratio": reference_median / ours_median,
        "largest_difference": difference,
    }


def ranking_against_sklearn(
    *, units: int = 9_000, texts: int = 2_000, repeats: int = 5, sample: int = 200
) -> dict[str, float]:
    """Time `rank_experts`, all columns, with half of the texts held out and without, against AUROC and precision alone.

    Alternating runs on two threads; medians in seconds, ratios of neighbouring runs. scikit-learn runs on a sample of
    the units and its time is scaled.
    """
    values = _activations(units, texts)
    n = texts // 2
    of_sample = np.linspace(0, units - 1, min(units, sample)).astype(int)
    sampled = np.asfortranarray(values[:, of_sample].numpy())
    site = "blocks.0.mlp.hook_post"
    activations = Activations.from_arrays(source={site: values[:n]}, target={site: values[n:]})
    shares: dict[str, float | None] = {"whole": None, "half": 0.5}
    seconds: dict[str, list[float]] = {"sklearn": [], **{name: [] for name in shares}}
    with two_threads(), threadpool_limits(THREADS):
        for _ in range(repeats):
            seconds["sklearn"].append(_timed(lambda: _scikit_learn(sampled, n))[0] * units / len(of_sample))
            for name, share in shares.items():
                seconds[name].append(_timed(lambda share=share: rank_experts(activations, holdout=share))[0])
    ratios = {
        f"{name}_ratio": median(a / b for a, b in zip(seconds["sklearn"], seconds[name], strict=True))
        for name in shares
    }
    return {f"{name}_seconds": median(measured) for name, measured in seconds.items()} | ratios


def _activations(units: int, texts: int) -> Tensor:
    values = torch.randn(texts, units, generator=torch.Generator().manual_seed(0))
    values[: texts // 2] += torch.linspace(-1, 1, units).roll(units // 2)
    clipped, rounded = units // 3, 2 * units // 3
    values[:, clipped:rounded].clamp_(min=0)
    values[:, rounded:] = values[:, rounded:].bfloat16().float()
    return values


def _scikit_learn(values: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Score the columns as fast as scikit-learn's functions can: AUROC several units a call, precision one by one."""
    labels = np.arange(len(values)) < n
    many_labels = np.repeat(labels[:, None], REFERENCE_CHUNK, axis=1)
    areas = []
    for start in range(0, values.shape[1], REFERENCE_CHUNK):
        chunk = values[:, start : start + REFERENCE_CHUNK]
        areas.append(np.atleast_1d(roc_auc_score(many_labels[:, : chunk.shape[1]], chunk, average=None)))
    precisions = [average_precision_score(labels, column) for column in values.T]
    return np.concatenate(areas), np.array(precisions)


def _timed(call: Callable[[], _Result]) -> tuple[float, _Result]:
    start = perf_counter()
    result = call()
    return perf_counter() - start, result


if __name__ == "__main__":
    print(json.dumps({**auroc_against_sklearn(), **ranking_against_sklearn()}, indent=2))
