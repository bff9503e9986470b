"""Studies on the command line: found by entry point, their settings as options, and shipped in the wheel."""

from __future__ import annotations

import inspect
import io
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import wraps
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from cyclopts import CycloptsError

import lens_steer as ls
from lens_steer import cli
from lens_steer.cli import study as study_module
from lens_steer.errors import LensSteerError, OutputError, SettingError
from tests.families import save_tiny, sentences

ROOT = Path(__file__).parents[2]
STUDIES = ("ablation", "composition", "downstream", "expert_ranking", "lineas_selection")


def one_concept(
    model: Any,
    contrast: ls.ContrastSet,
    *,
    out: str | Path | None = None,
    seed: int = 0,
    sites: str | Sequence[str] = "mlp.hook_post",
    steps: int = 7,
    doses: Sequence[float] = (0.5, 1.0),
    limit: int | None = None,
    scorer: ls.Scorer | None = None,
    prompts: Sequence[str] | None = None,
    callback: Any = None,
) -> ls.Study:
    """Say how it was called.

    Parameters
    ----------
    model, contrast, out, seed:
        As every study.
    sites, doses:
        Where, and how much.
    steps:
        How many steps
        are taken.

    """
    call = {"sites": sites, "steps": steps, "doses": doses, "limit": limit, "scorer": scorer, "prompts": prompts}
    frame = pd.DataFrame({"texts": [len(contrast.source)], "seed": [seed]})
    study = ls.Study({"call": frame}, {}, [f"{call}"])
    if out is not None:
        study.save(out, name="one_concept", model=model, contrast=contrast, seed=seed, settings={})
    return study


def many_concepts(
    model: Any, contrast: ls.ContrastSet | ls.LabelledTexts, *, out: Any = None, seed: int = 0
) -> ls.Study:
    """Say which concepts there are."""
    texts = contrast.labelled if isinstance(contrast, ls.ContrastSet) else contrast
    return ls.Study({}, {}, [", ".join(texts.concepts)])


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two studies of somebody's own package."""
    entries = [EntryPoint(name, f"{__name__}:{name}", study_module.GROUP) for name in ("one_concept", "many_concepts")]
    monkeypatch.setattr(study_module, "entry_points", lambda group: entries if group == study_module.GROUP else [])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("user")
    save_tiny("gpt2", folder / "model")
    (folder / "sad.txt").write_text("\n".join(sentences(6, seed=1, must="sad")))
    (folder / "other.txt").write_text("\n".join(sentences(6, seed=2, must="happy")))
    (folder / "prompts.txt").write_text("the dog\na cat\n")
    return folder


def run(place: Path, command: str) -> str:
    written = io.StringIO()
    with redirect_stdout(written):
        cli.app([word.replace("@", f"{place}/") for word in command.split()])
    return written.getvalue()


TEXTS = "--model @model --texts @sad.txt --texts @other.txt"


def test_the_installed_studies_are_listed(place: Path) -> None:
    lines = run(place, "study").splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["many_concepts", "one_concept"]
    assert lines[2].endswith("Say how it was called.")


def test_settings_are_options_and_the_docstring_explains_them(place: Path) -> None:
    printed = " ".join(run(place, "study one_concept --help").split())
    assert "How many steps are taken." in printed
    for option in ("--steps", "--doses", "--sites", "--limit", "--words", "--prompts", "--contrast", "--out"):
        assert option in printed
    assert "--callback" not in printed


def test_a_study_is_run_with_its_settings(place: Path) -> None:
    options = "--steps 3 --doses 0.25,2 --sites a,b --limit 4 --words sad,cry --prompts @prompts.txt --seed 5 --n 4"
    printed = run(place, f"study one_concept {TEXTS} --out @run {options}")
    expected = {
        "sites": ("a", "b"), "steps": 3, "doses": (0.25, 2.0), "limit": 4, "scorer": ls.WordList(["sad", "cry"]),
        "prompts": ["the dog", "a cat"],
    }  # fmt: skip
    assert str(expected) in printed
    assert ls.Study.load(place / "run").frames["call"].to_dict("list") == {"texts": [4], "seed": [5]}
    defaults = run(place, f"study one_concept {TEXTS} --out @plain")
    assert "'steps': 7, 'doses': (0.5, 1.0), 'limit': None, 'scorer': None, 'prompts': None" in defaults
    with pytest.raises(OutputError, match="already holds"):
        run(place, f"study one_concept {TEXTS} --out @run")


