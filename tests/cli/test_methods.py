"""`lens-steer fit` of every method: one name each, options refused by name, and what a fit says of itself."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest

from lens_steer import cli, methods
from lens_steer.cli.fitted import _ranges
from lens_steer.cli.methods import MethodName, MethodOptions, method_classes
from lens_steer.errors import LensSteerError, SettingError
from lens_steer.interventions.intervention import Intervention
from lens_steer.methods.fitting import Method
from lens_steer.methods.lineas import LinEAS
from lens_steer.texts.seen import unpack, was_seen
from tests.families import save_tiny, sentences

NEEDS = {
    "det0": "--k 5",
    "damp": "--k 5 --factor 0.2",
    "selfcond": "--k 5",
    "iti": "--k 2",
    "actadd": "--pair 0 --layers -1",
    "lineas": "--units 5 --steps 5",
    "loreft": "--steps 3 --rank 2",
    "caa": "--multiplier 0.5 --layers 0",
    "cast": "--base caa --layers -1 --multiplier 2",
    "dsas": "--control @control.txt",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("user")
    save_tiny("gpt2", folder / "model")
    for number, (name, must) in enumerate({"sad": "sad", "other": "happy", "control": "tree"}.items()):
        (folder / f"{name}.txt").write_text("\n".join(sentences(24, seed=number, must=must)))
    return folder


def fit(place: Path, words: str, out: str) -> str:
    given = f"fit --model @model --texts @sad.txt --texts @other.txt {words} --out @{out}"
    written = io.StringIO()
    with redirect_stdout(written):
        cli.app(given.replace("@", f"{place}/").split())
    return written.getvalue()


def test_every_method_has_one_name() -> None:
    classes = method_classes()
    assert tuple(classes) == get_args(MethodName)
    found = {
        cls
        for file in Path(methods.__path__[0]).glob("*.py")
        for cls in vars(__import__(f"lens_steer.methods.{file.stem}", fromlist=["*"])).values()
        if isinstance(cls, type) and cls.__module__.startswith("lens_steer.methods.") and hasattr(cls, "fit")
    }
    abstract = {"Method", "PoolingMethod", "ActivationTransport"}
    assert {cls.__name__ for cls in found} - abstract == {cls.__name__ for cls in classes.values()}


def test_every_option_is_taken_by_some_method() -> None:
    taken = {field.name for cls in method_classes().values() for field in fields(cls)}
    assert {field.name for field in fields(MethodOptions)} <= taken


@pytest.mark.parametrize("name", get_args(MethodName))
def test_every_method_is_fitted_and_saved(place: Path, name: str) -> None:
    printed = fit(place, f"--method {name} {NEEDS.get(name, '')}", name)
    edit = Intervention.load(place / name)
    assert edit.provenance["method"] == method_classes()[name].__name__
    assert "moves " in printed
    assert ("it bakes into plain weights" in printed) != ("it does not bake" in printed)
    if name == "repe":
        assert "was chosen among those of 2 sites" in printed
    if name in ("lineas", "loreft"):
        assert "training loss " in printed
        assert "ended because: " in printed


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--method det0", "--method det0 needs --k"),
        ("--method caa --k 3 --units 5", "--k, --units: not for --method caa, which takes --sites, --layers"),
        ("--method aura --base caa", "--base: not for --method aura"),
        ("--method cast --base caa --k 3", "--k: not for --method cast of caa"),
        (
            "--method aura --paper",
            "--paper: aura has one set of defaults; other settings of the paper's have lineas, caa, iti, repe",
        ),
        ("--method caa --paper", "found by trying all on one's own task: set --layers"),
        ("--lr 0.1", "--lr 0.1: a quasi-Newton descent has no rate"),
        ("--units 5 --gamma-share 0.1", "say the same in two ways"),
        ("--units 999999", "--units 999999, and the edited sites have"),
        ("--method dsas", "give those by --control FILE"),
        ("--method caa --control @control.txt", "--control: not for --method caa"),
        ("--method repe --pairing contrast", "set --pairing random"),
    ],
)
def test_refusals_speak_of_options_and_write_nothing(place: Path, words: str, says: str) -> None:
    with pytest.raises(LensSteerError) as raised:
        fit(place, words, "refused")
    assert says in str(raised.value)
    assert not (place / "refused").exists()


def test_the_default_is_the_librarys_and_paper_the_papers() -> None:
    assert MethodOptions().method("lineas", seed=3) == LinEAS(seed=3)
    assert MethodOptions(units=7).method("lineas", batch_size=4) == LinEAS(units=7, micro_batch=4)
    assert MethodOptions(steps=9).method("lineas", paper=True) == LinEAS.paper(steps=9)
    with pytest.raises(SettingError, match="--lr"):
        MethodOptions(lr=0.1).method("lineas")
    assert MethodOptions(lr=0.1, optimizer="adam").method("lineas") == LinEAS(lr=0.1, optimizer="adam")


def test_pairs_are_taken_where_there_are_some() -> None:
    paired: Any = MethodOptions().method("repe", paired=True)
    drawn: Any = MethodOptions().method("repe", paired=False)
    assert (paired.pairing, drawn.pairing) == ("contrast", "random")
    assert isinstance(paired, Method)


def test_runs_of_layers() -> None:
    assert _ranges([0, 2, 3, 4, 9]) == "0, 2-4, 9"


def test_a_strength_is_chosen_within_a_budget_on_texts_that_are_not_scored_again(place: Path) -> None:
    words = "--method caa --layers 0 --strengths 0.5,0.1,2 --budget kl:0.2 --words sad,cried --max-new-tokens 4"
    printed = fit(place, words, "chosen")
    edit = Intervention.load(place / "chosen")
    choice = edit.provenance["strength_choice"]
    assert choice["budget"] == "kl:0.2"
    assert [row["strength"] for row in choice["tried"]] == [0, 0.1, 0.5, 2]
    assert f"is strength {choice['chosen']:g} of the fit" in printed
    fit(place, "--method caa --layers 0", "whole")
    assert edit == Intervention.load(place / "whole").scaled(choice["chosen"])

    command = "evaluate --model @model --texts @sad.txt --texts @other.txt --intervention @chosen --words sad,cried"
    command += " --max-new-tokens 3"
    written = io.StringIO()
    with redirect_stdout(written):
        cli.app(f"{command} --out @scored".replace("@", f"{place}/").split())
    assert "scored on 6 of 12 held-out source texts" in written.getvalue()
    assert written.getvalue().count("  before: ") == 3


def test_texts_of_a_named_group_choose_the_strength_together_or_not_at_all(place: Path) -> None:
    topics = [f"topic {number // 3}" for number in range(24)]
    rows = [
        {"text": text, "label": name, "topic": f"{topic} of {name}"}
        for name in ("sad", "other")
        for text, topic in zip((place / f"{name}.txt").read_text().splitlines(), topics, strict=True)
    ]
    (place / "topics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = (
        "fit --model @model --texts @topics.jsonl --source sad --groups topic --method caa --layers 0 --strengths 0.1"
    )
    given += " --strengths 0.1 --budget kl:9 --words sad,cried --max-new-tokens 2 --out @grouped"
    cli.app(given.replace("@", f"{place}/").split())
    chose = unpack(Intervention.load(place / "grouped").provenance["strength_choice"]["seen"])
    seen: dict[str, set[bool]] = {}
    for row, known in zip(rows, was_seen([row["text"] for row in rows], chose), strict=True):
        seen.setdefault(row["topic"], set()).add(bool(known))
    assert all(len(all_or_none) == 1 for all_or_none in seen.values())
    assert 2 <= sum(True in all_or_none for all_or_none in seen.values()) <= 6


def test_a_budget_that_nothing_meets_is_said_and_the_fit_saved(place: Path) -> None:
    printed = fit(place, "--method caa --layers 0 --budget kl:0 --max-new-tokens 2 --words sad,cried", "dear")
    assert "is within the budget kl:0" in printed
    assert "saved as it was fitted" in printed
    edit = Intervention.load(place / "dear")
    assert edit.provenance["strength_choice"]["chosen"] is None
