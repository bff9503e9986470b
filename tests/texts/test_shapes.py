"""Data of other shapes than a text and a label per row: both sides in a row, nested columns, scores, rows in hand."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

from lens_steer.errors import ContrastError
from lens_steer.texts.contrast import ContrastSet
from lens_steer.texts.readers import read_contrast
from tests.texts.test_readers import DATA, write

SIDES = {"good": ["I love it", "so glad"], "bad": ["I hate it", "so sad"], "ask": ["one?", "two?"], "kind": ["x", "y"]}
NESTED = [{"prompt": {"text": f"he said {n}", "toxicity": n / 10}, "more": [{"text": f"go {n}"}]} for n in range(10)]
SCORED = {"text": "prompt.text", "label": "prompt.toxicity"}


def as_csv(path: Path, frame: pd.DataFrame) -> Path:
    frame.to_csv(path.with_suffix(".csv"), index=False)
    return path.with_suffix(".csv")


def as_json(path: Path, frame: pd.DataFrame) -> Path:
    return write(path.with_suffix(".json"), json.dumps(frame.to_dict("records")))


def as_jsonl(path: Path, frame: pd.DataFrame) -> Path:
    return write(path.with_suffix(".jsonl"), "".join(json.dumps(row) + "\n" for row in frame.to_dict("records")))


def as_parquet(path: Path, frame: pd.DataFrame) -> Path:
    frame.to_parquet(path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


HOLDERS: dict[str, Callable[[Path, pd.DataFrame], Any]] = {
    "csv": as_csv,
    "json": as_json,
    "jsonl": as_jsonl,
    "parquet": as_parquet,
    "DataFrame": lambda path, frame: frame,
    "DataFrame with another index": lambda path, frame: frame.set_axis(list("abcdefghij")[: len(frame)]),
    "records": lambda path, frame: frame.to_dict("records"),
    "Dataset": lambda path, frame: datasets.Dataset.from_list(frame.to_dict("records")),
}


@pytest.fixture(params=HOLDERS)
def holder(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Any], Any]:
    return lambda rows: HOLDERS[request.param](tmp_path / "t", pd.DataFrame(rows))


def test_both_sides_in_a_row_make_a_paired_contrast(holder: Callable[[Any], Any]) -> None:
    rows = holder(SIDES)
    contrast = read_contrast(rows, source_text="bad", target_text="good", name="mood")
    assert contrast == ContrastSet(SIDES["bad"], SIDES["good"], paired=True, name="mood")
    prompted = read_contrast(rows, source_text="bad", target_text="good", prompt="ask", groups="kind", chat=True)
    assert prompted.source == (("one?", "I hate it"), ("two?", "so sad"))
    assert prompted.target == (("one?", "I love it"), ("two?", "so glad"))
    assert prompted.source_groups == prompted.target_groups == ("x", "y")
    assert (prompted.paired, prompted.chat) == (True, True)
    assert not read_contrast(rows, source_text="bad", target_text="good", paired=False).paired
    one = read_contrast(rows, source_text="bad", target_text="good", n=1, seed=3)
    assert SIDES["bad"].index(one.source[0]) == SIDES["good"].index(one.target[0])


@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet", "DataFrame", "records", "Dataset"])
def test_nested_columns_and_thresholds(kind: str, tmp_path: Path) -> None:
    rows = HOLDERS[kind](tmp_path / "t", pd.DataFrame(NESTED))
    contrast = read_contrast(rows, **SCORED, threshold=0.7)
    assert contrast.source == ("he said 7", "he said 8", "he said 9")
    assert len(contrast.target) == 7
    apart = read_contrast(rows, text="more.0.text", prompt="prompt.text", label="prompt.toxicity", threshold=(0.2, 0.8))
    assert apart.source == (("he said 8", "go 8"), ("he said 9", "go 9"))
    assert apart.target == (("he said 0", "go 0"), ("he said 1", "go 1"), ("he said 2", "go 2"))


def test_a_column_with_a_dot_in_its_name_comes_first(tmp_path: Path) -> None:
    frame = pd.DataFrame({"prompt.text": ["a", "b"], "prompt": [{"text": "c"}] * 2, "label": [1, 0]})
    assert read_contrast(frame, text="prompt.text").source == ("a",)


def test_scores_of_a_csv_are_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "text,score\na,9\nb,10\nc,1e1\nd,-2\n")
    contrast = read_contrast(path, label="score", threshold=10)
    assert (contrast.source, contrast.target) == (("b", "c"), ("a", "d"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text": "prompt", "label": "prompt.toxicity", "threshold": 0.5}, r"hold 'text', 'toxicity'.*'prompt\.text'"),
        ({"text": "prompt.txet", "label": "prompt.toxicity", "threshold": 0.5}, "'prompt.txet' in row 1, .*missing"),
        ({"text": "promt.text", "label": "more", "threshold": 0.5}, "no column 'promt.text'; its columns are 'prompt'"),
        ({**SCORED, "threshold": 2}, "empties a side; the scores lie from 0 to 0.9"),
        ({**SCORED, "threshold": (0.5, 0.2)}, "low first"),
        ({**SCORED, "threshold": float("nan")}, "low first"),
        ({**SCORED, "threshold": 0.5, "source": 1}, "leave source= and target= out"),
        ({**SCORED, "label": "prompt.text", "threshold": 0.5}, "no number as 'prompt.text' in row 1, 2, 3"),
        ({**SCORED}, "for a score give threshold="),
        ({"source_text": "prompt.text"}, "not one of them"),
        ({"source_text": "prompt.text", "target_text": "prompt.text"}, "one column"),
        (
            {"source_text": "prompt.text", "target_text": "more.0.text", "label": "x"},
            "label= does not go with",
        ),
        ({"source_text": "prompt.text", "target_text": "more.0.text", "threshold": 1}, "threshold= does not go"),
        ({"source_text": "prompt.text", "target_text": "more.1.text"}, "'more.1.text' in row 1"),
        ({**SCORED, "threshold": 0.5, "paired": True}, "nothing pairs its texts"),
        ({**SCORED, "text": ("prompt.text", "more.0.text"), "prompt": "prompt.text"}, "prompts already"),
        ({**SCORED, "threshold": 0.5, "config": "x"}, "config= is for data sets"),
    ],
)
def test_what_does_not_fit_the_rows_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    path = as_jsonl(tmp_path / "t", pd.DataFrame(NESTED))
    with pytest.raises(ContrastError, match=message):
        read_contrast(path, **settings)


@pytest.mark.parametrize(
    "settings",
    [{"text": "x"}, {"label": "x"}, {"source": 1}, {"target": "x"}, {"threshold": 0.5}, {"prompt": "x"},
     {"groups": "x"}, {"source_text": "x"}],
)  # fmt: skip
def test_settings_that_mean_nothing_there_are_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    concept = write(tmp_path / "c.json", json.dumps({"sentences": {"positive": ["a"], "negative": ["b"]}}))
    lines = write(tmp_path / "a.txt", "a\n"), write(tmp_path / "b.txt", "b\n")
    for place in (concept, lines, (["a"], ["b"]), "microworld:rude"):
        with pytest.raises(ContrastError, match=f"no columns and labels: {next(iter(settings))}= does not apply"):
            read_contrast(place, **settings)
    for name in ({"paired": True}, {"config": "x"}):
        with pytest.raises(ContrastError, match="does not apply to the microworld"):
            read_contrast("microworld:rude", **name)


def test_lists_and_columns_in_hand(tmp_path: Path) -> None:
    expected = ContrastSet(["a", "b"], ["c", "d"])
    frame = pd.DataFrame({"one": ["a", "b"], "two": ["c", "d"]})
    for pair in ((["a", "b"], ["c", "d"]), [("a", "b"), ("c", "d")], (frame.one, frame.two.to_numpy())):
        assert read_contrast(pair) == expected
    assert read_contrast((["a", "b"], ["c", "d"]), paired=True).paired
    assert read_contrast(([("p", "a")], [("p", "b")])).source == (("p", "a"),)
    files = [write(tmp_path / "a.txt", "a\nb\n"), str(write(tmp_path / "b.txt", "c\nd\n"))]
    assert read_contrast(files, paired=True, name="contrast") == ContrastSet(["a", "b"], ["c", "d"], paired=True)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (3, "cannot be read from int"),
        (None, "cannot be read from NoneType"),
        ([], "cannot be read from list"),
        ((["a"], ["b"], ["c"]), "cannot be read from tuple"),
        ({"text": ["a"]}, "cannot be read from dict"),
        ((["a"], "b.txt"), "not one of each"),
        ((["a", 3], ["b"]), r"neither a text nor .*source\[1\]"),
        (pd.DataFrame({"text": [], "label": []}), "no row"),
        (pd.DataFrame({"text": ["a", None], "label": [1, 0]}), "the DataFrame, 'text' in row 1: blank"),
        (
            datasets.DatasetDict({"dev": datasets.Dataset.from_dict({"text": ["a"]})}),
            r"one of them, data\['dev'\]",
        ),
        (datasets.Dataset.from_dict({"text": ["a"], "label": [1]}).to_iterable_dataset(), "streamed"),
    ],
    ids=range(11),
)
def test_what_makes_no_contrast_is_refused(rows: Any, message: str) -> None:
    with pytest.raises(ContrastError, match=message):
        read_contrast(rows)


def test_json_by_split(tmp_path: Path) -> None:
    records = [{"text": "a", "label": 1}, {"text": "b", "label": 0}]
    path = write(tmp_path / "t.json", json.dumps({"train": records, "test": [*records, {"text": "c", "label": 1}]}))
    assert read_contrast(path) == ContrastSet(["a"], ["b"], name="t")
    assert read_contrast(f"{path}:test").source == ("a", "c")
    with pytest.raises(ContrastError, match="no list 'dev'"):
        read_contrast(f"{path}:dev")


def test_tsv_without_quotes_keeps_every_row(tmp_path: Path) -> None:
    content = 'text\tlabel\n"I am so sad\t1\nfine day\t0\nshe cried" he said\t1\n"ok"\t0\nsay "x"\t1\n'
    contrast = read_contrast(write(tmp_path / "t.tsv", content))
    assert contrast.source == ('"I am so sad', 'she cried" he said', 'say "x"')
    assert contrast.target == ("fine day", '"ok"')


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_tsv_of_a_quoting_writer_is_unquoted(tmp_path: Path, quoting: Any) -> None:
    frame = pd.DataFrame({"text": ['say "hi" twice', "plain"], "label": [1, 0]})
    frame.to_csv(tmp_path / "t.tsv", sep="\t", index=False, quoting=quoting)
    assert read_contrast(tmp_path / "t.tsv") == ContrastSet(['say "hi" twice'], ["plain"], name="t")


def test_tsv_that_reads_two_ways_is_refused(tmp_path: Path) -> None:
    """Four rows, of which texts begin and end with quotes; or two, of which one holds tabs and line breaks."""
    path = write(tmp_path / "t.tsv", 'text\tlabel\n"so sad\t1\nfine\t0\nhe said"\t1\nok\t0\n')
    with pytest.raises(ContrastError, match="row 2: quotes around a tab or a line break.*save the table as"):
        read_contrast(path)


def test_configurations_of_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(place: str, config: str | None = None) -> Any:
        if config is None:
            raise ValueError("Config name is missing. Please pick one among ['cola', 'sst2']")
        return datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": [config, "b"], "label": [1, 0]})})

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read_contrast("owner/glue", config="sst2").source == ("sst2",)
    with pytest.raises(ContrastError, match=r"'sst2'.*name one as config="):
        read_contrast("owner/glue")


@pytest.mark.real
@pytest.mark.skipif(not DATA.is_dir(), reason=f"no data at {DATA}")
class TestRealShapes:
    def test_prompted_generations(self) -> None:
        path = DATA / "rtp_gpt2" / "prompted_gens_gpt2.jsonl"
        contrast = read_contrast(path, text="prompt.text", label="prompt.toxicity", threshold=0.25)
        assert len(contrast.source) + len(contrast.target) == 100
        toxic = read_contrast(
            path, prompt="prompt.text", text="generations.0.text", label="generations.0.toxicity", threshold=(0.1, 0.2)
        )
        assert all(isinstance(row, tuple) for row in toxic.source)
        assert 0 < len(toxic.source) < len(toxic.target) < 100

    def test_questions_with_a_true_and_a_false_answer(self) -> None:
        path = DATA / "truthfulqa" / "TruthfulQA.csv"
        contrast = read_contrast(
            path, prompt="Question", source_text="Incorrect Answers", target_text="Best Answer", groups="Category"
        )
        assert contrast.paired
        assert len(contrast.source) == len(contrast.target) > 800
        assert [row[0] for row in contrast.source] == [row[0] for row in contrast.target]

    @pytest.mark.parametrize("name", ["ml_act_train", "ml_aura_train", "ibm_max_test_examples"])
    def test_comments(self, name: str) -> None:
        path = DATA / "jigsaw_samples" / f"{name}.csv"
        contrast = read_contrast(path, text="comment_text", label="toxic")
        assert sorted([*contrast.source, *contrast.target]) == sorted(pd.read_csv(path).comment_text)

    def test_sentences_that_differ_in_a_pronoun(self) -> None:
        frame = pd.read_csv(DATA / "winogender" / "all_sentences.tsv", sep="\t")
        frame["pronoun"] = frame.sentid.str.split(".").str[-2]
        contrast = read_contrast(frame, text="sentence", label="pronoun", source="female", target="male")
        assert len(contrast.source) == len(contrast.target) == 240
