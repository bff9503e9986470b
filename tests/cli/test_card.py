"""`lens-steer card`, run as a user would, and the report that has the card at its head."""

from __future__ import annotations

import io
import json
import math
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lens_steer import cli
from lens_steer.errors import ArtifactError, OutputError, SettingError
from lens_steer.methods.aura import AurA
from lens_steer.report.page import write_report
from lens_steer.report.study import Study
from lens_steer.texts.readers import read_contrast
from tests.families import save_tiny, sentences


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, two text files, and an edit that was fitted on one half of them."""
    from lens_steer.host.load import load_model

    folder = tmp_path_factory.mktemp("user")
    save_tiny("gpt2", folder / "model")
    (folder / "sad.txt").write_text("\n".join(sentences(30, seed=1, must="sad")))
    (folder / "other.txt").write_text("\n".join(sentences(30, seed=2, must="happy")))
    happy = {
        "text": sentences(30, seed=3, must="happy") + sentences(30, seed=4, must="sad"),
        "label": [1] * 30 + [0] * 30,
    }
    pd.DataFrame(happy).to_csv(folder / "happy.csv", index=False)
    train, _ = read_contrast((str(folder / "sad.txt"), str(folder / "other.txt"))).split(test=0.5, seed=0)
    AurA().fit(load_model(folder / "model"), train).save(folder / "edit")
    return folder


def lens_steer(place: Path, command: str) -> str:
    written = io.StringIO()
    with redirect_stdout(written):
        cli.app([word.replace("@", str(place) + "/") for word in command.split()])
    return written.getvalue()


CARD = "card @edit --model @model --texts @sad.txt --texts @other.txt --max-new-tokens 6 --draws 2"


def test_a_page(place: Path) -> None:
    printed = lens_steer(place, f"{CARD} --items dose --items effect --words sad,gloomy --out @card.html")
    page = (place / "card.html").read_text()
    assert printed.splitlines()[0] in page.replace("&#39;", "'")
    assert "the word list" in printed or "By word list" in printed
    assert str(place) not in page
    with pytest.raises(OutputError, match="already exists"):
        lens_steer(place, f"{CARD} --out @card.html")


def test_a_run_folder_and_the_report(place: Path) -> None:
    lens_steer(place, f"{CARD} --leave-out strength downstream steerable --out @run --others @happy.csv")
    study = Study.load(place / "run")
    assert study.card is not None
    assert study.card.headline == study.summary[0]
    pd.testing.assert_frame_equal(study.card.frame, study.frames["card"], check_dtype=False)
    assert (place / "run" / "card.html").is_file()
    report = write_report(place / "report.html", place / "run").read_text()
    assert report.index('class="ls-card') < report.index("<section id=")
    assert '<a href="#run1-card">' in report
    record = json.loads((place / "run" / "card.json").read_text())
    record["items"]["effect"]["rows"][0]["value"] = "much"
    (place / "run" / "card.json").write_text(json.dumps(record))
    with pytest.raises(ArtifactError, match=r"card.json is damaged: items.effect.rows.0.value"):
        Study.load(place / "run")


def test_a_value_that_is_not_known_comes_back(place: Path) -> None:
    from lens_steer.directories import write_json
    from lens_steer.evaluation.card.card import EditCard
    from lens_steer.evaluation.card.measured import Item, Measured
    from lens_steer.evaluation.card.record import CardRecord, card_of, content_of
    from lens_steer.records import read_record

    row = Measured("cost", "perplexity", 0.5, null=0.0, of="texts")
    card = EditCard("A verdict", (("Method", "AurA"),), {"cost": Item((row,), ("A sentence.",))}, {"dose": "why"})
    write_json(place / "one.json", content_of(card))
    back = card_of(read_record(place / "one.json", CardRecord))
    assert math.isnan(back.rows[0].low)
    assert back.sentences == card.sentences
    pd.testing.assert_frame_equal(back.frame, card.frame)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ("--out @edit", OutputError, "already holds other results"),
        ("--out @c.html --budget 1.1", SettingError, "a budget is"),
        ("--out @c.html --shuffled @nowhere", SettingError, 'give "refit"'),
        ("--out @c.html --items dose --leave-out cost", SettingError, "in two ways"),
        ("--out @c.html --words ,", SettingError, "--words is empty"),
    ],
)
def test_options_are_checked_before_the_model_is_loaded(
    place: Path, options: str, error: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lens_steer.cli.options import ModelOptions

    monkeypatch.setattr(ModelOptions, "load", lambda _: pytest.fail("the model was loaded"))
    with pytest.raises(error, match=said):
        lens_steer(place, f"{CARD} {options}")
