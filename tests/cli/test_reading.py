"""The options that say how a file becomes a contrast: those of `read_contrast`, one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lens_steer import cli
from lens_steer.cli.options import TextOptions
from lens_steer.cli.running import app_of, status_of
from lens_steer.errors import LensSteerError
from lens_steer.texts.contrast import ContrastSet


@pytest.fixture
def place(tmp_path: Path) -> Path:
    scored = pd.DataFrame({"question": list("pqrs"), "text": list("abcd"), "label": [0.1, 0.4, 0.6, 0.9]})
    scored.to_csv(tmp_path / "scored.csv", index=False)
    rows = pd.DataFrame({"question": list("pqr"), "bad": ["x", "y", "z"], "good": ["u", "v", "w"]})
    rows.to_csv(tmp_path / "rows.csv", index=False)
    (tmp_path / "one.txt").write_text("a\nb\n")
    (tmp_path / "two.txt").write_text("c\nd\n")
    concept = {"concept": "c", "sentences": {"positive": ["a", "b"], "negative": ["c", "d"]}}
    (tmp_path / "concept.json").write_text(json.dumps(concept))
    return tmp_path


def read(place: Path, words: str) -> ContrastSet:
    """Read as a command does."""
    app, found = app_of("any"), list[ContrastSet]()

    @app.default
    def command(*, texts: TextOptions = TextOptions()) -> None:
        found.append(texts.read(n=None, seed=0))

    app(words.replace("@", f"{place}/").split())
    return found[0]


CASES: dict[str, dict[str, Any]] = {
    "--texts @scored.csv --threshold 0.5": {"source": ("c", "d"), "target": ("a", "b")},
    "--texts @scored.csv --threshold 0.2 0.8": {"source": ("d",), "target": ("a",)},
    "--texts @scored.csv --threshold 0.5 --prompt question": {
        "source": (("r", "c"), ("s", "d")),
        "target": (("p", "a"), ("q", "b")),
    },
    "--texts @rows.csv --source-text bad --target-text good": {
        "source": ("x", "y", "z"),
        "target": ("u", "v", "w"),
        "paired": True,
    },
    "--texts @one.txt --texts @two.txt --paired": {"source": ("a", "b"), "target": ("c", "d"), "paired": True},
    "--texts @one.txt --texts @two.txt": {"paired": False},
    "--texts @concept.json --paired": {"source": ("a", "b"), "paired": True},
}


@pytest.mark.parametrize("words", CASES)
def test_what_is_read(place: Path, words: str) -> None:
    contrast = read(place, words)
    assert {name: getattr(contrast, name) for name in CASES[words]} == CASES[words]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--texts @scored.csv --threshold 0.1 0.5 0.9", "one score, or a low and a high one, not 3"),
        ("--texts @scored.csv --threshold 0.8 0.2", "low first"),
        ("--texts @scored.csv --threshold nan", "Must be < inf"),
        ("--texts @rows.csv --source-text bad", "not one of them"),
        (
            "--texts @one.txt --texts @two.txt --prompt p --source-text q",
            "--prompt, --source-text: two text files have",
        ),
        ("--contrast microworld:rude --paired", "--paired: microworld:rude have no columns"),
        ("--texts @scored.csv --config sst2", "--config is for data sets"),
        ("--texts @scored.csv --threshold 0.5 --paired", "nothing pairs its texts"),
    ],
)
def test_what_does_not_apply_is_refused(
    place: Path, words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = f"rank --model microworld {words} --out @out".replace("@", f"{place}/").split()
    assert status_of(cli.app, "lens-steer", given) in (2, 3)
    assert message in capsys.readouterr().err
    assert not (place / "out").exists()
    with pytest.raises((LensSteerError, Exception), match="."):
        read(place, words)
