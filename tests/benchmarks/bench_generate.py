"""Generation on tinytalk-neo: with a map at every layer, and with every mlp.hook_post collected, against plain.

Run alone with `python -m tests.benchmarks.bench_generate`.
"""

import json
from statistics import median
from time import perf_counter
from typing import Any

import torch

from lens_steer.activations.collect import collect
from lens_steer.evaluation.generation import generate
from lens_steer.host.load import load_model
from lens_steer.host.sites import find_sites
from lens_steer.interventions.intervention import Edit, Intervention
from lens_steer.interventions.maps import DiagonalAffine
from lens_steer.texts.contrast import LabelledTexts
from tests.benchmarks.timing import ratio
from tests.conftest import SHARED

THREADS = 1  # the model is too small for a second one to help, and one is timed more steadily


def steered_against_unsteered(
    *, prompts: int = 32, max_new_tokens: int = 40, repeats: int = 9
) -> dict[str, float | int | bool]:
    """Generate with a diagonal map at every hook_resid_post and without any, in alternating runs.

    The map is the identity, so that both calls write the same texts and do the same work but for the edit. Medians:
    tokens per second of either, and the ratio steered / unsteered of neighbouring runs.
    """
    model = load_model(SHARED / "models" / "tinytalk-neo")
    sites = find_sites(model, "hook_resid_post")
    intervention = Intervention(tuple(Edit(site, DiagonalAffine.identity(site.width)) for site in sites))
    texts = [f"{name} and {friend} went to" for name in _NAMES for friend in _NAMES][:prompts]
    threads_before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        warm_plain = _timed(model, texts, None, max_new_tokens)[1]
        warm_steered = _timed(model, texts, intervention, max_new_tokens)[1]
        runs: list[tuple[float, float]] = []
        for number in range(repeats):
            order = (None, intervention) if number % 2 == 0 else (intervention, None)
            seconds = {edit is not None: _timed(model, texts, edit, max_new_tokens)[0] for edit in order}
            runs.append((seconds[False], seconds[True]))
    finally:
        torch.set_num_threads(threads_before)
    tokens = sum(len(model.tokenizer(text).input_ids) for text in warm_plain)
    return {
        "prompts": prompts,
        "sites": len(sites),
        "repeats": repeats,
        "threads": THREADS,
        "unsteered_tokens_per_second": tokens / median(plain for plain, _ in runs),
        "steered_tokens_per_second": tokens / median(steered for _, steered in runs),
        "ratio": median(plain / steered for plain, steered in runs),
        "same_texts": warm_plain == warm_steered,
    }


def collected_against_plain(
    *, prompts: int = 32, max_new_tokens: int = 40, repeats: int = 9
) -> dict[str, float | bool]:
    """Generate and collect every mlp.hook_post of what is written, against generating alone, in alternating runs."""
    model = load_model(SHARED / "models" / "tinytalk-neo")
    texts = [f"{name} and {friend} went to" for name in _NAMES for friend in _NAMES][:prompts]
    labels = torch.tensor([[place % 2] for place in range(len(texts))], dtype=torch.int8).numpy()
    table = LabelledTexts(tuple(texts), labels, ("half",))

    def plain() -> list[str]:
        return generate(model, texts, max_new_tokens=max_new_tokens, progress=False)

    def collected() -> Any:
        return collect(
            model, table, "mlp.hook_post", of="generated", max_new_tokens=max_new_tokens, progress=False
        ).continuations

    threads_before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        share, ours, theirs = ratio(collected, plain, repeats=repeats)
    finally:
        torch.set_num_threads(threads_before)
    return {"ratio": share, "seconds": ours, "plain_seconds": theirs, "same_texts": plain() == list(collected())}


_NAMES = ("Tom", "Lily", "Ben", "Mia", "Sam", "Anna")


def _timed(model: Any, texts: list[str], edit: Intervention | None, max_new_tokens: int) -> tuple[float, list[str]]:
    start = perf_counter()
    continued = generate(model, texts, intervention=edit, max_new_tokens=max_new_tokens)
    return perf_counter() - start, continued


if __name__ == "__main__":
    print(json.dumps({"steered": steered_against_unsteered(), "collected": collected_against_plain()}, indent=2))
