"""Collecting every mlp.hook_post against the bare trunk: time, and memory above the bare forward's own."""

from __future__ import annotations

from typing import Any

import torch

from lens_steer.activations.collect import collect
from lens_steer.host.adapter import host_of
from lens_steer.host.load import load_model
from lens_steer.host.tokens import tokenize
from lens_steer.texts.contrast import LabelledTexts
from tests.benchmarks.memory import peak_bytes
from tests.benchmarks.timing import ratio, two_threads
from tests.conftest import SHARED

BATCHES = 6


def texts_of(model: Any, count: int, tokens: int) -> list[str]:
    """Return texts of exactly so many tokens, BOS included."""
    story = (SHARED / "data" / "tinystories_sample" / "sample.txt").read_text(encoding="utf-8")
    story = story.replace("<|endoftext|>", "")
    ids = model.tokenizer(story[:200_000], add_special_tokens=False).input_ids
    texts, start = [], 0
    while len(texts) < count:
        text = model.tokenizer.decode(ids[start : start + tokens - 1])
        if len(tokenize(model, [text]).ids[0]) == tokens:
            texts.append(text)
        start += tokens
    return texts


def collect_against_trunk(rows: int, tokens: int, *, repeats: int = 15) -> dict[str, float]:
    """Time `collect` and the same model's trunk without hooks on the same batches, tokenising included in neither."""
    model = load_model(SHARED / "models" / "tinytalk-neo")
    texts = texts_of(model, rows * BATCHES, tokens)
    labels = torch.tensor([[place % 2] for place in range(len(texts))], dtype=torch.int8).numpy()
    table = LabelledTexts(tuple(texts), labels, ("half",))
    tokenized = tokenize(model, texts)
    batches = [batch for _, batch in tokenized.batches(rows)]
    host = host_of(model)

    def bare() -> None:
        tokenize(model, texts)
        with torch.no_grad():
            for batch in batches:
                host.trunk(batch.ids, batch.mask)

    def ours() -> None:
        collect(model, table, "mlp.hook_post", batch_size=rows, progress=False)

    with two_threads():
        share, mine, trunk = ratio(ours, bare, repeats=repeats)
    return {"ratio": share, "seconds": mine, "trunk_seconds": trunk}


def collect_memory(*, rows: int = 32, tokens: int = 128) -> dict[str, float]:
    """Measure peak memory of `collect` above the bare forward's, in bytes and against what it may take."""
    model = load_model(SHARED / "models" / "tinytalk-neo")
    texts = texts_of(model, rows * BATCHES, tokens)
    labels = torch.tensor([[place % 2] for place in range(len(texts))], dtype=torch.int8).numpy()
    table = LabelledTexts(tuple(texts), labels, ("half",))
    batch = tokenize(model, texts).batch(range(rows))
    host = host_of(model)

    def bare() -> None:
        with torch.no_grad():
            host.trunk(batch.ids, batch.mask)

    def ours() -> object:
        return collect(model, table, "mlp.hook_post", batch_size=rows, progress=False)

    ours()
    width, layers = 512, host.n_layers
    kept = len(texts) * width * layers * 4
    one_site = rows * tokens * width * 4
    above = peak_bytes(ours) - peak_bytes(bare)
    return {"bytes": above, "kept": kept, "site": one_site, "sites_above_kept": (above - kept) / one_site}
