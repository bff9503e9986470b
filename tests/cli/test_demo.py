"""`lens-steer demo`: one command, a run folder and a report; never over another one's results."""

import io
import tomllib
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import lens_steer as ls
from lens_steer import cli
from lens_steer.errors import ModelError, OutputError, SettingError

# The package's own `demo` is the command.
command = import_module("lens_steer.cli.demo")


class Installed:
    """Stands in for the entry point of a study that finds nothing much."""

    def load(self) -> Any:
        def run(model: Any, contrast: ls.ContrastSet, *, out: Path, seed: int) -> ls.Study:
            texts = pd.DataFrame({"prompt": ["the clerk"], "before": ["kicked it ."], "after": ["saw it ."]})
            study = ls.Study(frames={"texts": texts}, figures={}, summary=[f"found in {contrast}"])
            study.save(out, name="demo", model=model, contrast=contrast, seed=seed, settings={})
            return study

        return run


def demo(place: Path) -> list[str]:
    written = io.StringIO()
    with redirect_stdout(written):
        cli.app(["demo", "--out", str(place)])
    return [line for line in written.getvalue().splitlines() if line.strip()]


def test_it_runs_the_study_and_writes_the_report(
    tmp_path: Path, embedded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "find_studies", lambda: {"demo": Installed()})
    monkeypatch.setattr(command, "load_study", lambda name: {"demo": Installed()}[name].load())
    monkeypatch.setattr("lens_steer.host.load.load_model", {"microworld": embedded}.__getitem__)
    asked, read_contrast = [], ls.read_contrast

    def read_few(name: Any, *, n: Any, seed: Any) -> ls.ContrastSet:
        asked.append((name, n, seed))
        return read_contrast(name, n=8, seed=seed)

    monkeypatch.setattr("lens_steer.texts.readers.read_contrast", read_few)
    printed, report = demo(tmp_path / "demo"), tmp_path / "demo" / "report.html"
    assert asked == [("microworld:rude", 400, 0)]
    assert printed[0].startswith("found in ContrastSet('microworld:rude'")
    assert [line.split() for line in printed[1:4]] == [
        ["the", "clerk", "..."],
        ["before:", "kicked", "it", "."],
        ["after:", "saw", "it", "."],
    ]
    assert printed[-1] == f"The report is {report}"
    assert "microworld:rude" in report.read_text(encoding="utf-8")
    assert (tmp_path / "demo" / "run" / "run.json").is_file()
    with pytest.raises(OutputError, match="already holds other results"):
        demo(tmp_path / "demo")


def test_the_next_free_place_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert command._free_place() == Path("runs/demo")
    Path("runs/demo").mkdir(parents=True)
    assert command._free_place() == Path("runs/demo-2")


def test_an_installation_without_the_study_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_studies", dict)
    with pytest.raises(SettingError, match="make demo"):
        demo(tmp_path / "demo")


def test_a_model_that_was_not_fetched_is_named_with_what_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LENS_STEER_MODELS", str(tmp_path / "cache"))
    monkeypatch.setattr(command, "_find_demos", lambda: {"smollm2": Installed()})
    with pytest.raises(ModelError, match="lens-steer get smollm2"):
        cli.app(["demo", "--model", "smollm2", "--out", str(tmp_path / "demo")])
    assert not (tmp_path / "demo").exists()


def test_a_model_without_a_demo_is_refused_before_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_find_demos", lambda: {"smollm2": Installed()})
    monkeypatch.setattr("lens_steer.host.load.load_model", lambda name: pytest.fail(f"{name} was loaded"))
    with pytest.raises(SettingError, match="no demo of 'gpt2'; there is one of microworld, and of smollm2"):
        cli.app(["demo", "--model", "gpt2", "--out", str(tmp_path / "demo")])


def test_every_real_demo_has_a_function_and_a_place_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    listed = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    for name, where in listed["project"]["entry-points"][command.GROUP].items():
        module, _, function = where.partition(":")
        assert callable(getattr(import_module(module), function))
        assert command._free_place(Path(f"runs/demo-{name}")) == Path(f"runs/demo-{name}")
