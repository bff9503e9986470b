"""What all commands share: --json, --force, again, resumption after a kill, exit statuses, examples, completion."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lens_steer import cli, errors
from lens_steer.cli.again import changed
from lens_steer.cli.exit_status import CAUSES, cause_of
from lens_steer.cli.json_result import JsonResult, rows_of
from lens_steer.cli.reporting import as_json, tell
from lens_steer.cli.running import status_of
from lens_steer.directories import new_directory, replacing
from lens_steer.errors import LensSteerError, OutputError
from lens_steer.interventions.intervention import Intervention
from lens_steer.methods import descent
from tests.cli.test_study import installed  # noqa: F401 (the two studies of somebody's own package)
from tests.families import save_tiny, sentences

TEXTS = "--model @model --texts @sad.txt --texts @other.txt"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model directory, two text files, and what `rank` and `fit` made of them."""
    folder = tmp_path_factory.mktemp("user")
    save_tiny("gpt2", folder / "model")
    for number, (name, must) in enumerate({"sad": "sad", "other": "happy"}.items()):
        (folder / f"{name}.txt").write_text("\n".join(sentences(48, seed=number, must=must)))
    return folder


@pytest.fixture
def typed(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Type a command as a user does; returns its status, what stands on stdout and what on stderr."""

    def run(command: str) -> tuple[int, str, str]:
        words = command.replace("@", f"{place}/").split()
        monkeypatch.setattr(sys, "argv", ["/usr/bin/lens-steer", *words])
        monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)  # not python -m pytest
        capsys.readouterr()
        status = status_of(cli.app, "lens-steer", words)
        return status, *capsys.readouterr()

    return run


def result_of(stdout: str) -> JsonResult:
    return JsonResult.model_validate_json(stdout, strict=True)


def test_json_is_the_whole_of_stdout_and_holds_the_frames(place: Path, typed: Callable[..., Any]) -> None:
    status, out, err = typed(f"rank {TEXTS} --out @rank --top 3 --json")
    result = result_of(out)
    assert status == result.status == 0
    assert result.error is None
    assert result.command == "rank"
    experts = pd.read_parquet(place / "rank" / "tables" / "experts.parquet").head(3)
    for row, expected in zip(result.tables["experts"], experts.to_dict("records"), strict=True):
        assert row["heldout_auroc"] == expected["heldout_auroc"]
        assert row["unit"] == expected["unit"]
    assert result.verdicts["best unit"] in ("higher", "lower", "not shown")
    assert result.findings[0].startswith("The best expert unit")
    assert result.written == [f"{place}/rank"]
    assert "units differ between source and target" in err  # what is printed without --json

    status, out, _ = typed(f"fit {TEXTS} --steps 3 --gamma-share 0.3 --out @edit --json")
    result = result_of(out)
    kept = Intervention.load(place / "edit").support()["kept"].sum()
    assert sum(row["kept"] for row in result.tables["support"]) == kept
    assert result.values["steps_done"] == 3
    assert any("training loss" in finding for finding in result.findings)

    status, out, _ = typed(f"evaluate {TEXTS} --intervention @edit --words sad --max-new-tokens 2 --out @effect --json")
    result = result_of(out)
    assert set(result.verdicts) == {"effect", "cost"}
    assert "texts" not in result.tables
    low = pd.read_csv(place / "effect" / "scores.csv")["low"].tolist()
    assert [row["low"] for row in result.tables["scores"]] == pytest.approx(low, nan_ok=True)


def test_nan_is_null_and_nothing_told_is_empty() -> None:
    frame = pd.DataFrame({"a": [1.5, math.nan, math.inf], "b": ["x", None, "z"], "c": pd.array([1, None, 3], "Int64")})
    assert rows_of(frame) == [
        {"a": 1.5, "b": "x", "c": 1},
        {"a": None, "b": None, "c": None},
        {"a": None, "b": "z", "c": 3},
    ]


def test_what_fails_is_json_too(capsys: pytest.CaptureFixture[str], typed: Callable[..., Any]) -> None:
    for command, expected in (
        (f"rank {TEXTS} --n 99 --out @no --json", 2),
        (f"rank {TEXTS} --bogus --json", 2),
        ("lint --texts @sad.txt --texts @missing.txt --json", 3),
        ("sites --model @nowhere --json", 4),
        (f"rank {TEXTS} --out @model --json", 5),
    ):
        status, out, err = typed(command)
        result = result_of(out)
        assert status == result.status == expected, command
        assert result.error is not None
        assert result.error.message in " ".join(err.split())
    with pytest.raises(ZeroDivisionError), as_json("x"):
        tell(findings=["first"])
        raise ZeroDivisionError
    broken = result_of(capsys.readouterr().out)
    assert (broken.status, broken.findings) == (1, ["first"])


def test_every_error_has_one_cause_and_help_tells_all(typed: Callable[..., Any]) -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LensSteerError)]
    statuses = {kind.__name__: cause_of(kind("why")).status for kind in kinds}
    assert [name for name, status in statuses.items() if status == 1] == ["LensSteerError"]
    assert len({cause.status for cause in CAUSES}) == len(CAUSES)
    _, out, _ = typed("fit --help")
    for cause in CAUSES:
        assert re.search(rf"\b{cause.status}  {re.escape(cause.name[:20])}", out)


def commands() -> list[str]:
    return [name for name in cli.app if not name.startswith("-") and name != "study"]


def test_changes_take_the_place_of_options() -> None:
    words = ["unit", "a[1]", "--texts", "x", "--texts=y", "--seed", "-3", "--paired", "--out", "old"]
    assert changed(words, ["--texts=z", "--out=new"]) == [
        "unit",
        "a[1]",
        "--seed",
        "-3",
        "--paired",
        "--texts=z",
        "--out=new",
    ]


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("command", [*commands(), "--install-completion", "study one_concept"])
def test_every_help_has_an_example(command: str, typed: Callable[..., Any]) -> None:
    """Of options that the command has."""
    status, out, _ = typed(f"{command} --help")
    examples = re.findall(r"Example: lens-steer (.+?)\n(?:\n|\w)", out, re.DOTALL)
    assert status == 0
    assert examples, out
    options = set(re.findall(r"--[a-z][\w-]*", out))
    for example in examples:
        assert example.split()[0] == command.split()[0]
        named = set(re.findall(r"(?<!\S)--[a-z][\w-]*", example))
        assert command == "again" or named <= options
    if command not in ("again", "schema", "--install-completion"):
        assert "--json" in options


def test_completion_knows_the_commands() -> None:
    script = cli.app.generate_completion(shell="bash")
    assert "rank" in script
    assert "--gamma-share" in script


def test_force_replaces_a_result_when_its_successor_is_complete(place: Path, typed: Callable[..., Any]) -> None:
    assert typed(f"fit {TEXTS} --method aura --out @forced")[0] == 0
    before = (place / "forced" / "intervention.json").read_bytes()
    assert typed(f"fit {TEXTS} --method aura --pool mean --out @forced")[0] == 5
    # A fit that fails leaves the old result as it was.
    assert typed(f"fit {TEXTS} --method aura --sites nowhere --out @forced --force")[0] == 4
    assert (place / "forced" / "intervention.json").read_bytes() == before
    assert typed(f"fit {TEXTS} --method aura --pool mean --out @forced --force")[0] == 0
    assert Intervention.load(place / "forced").provenance["settings"]["pool"] == "mean"
    status, _, err = typed(f"fit {TEXTS} --method aura --out @model --force")
    assert status == 5
    assert "no result that lens_steer wrote" in err
    assert (place / "model" / "config.json").is_file()
    assert not [path for path in place.iterdir() if path.name.startswith(".")]
    for _ in range(2):
        assert typed("report @forced --out @page.html --force")[0] == 0
    assert typed("report @forced --out @page.html")[0] == 5


def test_what_is_replaced_comes_back_if_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "old"
    with new_directory(old) as fresh:
        (fresh / "run.json").write_text("{}")
    with pytest.raises(OutputError), replacing(old), new_directory(old) as fresh:
        (fresh / "run.json").write_text("new")
        rename, calls = os.replace, []

        def full(source: Any, target: Any) -> None:
            calls.append(target)
            if len(calls) == 2:
                raise OSError(28, "No space left on device")
            rename(source, target)

        monkeypatch.setattr("os.replace", full)
    assert (old / "run.json").read_text() == "{}"
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_again_repeats_a_run_and_refuses_what_changed(place: Path, typed: Callable[..., Any]) -> None:
    assert typed(f"rank {TEXTS} --sites blocks.0.mlp.hook_pre --seed 3 --top 2 --out @first")[0] == 0
    status, out, _ = typed("again @first")
    assert status == 0
    assert out.splitlines()[0].startswith("lens-steer rank --model")
    frames = [pd.read_parquet(place / name / "tables" / "experts.parquet") for name in ("first", "first-2")]
    pd.testing.assert_frame_equal(*frames)
    # The repetition tells the command itself, and can be repeated with another seed.
    status, out, _ = typed("again @first-2 --seed 4 --out @other-seed --json")
    assert status == 0
    assert result_of(out).command == "rank"
    run = json.loads((place / "other-seed" / "run.json").read_text())
    assert run["seed"] == 4
    assert "--seed 4" in run["command"]
    assert "again" not in run["command"]

    assert typed(f"fit {TEXTS} --method aura --out @aura")[0] == 0
    assert typed("again @aura")[0] == 0
    assert Intervention.load(place / "aura-2") == Intervention.load(place / "aura")

    texts = (place / "sad.txt").read_text()
    (place / "sad.txt").write_text(texts + "\nthe sad dog")
    for made in ("first", "aura"):
        status, _, err = typed(f"again @{made} --out @refused")
        assert status == 3
        assert "sad.txt changed since" in err
    (place / "sad.txt").write_text(texts)
    (place / "model").rename(place / "model-before")
    save_tiny("gpt_neox", place / "model")
    status, _, err = typed("again @first --out @refused")
    assert status == 4
    assert "the model is not that of" in err
    assert typed("again @first --model @model --out @on-another")[0] == 0  # asked for by name
    (place / "model").rename(place / "model-other")
    (place / "model-before").rename(place / "model")
    assert not (place / "refused").exists()
    assert typed("again @model")[0] == 3


def test_a_fit_that_was_killed_goes_on_to_the_same_edit(
    place: Path, tmp_path: Path, typed: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The choice of the share, the fit at it and the refit, killed amid the choice."""
    command = f"fit {TEXTS} --layers -1 --steps 2 --out {tmp_path}"
    descended, done, most = descent._descended, [0], [99]

    def counted(*given: Any, **settings: Any) -> Any:
        if done[0] == most[0]:
            raise KeyboardInterrupt
        done[0] += 1
        return descended(*given, **settings)

    monkeypatch.setattr(descent, "_descended", counted)
    assert typed(f"{command}/whole")[0] == 0
    of_whole, done[0], most[0] = done[0], 0, 3
    status, _, err = typed(f"{command}/edit")
    assert status == 130
    assert "3 finished parts kept in" in err
    assert not (tmp_path / "edit").exists()
    done[0], most[0] = 0, 99
    status, _, err = typed(f"{command}/edit")
    assert status == 0
    assert "going on from 3 finished parts" in err
    assert done[0] == of_whole - 3
    whole, edit = (tmp_path / name / "maps.safetensors" for name in ("whole", "edit"))
    assert whole.read_bytes() == edit.read_bytes()
    one, other = (json.loads((tmp_path / name / "intervention.json").read_text()) for name in ("edit", "whole"))
    for about in (one, other):
        for told in ("time", "command"):
            about["provenance"]["run"].pop(told)
    assert one == other
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edit", "whole"]
