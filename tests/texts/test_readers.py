import json
import pickle
import subprocess
import sys
from pathlib import Path

import datasets
import pandas as pd
import pytest

from lens_steer.errors import ContrastError
from lens_steer.texts.contrast import ContrastSet
from lens_steer.texts.readers import read_contrast

DATA = Path(__file__).parents[3] / "shared" / "data"
ROWS = {"text": ["good", "bad", "fine", "NA"], "label": [1, 0, 1, 0], "kind": ["x", "y", "", "y"]}
EXPECTED = (("good", "fine"), ("bad", "NA"))


def write(path: Path, content: str) -> Path:
    path.write_bytes(content.encode())
    return path


def table(path: Path, rows=ROWS) -> Path:
    """The rows as a file of the kind that the suffix says."""
    frame = pd.DataFrame(rows)
    if path.suffix in (".csv", ".tsv"):
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        write(path, "".join(json.dumps(record) + "\n" for record in frame.to_dict("records")))
    return path


@pytest.fixture(autouse=True)
def no_hub(monkeypatch, tmp_path_factory):
    """Data sets come from local directories only, and leave nothing in the home directory."""
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"])
def test_tables_of_every_kind_say_the_same(tmp_path, suffix):
    path = table(tmp_path / f"reviews{suffix}")
    contrast = read_contrast(path)
    assert (contrast.source, contrast.target, contrast.name) == (*EXPECTED, "reviews")
    assert contrast.source_groups is None
    assert read_contrast(str(path), source=0).source == EXPECTED[1]
    grouped = read_contrast(path, groups="kind", chat=True)
    assert (grouped.source_groups, grouped.target_groups, grouped.chat) == (("x", ""), ("y", "y"), True)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("values", [[1, 0, 1, 0], [1.0, 0.0, 1.0, 0.0], ["1", "0", " 1 ", "0.0"], [True, False] * 2])
def test_labels_compare_as_text(tmp_path, suffix, values):
    path = table(tmp_path / f"t{suffix}", {**ROWS, "label": values})
    assert read_contrast(path) == ContrastSet(*EXPECTED, name="t")
    spellings = [False, "FALSE"] if isinstance(values[0], bool) else [0, 0.0, "0", [0]]
    for spelling in spellings:
        assert read_contrast(path, source=spelling) == ContrastSet(*EXPECTED, name="t").swap()


def test_labels_with_a_leading_zero_stay_apart(tmp_path):
    path = write(tmp_path / "t.csv", "text,label\na,01\nb,1\n")
    assert read_contrast(path, source="01").source == ("a",)
    assert read_contrast(path, source=1).source == ("b",)


@pytest.mark.parametrize(
    ("sides", "source", "target"),
    [
        ({"source": "bad"}, "a", "bcd"),
        ({"target": "bad"}, "bcd", "a"),
        ({"source": "bad", "target": "good"}, "a", "b"),
        ({"source": ["bad", "worse"], "target": ["good"]}, "ac", "b"),
        ({"source": ("bad", "worse")}, "ac", "bd"),
    ],
)
def test_source_and_target_choose_labels(tmp_path, sides, source, target):
    path = write(tmp_path / "t.csv", "text,label\na,bad\nb,good\nc,worse\nd,odd\n")
    contrast = read_contrast(path, **sides)
    assert (contrast.source, contrast.target) == (tuple(source), tuple(target))


@pytest.mark.parametrize(
    ("labels", "settings", "message"),
    [
        ("0120", {}, r"does not say which side.*'0' \(2 rows\), '1' \(1 rows\), '2' \(1 rows\)"),
        ("abab", {}, r"does not say which side.*'a' \(2 rows\), 'b' \(2 rows\)"),
        ("1111", {}, r"all rows have the label '1' \(4 rows\)"),
        ("1111", {"source": 1}, "need different labels"),
        ("abab", {"source": "A"}, r"no label 'A'; there is 'a' \(2 rows\)"),
        ("abab", {"source": "a", "target": ["b", "c"]}, "no label 'c'"),
        ("abab", {"source": ["a", "b"], "target": "a"}, "need different labels"),
        ("abab", {"source": []}, "need different labels"),
        ("a b ", {"source": "a"}, "no 'label' in row 3, 5"),
        ("abab", {"source": "a", "label": "side"}, "no column 'side'; its columns are 'text', 'label'"),
        ("abab", {"source": "a", "text": ("prompt", "text"), "groups": "g"}, "no column 'prompt', 'g'; its"),
    ],
)
def test_undecided_labels_and_missing_columns_are_refused(tmp_path, labels, settings, message):
    path = write(tmp_path / "t.csv", "text,label\n" + "".join(f"row {n},{label}\n" for n, label in enumerate(labels)))
    with pytest.raises(ContrastError, match=rf"t\.csv.*{message}"):
        read_contrast(path, **settings)


def test_unnamed_and_blank_labels_are_left_out_where_both_sides_are_named(tmp_path):
    path = write(tmp_path / "t.csv", "text,label\na,x\nb,y\n,z\n ,\n")
    assert read_contrast(path, source="x", target="y") == ContrastSet(["a"], ["b"], name="t")