def test_several_contrasts_make_one_table(place: Path) -> None:
    both = "--contrast microworld:rude --contrast microworld:she --n 3 --model @model"
    assert "microworld:rude, microworld:she" in run(place, f"study many_concepts {both} --out @many")
    with pytest.raises(SettingError, match="one concept, not 2"):
        run(place, f"study one_concept {both} --out @many")


@pytest.mark.parametrize(
    ("command", "culprit"),
    [
        (
            f"study two_concepts {TEXTS} --out @x",
            "no study is named 'two_concepts'; there are many_concepts, one_concept",
        ),
        ("study one_concept --model @model --out @x", "--texts FILE"),
        (f"study one_concept {TEXTS} --contrast microworld:rude --out @x", "both were given"),
        (f"study one_concept {TEXTS} --doses 1,much --out @x", "--doses.*much"),
        (f"study one_concept {TEXTS} --doses , --out @x", "--doses.*nothing was given"),
        (f"study one_concept {TEXTS} --steps -1 --out @x", "--steps"),
        (f"study one_concept {TEXTS} --doses 0.5,nan --out @x", "--doses"),
    ],
)
def test_what_is_wrong_is_said(place: Path, command: str, culprit: str) -> None:
    with pytest.raises((LensSteerError, CycloptsError), match="(?s).*" + culprit.replace("(", r"\(")):
        run(place, command)
    assert not (place / "x").exists()


def test_a_file_of_its_own_ends_with_one_line_on_an_error(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["my/one_concept.py", "--model", "nowhere", "--out", str(place / "x")])
    with pytest.raises(SystemExit) as ended:
        ls.study_command(one_concept)()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("one_concept: say what to study")


def test_the_wheel_ships_the_studies(tmp_path: Path) -> None:
    if find_spec("hatchling") is None:
        pytest.skip("no wheel can be built here: pip install hatchling")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    files = set(zipfile.ZipFile(wheel).namelist())
    assert {f"analyses/{name}.py" for name in STUDIES} <= files
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    env = {**os.environ, "PYTHONPATH": str(target)}
    listed = subprocess.run(
        [sys.executable, "-m", "lens_steer.cli", "study"],
        cwd=tmp_path,
        env=env,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert set(STUDIES) <= {line.split()[0] for line in listed.splitlines()}


@pytest.mark.parametrize("entry", entry_points(group=study_module.GROUP), ids=lambda entry: entry.name)
def test_every_shipped_study_is_called_with_its_own_defaults(
    entry: EntryPoint, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command line without settings calls the study as Python without settings does."""
    study = entry.load()
    signature = inspect.signature(study)
    calls: list[dict[str, Any]] = []

    @wraps(study)
    def recorded(*given: Any, **settings: Any) -> ls.Study:
        calls.append(settings)
        return ls.Study({}, {}, ["It was called."])

    monkeypatch.setattr(study_module, "find_studies", lambda: {entry.name: entry})
    monkeypatch.setattr(study_module, "load_study", {entry.name: recorded}.__getitem__)
    monkeypatch.setattr("lens_steer.host.load.load_model", lambda *_, **__: None)
    needed = "--second microworld:she --second-n 3" if "second" in signature.parameters else ""
    run(place, f"study {entry.name} --model any --contrast microworld:rude --n 4 --out @never {needed}")
    (settings,) = calls
    defaults = {
        name: parameter.default
        for name, parameter in signature.parameters.items()
        if parameter.default is not parameter.empty
    }
    second = settings.pop("second", None)
    assert settings.pop("out") == place / "never"
    assert settings == {name: defaults[name] for name in settings}
    assert {name for name in defaults if name not in settings} <= {"out"}
    assert not needed or (second.name, len(second.source)) == ("microworld:she", 3)


def test_a_broken_study_of_another_package_is_named_and_stops_no_other(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [EntryPoint(name, f"{module}:run", study_module.GROUP) for name, module in (("broken", "nowhere"),)]
    entries.append(EntryPoint("one_concept", f"{__name__}:one_concept", study_module.GROUP))
    monkeypatch.setattr(study_module, "entry_points", lambda group: entries)
    lines = run(place, "study").splitlines()
    assert "nowhere" in lines[1]
    assert lines[2].endswith("Say how it was called.")
    with pytest.raises(SettingError, match="'broken'.*nowhere"):
        run(place, "study broken --model any --out @x")
