"""Tables labelled for many concepts: every format says the same, and a third label is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import lens_steer as ls
from lens_steer.errors import ContrastError
from lens_steer.microworld.sampler import sample
from lens_steer.texts.blocks import split_blocks

ROWS: list[dict[str, Any]] = [
    {"text": f"text number {i}", "rude": i % 2, "sad": (i // 2) % 2, "score": i / 12, "author": f"a{i // 3}"}
    for i in range(12)
]
LABELS = ["rude", "sad"]


def written(directory: Path) -> list[Any]:
    frame = pd.DataFrame(ROWS)
    frame.to_csv(directory / "t.csv", index=False)
    frame.to_csv(directory / "t.tsv", index=False, sep="\t")
    frame.to_parquet(directory / "t.parquet")
    frame.to_json(directory / "t.jsonl", orient="records", lines=True)
    (directory / "t.json").write_text(json.dumps(ROWS))
    return [*sorted(directory.glob("t.*")), frame, ROWS]


def test_every_format_is_the_same_table(tmp_path: Path) -> None:
    for given in written(tmp_path):
        table = ls.read_labels(given, LABELS, groups="author", name="t")
        assert table.concepts == ("rude", "sad")
        assert table.texts == tuple(row["text"] for row in ROWS)
        assert table.labels.tolist() == [[row["rude"], row["sad"]] for row in ROWS]
        assert table.groups == tuple(row["author"] for row in ROWS)
    contrast = table.contrast("sad")
    assert contrast.source == tuple(row["text"] for row in ROWS if row["sad"])


def test_a_third_value_is_refused_by_name_unless_it_is_mapped() -> None:
    rows = [*ROWS, {**ROWS[0], "text": "one more", "sad": "unsure"}, {**ROWS[0], "text": "and one", "sad": ""}]
    with pytest.raises(ContrastError, match=r"column 'sad' holds .*'unsure' \(1 rows\).*first in row 12, 13"):
        ls.read_labels(rows, LABELS)
    table = ls.read_labels(rows, LABELS, values={1: 1, 0: 0, "unsure": None, "": None})
    assert table.labels[-2:].tolist() == [[0, -1], [0, -1]]
    with pytest.raises(ContrastError, match="maps labels to 1, 0 or None, not so 'unsure'"):
        ls.read_labels(rows, LABELS, values={1: 1, 0: 0, "unsure": 2, "": None})


def test_scores_make_labels_by_a_threshold() -> None:
    table = ls.read_labels(ROWS, ["score"], threshold=(0.3, 0.7))
    assert table.labels[:, 0].tolist() == [0 if i / 12 <= 0.3 else 1 if i / 12 >= 0.7 else -1 for i in range(12)]


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(ContrastError, match="no column 'happy'"):
        ls.read_labels(ROWS, ["rude", "happy"])
    with pytest.raises(ContrastError, match="names a column twice"):
        ls.read_labels(ROWS, ["rude", "rude"])
    with pytest.raises(ContrastError, match="one or more"):
        ls.read_labels(ROWS)
    with pytest.raises(ContrastError, match="concept 'rude' has no source"):
        ls.read_labels([{**row, "rude": 0} for row in ROWS], LABELS)
    with pytest.raises(ContrastError, match="give one of them"):
        ls.read_labels(ROWS, LABELS, threshold=0.5, values={1: 1})
    with pytest.raises(ContrastError, match="1 to the 12"):
        ls.read_labels(ROWS, LABELS, n=13)
    (tmp_path / "t.txt").write_text("a\n")
    with pytest.raises(ContrastError, match="a table of labels is a"):
        ls.read_labels(tmp_path / "t.txt", LABELS)
    with pytest.raises(ContrastError, match="cannot be read from int"):
        ls.read_labels(3, LABELS)


def test_rows_of_an_author_and_copies_of_a_text_never_cross_a_split() -> None:
    copied = [*ROWS, *({**row, "author": f"b{i}"} for i, row in enumerate(ROWS))]
    table = ls.read_labels(copied, LABELS, groups="author")
    for seed in range(20):
        held = split_blocks(np.array(table.blocks), table.labels[:, 0], 0.5, seed, fewest=1)
        for name in ("text", "author"):
            sides = pd.Series(held).groupby([row[name] for row in copied]).nunique()
            assert sides.max() == 1, name


def test_a_draw_of_rows_keeps_authors_whole() -> None:
    table = ls.read_labels(ROWS, LABELS, groups="author", n=6, seed=3)
    assert len(table.texts) == 6
    assert pd.Series(table.groups).value_counts().tolist() == [3, 3]


def test_documents_of_the_microworld_are_labelled_by_what_they_were_drawn_with() -> None:
    table = ls.read_labels("microworld", ["polite", "past"], n=60, seed=1)
    documents = sample(60, seed=1)
    assert table.texts == tuple(document.text for document in documents)
    for (polite, past), document in zip(table.labels.tolist(), documents, strict=True):
        assert polite in (-1, int(document.attributes["register"] == "polite"))
        assert past in (-1, int(document.attributes["tense"] == "past"))
    assert (table.labels >= 0).mean() > 0.9