def test_prompt_and_completion_columns(tmp_path):
    path = table(tmp_path / "t.jsonl", {"ask": ["p", ""], "say": ["a", "b"], "label": [1, 0]})
    contrast = read_contrast(path, text=("ask", "say"))
    assert (contrast.source, contrast.target) == ((("p", "a"),), (("", "b"),))
    with pytest.raises(ContrastError, match="'ask' in row 2"):
        read_contrast(path, text=("say", "ask"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "text,label\na,1\n ,0\n\n,1\n", "'text' in row 3, 5: blank"),
        ("t.jsonl", '{"text": "a", "label": 1}\n\n{"label": 0}\n', "'text' in row 3: blank, missing"),
        ("t.jsonl", '{"text": "a", "label": 1}\n{"text": 7, "label": 0}\n', "'text' in row 2: .*not a text"),
        ("t.jsonl", '{"text": "a", "label": 1}\n{"text": \n', "line 2 is not JSON"),
        ("t.jsonl", '{"text": "a", "label": 1}\n[1]\n', "JSON objects only; there is none in line 2"),
        ("t.jsonl", "", "is empty"),
        ("t.csv", "\n\n", "is empty"),
        ("t.csv", "text,label\n", "has a header and no row"),
        ("t.tsv", "text\tlabel\n\n", "has a header and no row"),
        ("t.json", "[]", "is empty"),
        ("t.json", '{"train": []}', "is empty"),
        ("t.csv", "text,label\na,1\nb,c,0\n", "cannot be read as a table.* line 3, saw 3"),
        ("t.csv", "text,label\na,b,1\nc,d,0\n", "more cells than its header; quote"),
        ("t.parquet", "text", "cannot be read as parquet"),
        ("t.json", "{", "is not JSON"),
        ("t.json", '[{"text": "a"}]', "no column 'label'.*source_text= and target_text="),
        ("t.json", '[{"text": "a"}, 3]', "JSON objects only; there is none in row 2"),
        ("t.json", '"text"', "holds neither a list of records nor a concept"),
        ("t.json", '{"dev": [{}], "test": [{}]}', "no list 'train'; it has 'dev', 'test'"),
        ("t.json", '{"sentences": {"positive": ["a"]}}', "without a list of negative sentences"),
        ("t.json", '{"sentences": {"positive": "abc", "negative": ["b"]}}', "without a list of positive sentences"),
        ("t.json", '{"sentences": {"positive": ["a", " "], "negative": ["b"]}}', "positive sentence 2"),
        ("t.txt", "a\n", r"one side of a contrast; give two, \(source_path, target_path\)"),
        ("t", "a\n", "a file without a suffix cannot be read"),
    ],
)
def test_damaged_files_are_refused_by_row(tmp_path, name, content, message):
    with pytest.raises(ContrastError, match=rf"{name}.*{message}"):
        read_contrast(write(tmp_path / name, content))


def test_csv_keeps_texts_as_written(tmp_path):
    content = '\ufefftext,label\r\n"two\nlines, ""quoted""",1\r\n007,0\r\nnull,0\r\n\r\n'
    contrast = read_contrast(write(tmp_path / "t.csv", content))
    assert (contrast.source, contrast.target) == (('two\nlines, "quoted"',), ("007", "null"))


def test_files_that_are_not_utf8_are_named(tmp_path):
    (tmp_path / "t.csv").write_bytes("text,label\na,1\ncafé,0\n".encode("latin-1"))
    with pytest.raises(ContrastError, match=r"t\.csv is not UTF-8 \(line 3: .*save it as UTF-8"):
        read_contrast(tmp_path / "t.csv")


def test_concept_file(tmp_path):
    content = {"concept": "dog", "group": "story", "sentences": {"positive": ["a dog"], "negative": ["a", "b"]}}
    path = write(tmp_path / "t.json", json.dumps(content))
    assert read_contrast(path) == ContrastSet(["a dog"], ["a", "b"], name="dog")
    with pytest.raises(ContrastError, match=r"t\.json.*has no columns.*call \.swap"):
        read_contrast(path, source="negative")


def test_pair_of_text_files(tmp_path):
    source = write(tmp_path / "bad.txt", "one\r\ntwo\u2028still two")
    target = write(tmp_path / "good.txt", "\ufeffthree\n")
    assert read_contrast((source, str(target))) == ContrastSet(
        ["one", "two\u2028still two"], ["three"], name="bad vs good"
    )
    with pytest.raises(ContrastError, match=r"blank\.txt, line 2, 4: blank"):
        read_contrast((source, write(tmp_path / "blank.txt", "a\n\nb\n\n")))
    with pytest.raises(ContrastError, match=r"none\.txt cannot be read: No such file"):
        read_contrast((source, tmp_path / "none.txt"))
    with pytest.raises(ContrastError, match="one text per line"):
        read_contrast((source, table(tmp_path / "t.csv")))


