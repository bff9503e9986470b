"""Runs of any size: how fast a store is written, what processes, padding and a stream of texts cost."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch

from lens_steer.activations.collect import collect
from lens_steer.activations.sketch import Sketching
from lens_steer.activations.sketch_pass import WINDOW
from lens_steer.activations.tensor_file import read_tensors, write_tensors
from lens_steer.host.load import load_model
from lens_steer.host.tokens import tokenize
from lens_steer.texts.contrast import ContrastSet
from lens_steer.texts.readers import read_contrast
from lens_steer.texts.streams import stream_texts
from tests.activations.processes import together
from tests.benchmarks.memory import peak_resident, touched_bytes
from tests.conftest import SHARED


def _contrast(n: int) -> ContrastSet:
    return read_contrast("microworld:rude", n=n)


def store_against_model(*, repeats: int = 3) -> dict[str, float]:
    """Bytes of values per second that a store writes, hashes and renames included, and that the model produces."""
    model, texts = load_model("microworld"), _contrast(200)
    values = collect(model, texts, progress=False)
    shard = {f"values/{site}": values.values[site] for site in values.sites}
    size = sum(value.numel() * 4 for value in shard.values())
    produced, written = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(repeats):
            produced.append(size / _seconds(lambda: collect(model, texts, progress=False)))
            place = Path(folder) / f"{number}.safetensors"
            written.append(size / _seconds(lambda place=place: write_tensors(place, shard)))  # type: ignore[misc]
    ratios = [write / produce for write, produce in zip(written, produced, strict=True)]
    return {"ratio": median(ratios), "written": median(written), "produced": median(produced)}


def two_processes_against_one(*, repeats: int = 5) -> dict[str, float]:
    """Seconds of a stored pass by one process and by two, forks of one that has the model, each with one thread.

    Beside it what the machine has to give: how many times the passes of one process two get done that share nothing.
    Two processes find each other in .1 to .7 s, however long they run; the pass takes eight.
    """
    model, texts = load_model("microworld"), _contrast(1000)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {"one": [], "two": [], "apart": []}
    try:
        for _ in range(repeats):
            for name, count in (("one", 1), ("two", 2), ("apart", 2)):
                with tempfile.TemporaryDirectory() as folder:

                    def work(number: int, name: str = name, folder: str = folder) -> Any:
                        if name == "apart":
                            del os.environ["WORLD_SIZE"]
                            folder = f"{folder}/{number}"
                        return collect(model, texts, store=folder, batch_size=32, progress=False)

                    seconds[name].append(_seconds(lambda count=count, work=work: together(work, count=count)))  # type: ignore[misc]
    finally:
        torch.set_num_threads(before)
    shared = median(one / two for one, two in zip(seconds["one"], seconds["two"], strict=True))
    apart = median(2 * one / two for one, two in zip(seconds["one"], seconds["apart"], strict=True))
    return {"ratio": shared, "apart": apart} | {name: median(seconds[name]) for name in ("one", "two")}


def padding_of_tweets() -> dict[str, float]:
    """Share of padded tokens when the tweets are batched by length, and when they are batched as they come."""
    path = SHARED / "data" / "hate_offensive_tweets" / "labeled_data.csv"
    tweets = read_contrast(path, text="tweet", label="class", source=0, target=2)
    tokens = tokenize(load_model(SHARED / "models" / "tinytalk-neo"), tweets.source + tweets.target)
    lengths = np.array(tokens.lengths)

    def padded(batches: list[list[int]]) -> float:
        run = sum(len(rows) * lengths[rows].max() for rows in batches)
        return 1 - lengths.sum() / float(run)

    batches = list(tokens.batch_rows())
    sizes = np.cumsum([len(rows) for rows in batches])[:-1]
    unsorted = [rows.tolist() for rows in np.split(np.random.default_rng(0).permutation(len(lengths)), sizes)]
    return {"padded": padded(batches), "unsorted": padded(unsorted), "texts": len(lengths)}


def sketch_memory(*, texts: int = WINDOW, times: int = 16) -> dict[str, float]:
    """Peak resident bytes of a process that sketches a stream of short texts, and of one with so many times more.

    Of a text that has passed its label and its hashes are kept.
    """
    model, rows = load_model("microworld"), _contrast(200)
    words = [*((text, 1) for text in rows.source), *((text, 0) for text in rows.target)]

    def records(count: int) -> Iterator[dict[str, Any]]:
        for number in range(count):
            text, label = words[number % len(words)]
            yield {"text": f"{' '.join(text.split()[:3])} {number}", "label": label}

    def peak(count: int) -> tuple[int, int]:
        how = Sketching(pilot=256, holdout=None)
        stream = stream_texts(lambda: records(count))
        return peak_resident(lambda: collect(model, stream, reduce=how, batch_size=64, progress=False))

    (few, few_above), (many, many_above) = peak(texts), peak(times * texts)
    return {"ratio": many / few, "few": few, "many": many, "more": many_above - few_above, "texts": texts}


def site_of_a_store() -> dict[str, float]:
    """Bytes of a shard of 64 MiB in memory after one of its 32 sites was read, against that site's."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard.safetensors"
        write_tensors(path, {f"values/{number}": torch.randn(512, 1024) for number in range(32)})
        one = read_tensors(path, ["values/7"])["values/7"]
        touched, size = touched_bytes(path), one.numel() * 4
        return {"ratio": touched / size, "touched": touched, "site": size, "shard": path.stat().st_size}


def _seconds(call: Any) -> float:
    began = perf_counter()
    call()
    return perf_counter() - began
