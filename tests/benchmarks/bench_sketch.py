"""Sketches: what an update costs beside the pass, memory over sixteen times the texts, and padding of real texts."""

from __future__ import annotations

import torch

from lens_steer.activations.collect import collect
from lens_steer.activations.sketch import Sketching
from lens_steer.host.load import load_model
from lens_steer.host.model_cache import cached_model
from lens_steer.host.tokens import tokenize
from lens_steer.texts.contrast import LabelledTexts
from lens_steer.texts.readers import read_contrast
from tests.benchmarks.bench_collect import texts_of
from tests.benchmarks.memory import peak_bytes
from tests.benchmarks.timing import two_threads
from tests.conftest import SHARED
from tools.scaling import pass_of


def update_against_trunk() -> dict[str, float]:
    """Time a sketch's update at every MLP of SmolLM2 and its trunk; LensSteerError where the model is not here."""
    cached_model("smollm2")
    with two_threads():
        return pass_of("smollm2", "cpu")


def memory_in_texts(*, rows: int = 8, tokens: int = 32, few: int = 24, times: int = 16) -> dict[str, float]:
    """Measure peak memory of a sketching `collect`, of a few texts and of sixteen times as many."""
    model = load_model(SHARED / "models" / "tinytalk-neo")
    some = texts_of(model, few, tokens)
    reduce = Sketching(bins=64, pilot=few // 2)
    peaks = []
    for count in (1, times):
        texts = [f"{text} {copy}" for copy in range(count) for text in some]
        labels = torch.tensor([[place % 2] for place in range(len(texts))], dtype=torch.int8).numpy()
        table = LabelledTexts(tuple(texts), labels, ("half",))
        peaks.append(
            peak_bytes(lambda table=table: collect(model, table, batch_size=rows, reduce=reduce, progress=False))
        )
    return {"few": peaks[0], "many": peaks[1], "ratio": peaks[1] / peaks[0]}


def padding_of_tweets() -> dict[str, float]:
    """Return the share of padded tokens in the batches of the tweets that `collect` runs."""
    model = load_model(SHARED / "models" / "tinytalk-neo")
    path = SHARED / "data" / "hate_offensive_tweets" / "labeled_data.csv"
    contrast = read_contrast(path, text="tweet", label="class", source="1", target="2", n=2_000)
    masks = [batch.mask.bool() for _, batch in tokenize(model, contrast.source + contrast.target).batches()]
    padded, whole = sum(int((~mask).sum()) for mask in masks), sum(mask.numel() for mask in masks)
    return {"padded": padded, "tokens": whole, "share": padded / whole}