def test_n_draws_per_side(tmp_path):
    path = table(tmp_path / "t.csv", {"text": [f"row {n}" for n in range(40)], "label": [0, 1] * 20})
    assert read_contrast(path, n=5, seed=3) == read_contrast(path).subsample(5, seed=3)
    with pytest.raises(ContrastError, match=r"at least 21 .* 20 source, 20 target"):
        read_contrast(path, n=21)


def test_nothing_is_unpickled(tmp_path):
    (tmp_path / "t.pkl").write_bytes(pickle.dumps(ROWS))
    for name in (tmp_path / "t.pkl", "missing.PT", "missing.pickle"):
        with pytest.raises(ContrastError, match="can run code when opened"):
            read_contrast(name)


def test_microworld_contrast_is_drawn_by_name(monkeypatch):
    contrasts = pytest.importorskip("lens_steer.microworld.contrasts")
    monkeypatch.setattr(contrasts, "named_contrast", lambda name, *, n, seed: ([f"{name} {n}"], [f"seed {seed}"]))
    contrast = read_contrast("microworld:sentiment", n=7, seed=2, chat=True)
    assert contrast == ContrastSet(["sentiment 7"], ["seed 2"], name="microworld:sentiment", chat=True)
    with pytest.raises(ContrastError, match="the microworld has no columns"):
        read_contrast("microworld:sentiment", label="class")


def test_saved_data_sets(tmp_path):
    rows = datasets.Dataset.from_dict(ROWS)
    rows.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": rows, "test": rows.select([2, 1])}).save_to_disk(str(tmp_path / "two"))
    for name in ("one", "two", "two:train"):
        assert (read_contrast(f"{tmp_path}/{name}").source, read_contrast(f"{tmp_path}/{name}").target) == EXPECTED
    test = read_contrast(f"{tmp_path}/two:test", groups="kind")
    assert (test.source, test.target, test.target_groups) == (("fine",), ("bad",), ("y",))
    with pytest.raises(ContrastError, match="no split 'dev'; there is 'train', 'test'"):
        read_contrast(f"{tmp_path}/two:dev")
    with pytest.raises(ContrastError, match="no column 'sentence'; its columns are 'text', 'label', 'kind'"):
        read_contrast(tmp_path / "two", text="sentence")


def test_directory_of_parquet_files(tmp_path):
    for split in ("train", "test"):
        table(
            tmp_path / f"{split}-00000-of-00001.parquet", ROWS if split == "train" else {"text": "ab", "label": [1, 0]}
        )
    assert (read_contrast(tmp_path).source, read_contrast(tmp_path).target) == EXPECTED
    (tmp_path / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(ContrastError, match="no split 'test'; there is 'train'"):
        read_contrast(f"{tmp_path}:test")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.csv", "no such file or directory: missing.csv"),
        ("/no/such/place", "no such file or directory"),
        ("no/such/data/set", "no such file or directory"),
        ("owner/missing:test", "no such file, and no such data set within reach"),
    ],
)
def test_what_does_not_exist_is_said_so(name, message):
    with pytest.raises(ContrastError, match=message):
        read_contrast(name)


def test_empty_directory_is_refused(tmp_path):
    with pytest.raises(ContrastError, match="this data set cannot be read"):
        read_contrast(tmp_path)


def test_import_is_light():
    program = "import sys, lens_steer.texts.readers; print({'pandas', 'datasets', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.real
@pytest.mark.skipif(not DATA.is_dir(), reason=f"no data at {DATA}")
class TestRealFiles:
    @pytest.mark.parametrize(
        ("path", "name", "sizes"),
        [
            ("story_concepts/dog.json", "dog", (165, 400)),
            ("story_concepts/anger.json", "anger", (41, 400)),
            ("concepts_selfcond/man.json", "man-1_18_00__", (700, 1000)),
        ],
    )
    def test_concepts(self, path, name, sizes):
        contrast = read_contrast(DATA / path)
        assert (contrast.name, len(contrast.source), len(contrast.target)) == (name, *sizes)

    def test_tweets_have_three_classes(self):
        path = DATA / "hate_offensive_tweets" / "labeled_data.csv"
        with pytest.raises(ContrastError, match=r"'1' \(19190 rows\), '2' \(4163 rows\), '0' \(1430 rows\)"):
            read_contrast(path, text="tweet", label="class")
        assert len(read_contrast(path, text="tweet", label="class", source=[0, 1]).source) == 1430 + 19190
        contrast = read_contrast(path, text="tweet", label="class", source=0, target=2, groups="count", n=50)
        assert (len(contrast.source), len(contrast.target)) == (50, 50)
        assert set(contrast.source_groups) <= {"3", "4", "5", "6", "7", "8", "9"}

    def test_reviews_split_without_shared_texts(self):
        contrast = read_contrast(DATA / "sst2" / "train.csv", text="sentence")
        assert (len(contrast.source), len(contrast.target)) == (3610, 3310)
        train, test = contrast.split()
        assert not {*train.source, *train.target} & {*test.source, *test.target}
        assert (len(test.source), len(test.target)) == (1805, 1655)
