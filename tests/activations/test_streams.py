"""Streams of texts, and texts of sizes that nobody expects: memory stays flat, and every row is accounted for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch

from lens_steer.activations import sketch_pass
from lens_steer.activations.collect import collect
from lens_steer.activations.sketch import Sketching
from lens_steer.errors import ContrastError, LensSteerWarning, SettingError
from lens_steer.ranking.experts import rank_experts
from lens_steer.texts.contrast import ContrastSet, LabelledTexts
from lens_steer.texts.readers import read_contrast
from lens_steer.texts.seen import was_seen
from lens_steer.texts.streams import stream_texts
from tests.families import WORDS, sentences

SITE = "blocks.0.mlp.hook_post"
TEXTS = sentences(30, seed=1, must="sad") + sentences(30, seed=2, must="happy")
LABELS = [1] * 30 + [0] * 30


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("texts") / "sad.parquet"
    pd.DataFrame({"text": TEXTS, "label": LABELS, "other": ["x"] * 60}).to_parquet(place, row_group_size=7)
    return place


@pytest.mark.parametrize("window", [16, 4096])
def test_a_stream_is_sketched_as_the_same_texts_in_memory(
    tiny: Any, parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setattr(sketch_pass, "WINDOW", window)
    table = LabelledTexts(tuple(TEXTS), np.array(LABELS), ("sad",))
    settings: dict[str, Any] = {"reduce": Sketching(bins=8, pilot=10), "batch_size": 4, "progress": False}
    expected = collect(tiny, table, **settings)
    records = pd.read_parquet(parquet).to_dict("records")
    streams = [
        stream_texts(parquet),
        stream_texts(datasets.Dataset.from_list(records).to_iterable_dataset(), name="sad"),
        stream_texts(lambda: iter(records), name="sad"),
    ]
    for stream in streams:
        sketch = collect(tiny, stream, **settings)
        for site in sketch.sites:
            assert torch.equal(sketch.sketches[site].counts, expected.sketches[site].counts)
        frame, same = (rank_experts(one).frame for one in (sketch, expected))
        pd.testing.assert_frame_equal(frame, same)
        assert was_seen(TEXTS, rank_experts(sketch).seen).sum() == 30  # the half that chose
    stored = collect(tiny, streams[0], store=tmp_path, **settings)
    assert torch.equal(stored.sketches[SITE].counts, expected.sketches[SITE].counts)


def test_labels_of_streams_are_those_that_are_named(tiny: Any, tmp_path: Path) -> None:
    records = [{"text": text, "label": label} for text, label in zip(TEXTS, ["a", "b", "c"] * 20, strict=True)]
    for settings, sources in (({"source": "a"}, 20), ({"target": "a"}, 40)):
        assert int(stream_texts(lambda: records, **settings).labels.sum()) == sources  # type: ignore[arg-type]
    with pytest.raises(ContrastError, match="row 3: the label 'c' is neither side"):
        _ = stream_texts(lambda: records, source="a", target="b").labels
    with pytest.raises(ContrastError, match="row 1: the label 'a' is neither side: give source="):
        _ = stream_texts(lambda: records).labels
    with pytest.raises(ContrastError, match="different labels"):
        stream_texts(lambda: records, source="a", target="a")
    with pytest.raises(ContrastError, match=r"row 2 has no 'text'; there is 'label'"):
        _ = stream_texts(lambda: [records[0], {"label": 0}], source="a").labels
    with pytest.raises(ContrastError, match="has no text in 'text'"):
        _ = stream_texts(lambda: [{"text": " ", "label": 1}]).labels
    with pytest.raises(ContrastError, match="has no target text"):
        _ = stream_texts(lambda: records[:1], source="a").labels
    with pytest.raises(ContrastError, match="cannot be read as parquet"):
        (tmp_path / "x.parquet").write_text("x")
        _ = stream_texts(tmp_path / "x.parquet").labels
    with pytest.raises(ContrastError, match="cannot be streamed from int"):
        stream_texts(3)
    with pytest.raises(SettingError, match='give reduce="sketch"'):
        collect(tiny, stream_texts(lambda: records, source="a"))  # type: ignore[call-overload]


def test_a_label_column_with_a_third_value_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    pd.DataFrame({"text": TEXTS, "label": [2, *LABELS[1:]]}).to_csv(path, index=False)
    with pytest.raises(ContrastError, match=r"does not say which side is the source.*'2' \(1 rows\)"):
        read_contrast(path)


def test_copies_on_both_sides_of_a_split_are_one_block(tiny: Any) -> None:
    """Each text twice: whatever chooses units has none of the texts that measure them."""
    copies = ContrastSet(TEXTS[:10] * 2, TEXTS[30:40] * 2)
    sketch = collect(tiny, copies, reduce=Sketching(bins=8, pilot=4), progress=False)
    ranking = rank_experts(sketch)
    chose = was_seen(list(copies.source + copies.target), ranking.seen)
    assert chose.sum() == 20
    assert np.array_equal(chose[:10], chose[10:20])
    stream = stream_texts(
        lambda: [
            {"text": text, "label": label} for label, side in ((1, copies.source), (0, copies.target)) for text in side
        ]  # type: ignore[misc]
    )
    assert np.array_equal(np.unique(stream.blocks, return_inverse=True)[1], stream.blocks)
    assert np.array_equal(stream.blocks, collect(tiny, copies, SITE).blocks.numpy())


@pytest.mark.plain
def test_a_hundred_thousand_texts_of_one_token(tiny: Any) -> None:
    """41 words: every unit has so few values that cells hold one each, and the AUROC is exact."""
    rng = np.random.default_rng(0)
    words, labels = rng.integers(len(WORDS), size=100_000), rng.integers(2, size=100_000)
    stream = stream_texts(
        lambda: ({"text": WORDS[word], "label": label} for word, label in zip(words, labels, strict=True))
    )
    sketch = collect(tiny, stream, SITE, reduce=Sketching(bins=64, holdout=None), batch_size=4096, progress=False)
    counted = sketch.sketches[SITE]
    assert counted.texts.tolist() == [int((labels == 1).sum()), 0, int((labels == 0).sum()), 0]
    assert (counted.counts.sum(2) == counted.texts[:, None]).all()
    frame = rank_experts(sketch, holdout=None).frame
    assert frame.auroc_error.max() < 0.02
    assert (frame.auroc - 0.5).abs().max() < 0.02  # labels were drawn
    assert frame.test.eq("none").all()  # copies are one block, of which a sketch knows no interval


@pytest.mark.parametrize("reduce", [None, Sketching(bins=4, pilot=4)])
def test_a_text_of_a_hundred_thousand_characters_is_cut_with_a_warning(tiny: Any, reduce: Any) -> None:
    long = ("dog sad " * 12_500).strip()
    texts = ContrastSet([long, *TEXTS[:9]], TEXTS[30:40])
    with pytest.warns(LensSteerWarning, match=r"1 of \d+ texts were longer than the context"):
        whole = collect(tiny, texts, SITE, reduce=reduce, progress=False)
    if reduce is None:
        assert torch.isfinite(whole.values[SITE]).all()
