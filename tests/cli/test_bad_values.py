"""Every option of every command with bad values: one clear line, a status by cause, nothing written, no model loaded.

The options are read off the commands themselves, so that a new one is asked too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lens_steer import cli
from lens_steer.cli import study as study_module
from lens_steer.cli.running import status_of
from tests.cli.test_study import installed  # noqa: F401 (the two studies of somebody's own package)
from tests.families import sentences

TEXTS = {"--model": ["@model"], "--texts": ["@sad.txt", "@other.txt"], "--out": ["@new"]}
COMMANDS: dict[str, dict[str, list[str]]] = {
    "sites": {"--model": ["@model"]},
    "lint": {"--texts": ["@sad.txt", "@other.txt"]},
    "rank": TEXTS,
    "unit": {"": ["blocks.0.mlp.hook_post[1]"], **TEXTS},
    "fit": TEXTS,
    "ablate": {**TEXTS, "--units": ["@units.csv"]},
    "generate": {"--model": ["@model"], "--prompts": ["@prompts.txt"], "--out": ["@new"]},
    "evaluate": {**TEXTS, "--intervention": ["@edit"]},
    "bake": {"--model": ["@model"], "--intervention": ["@edit"], "--out": ["@new"]},
    "export": {"--intervention": ["@edit"], "--out": ["@new.gguf"]},
    "import": {"--model": ["@model"], "--vectors": ["@vectors.json"], "--out": ["@new"]},
    "report": {"": ["@run"], "--out": ["@new.html"]},
    "card": {"": ["@edit"], **TEXTS},
    "again": {"": ["@run"]},
    "doctor": {},
    "demo": {},
    "study one_concept": TEXTS,
}
WHOLE = ["-1", "nan", "inf", "2.5", "many", "", "99999999999999999999"]
REAL = ["nan", "inf", "-inf", "much", ""]
FILES = ["@missing", "@folder", "@binary.txt", "@empty.txt", ""]
PLACES = ["@sad.txt", "@sad.txt/below", "@folder", "/proc/results", ".", ""]
ANY_REAL = {"--strength", "--doses", "--alpha", "--multiplier"}
READER = ("--prompt", "--source-text", "--target-text", "--config")
MODELS = {("doctor", "")}
FREE = {"--title"}  # whatever is written there is a heading
NEEDS_MODEL = {"--model", "--pattern", "--sites"}  # a site's name or a model's can be right in another model


def bad_values(option: str, kind: Any, choices: tuple[str, ...] | None) -> list[str]:
    """Return values that an option must refuse, by its name and type."""
    if option in ("", "--units", "--prompts", "--intervention", "--vectors"):
        return [value for value in FILES if (option, value) != ("", "")]
    if option == "--out":
        return PLACES
    if option in ("--texts", "--contrast", "--text", "--label", "--source", "--target", *READER):
        return ["@missing.txt", "@binary.txt", "@folder", ""]
    if choices:
        return ["bogus", "", "1"]
    if option == "--layers":
        return ["nan", "2.5", "1,x", ""]
    if option == "--strengths":
        return [*REAL, "0", "1,x"]
    if "int" in str(kind):
        return WHOLE if option == "--seed" else [*WHOLE, "0"] if option not in ("--steps", "--limit") else WHOLE
    if "float" in str(kind):
        return REAL if option in ANY_REAL else [*REAL, "-1"]
    return {"--device": ["potato", "", "meta"], "--chat": ["no place", ""], "--words": [",", ""]}.get(option, [""])


def cases() -> Iterator[tuple[str, str, str]]:
    """Yield command, option and bad value.

    The first command that has an option asks all its values; every other command that shares its name and type asks
    one, each another one in turn.
    """
    met: Counter[tuple[str, str]] = Counter()
    for command in COMMANDS:
        for argument in arguments_of(command):
            option = argument.name if argument.name.startswith("--") else ""
            if option not in FREE and (command, option) not in MODELS:
                values = bad_values(option, argument.hint, argument.get_choices())
                turn = met[option, str(argument.hint)]
                met[option, str(argument.hint)] += 1
                for value in [values[turn % len(values)]] if turn else values:
                    yield command, option, value


def arguments_of(command: str) -> Any:
    name, _, study = command.partition(" ")
    if study:
        return study_module.app_of_study(study_module.load_study(study), study).assemble_argument_collection()
    return cli.app[name].assemble_argument_collection()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("user")
    for name in ("model", "run", "edit", "folder"):
        (folder / name).mkdir()
        (folder / name / "a file").write_text("of somebody else's")
    (folder / "sad.txt").write_text("\n".join(sentences(6, seed=1, must="sad")))
    (folder / "other.txt").write_text("\n".join(sentences(6, seed=2, must="happy")))
    (folder / "prompts.txt").write_text("the dog\na cat\n")
    (folder / "binary.txt").write_bytes(bytes(range(128, 256)) + b"\0")
    (folder / "empty.txt").write_text("")
    (folder / "vectors.json").write_text('{"1": [1, 2, 3]}')
    units = pd.DataFrame({"site": ["blocks.0.mlp.hook_post"], "unit": [1], "width": [128]})
    units.to_csv(folder / "units.csv", index=False)
    return folder


@pytest.mark.usefixtures("installed")
def test_no_bad_value_costs_work_or_shows_a_traceback(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded: list[str] = []

    def load(*_: object, **__: object) -> None:
        loaded.append("model")
        raise KeyboardInterrupt

    monkeypatch.setattr("lens_steer.host.load.load_model", load)
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    wrong, asked = [], 0
    for command, option, value in cases():
        words = command.split()
        for name, values in COMMANDS[command].items():
            if name != option:
                words += [word for value_given in values for word in (name, value_given) if word]
        words += [option, value] if option else [value]
        status = status_of(cli.app, "lens-steer", [word.replace("@", f"{place}/") for word in words])
        lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
        asked += 1
        fine = 2 <= status <= 5 and len(lines) == 1 and lines[0].startswith("lens-steer: ") and len(lines[0]) > 30
        needed = bool(loaded) and option in NEEDS_MODEL
        if (not needed and (not fine or loaded)) or sorted(place.rglob("*")) != before:
            wrong.append((command, option, value, status, lines[-1:], list(loaded)))
        loaded.clear()
    assert asked > 500
    assert not wrong, "\n".join(map(str, wrong))
