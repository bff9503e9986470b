"""Messages of the library speak of options on the command line; --help fills its width."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from lens_steer import cli
from lens_steer.cli.fitting import fit
from lens_steer.cli.measuring import generate
from lens_steer.cli.option_words import as_options, options_of
from lens_steer.cli.running import status_of
from tests.families import save_tiny, sentences


def test_arguments_become_options_of_the_command_and_nothing_else_does() -> None:
    options = options_of(fit)
    assert options["gamma_share"] is False
    assert options["paired"] is True
    assert "max_new_tokens" in options
    assert "return" not in options
    for said, expected in (
        ('set optimizer="adam" or gamma_share=0.1, k=3.', "set --optimizer adam or --gamma-share 0.1, --k 3."),
        ("lr=1e-05 is out of range", "--lr 1e-05 is out of range"),
        ("or unproven=True, lower max_new_tokens", "or --unproven, lower --max-new-tokens"),
        ('such as chat="User: {text}"', 'such as --chat "User: {text}"'),
        ("k=(1, 9999): too many; k=(4,)", "--k 1,9999: too many; --k 4"),
        ("ls.LinEAS(k=[...]) (--k), or k=3", "ls.LinEAS(k=[...]) (--k), or --k 3"),
        ("of block=2, in max_new_tokens.csv and runs/max_new_tokens; 12 source texts",) * 2,
    ):
        assert as_options(said, options) == expected
    assert as_options("lr=1", options_of(generate)) == "lr=1"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("user")
    save_tiny("gpt2", folder / "model")
    for number, name in enumerate(("sad", "happy")):
        (folder / f"{name}.txt").write_text("\n".join(sentences(12, seed=number, must=name)))
    (folder / "prompts.txt").write_text("the dog\n")
    (folder / "one.csv").write_text("text,label\na dog,1\na cat,1\n")
    (folder / "empty.txt").write_text(" \n")
    return folder


TEXTS = "--model @model --texts @sad.txt --texts @happy.txt"


@pytest.mark.parametrize(
    ("typed", "status", "says"),
    [
        ("generate --model @model --prompts @prompts.txt --max-new-tokens 5000 --out @x", 3, "lower --max-new-tokens"),
        ("generate --model @model --prompts @prompts.txt --chat template --out @x", 3, 'such as --chat "User: '),
        ("generate --model @model --prompts @empty.txt --out @x", 3, "holds no line of text"),
        ("rank --model @model --texts @one.csv --out @x", 3, r"all rows have the label '1' \(2 rows\)"),
        ("rank --model @model --texts @missing.csv --out @x", 3, "no such file or directory: .*missing.csv"),
        (f"rank {TEXTS} --seed abc --out @x", 2, "--seed: 'abc' is no whole number. See"),
        (f"fit {TEXTS} --method caa --budget ppl:1.1 --out @x", 3, "cannot judge: .*ask for it with --unproven"),
        ("report @nowhere --out @x.html", 2, '"[^"]*nowhere" for RUNS'),
        (f"fit {TEXTS} --unproven --out @x", 2, "--unproven: .*give --budget"),
    ],
)
def test_refusals_name_what_was_typed(
    typed: str, status: int, says: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if "generate" not in typed:  # all that can be known from texts and options is said before
        monkeypatch.setattr("lens_steer.host.load.load_model", pytest.fail)
    words = typed.replace("@", f"{place}/").split()
    assert status_of(cli.app, "lens-steer", words) == status
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.search(says, line), line
    assert not (place / "x").exists()


def test_missing_files_are_never_looked_for_on_the_hub(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("lens_steer.cli.options.look_in_cache_where_offline", asked.append)
    for texts in (f"--texts {place}/none.csv", f"--texts {place}/none.txt --texts {place}/sad.txt"):
        assert status_of(cli.app, "lens-steer", f"lint {texts}".split()) == 3
    assert asked == []


def test_a_refused_place_offers_force_where_it_would_help(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, file in (("result", "run.json"), ("foreign", "notes.md")):
        (place / name).mkdir()
        (place / name / file).write_text("{}")
    for out, offered in (("result", True), ("foreign", False)):
        words = f"rank {TEXTS} --out @{out}".replace("@", f"{place}/").split()
        assert status_of(cli.app, "lens-steer", words) == 5
        assert ("--force replaces it" in capsys.readouterr().err) is offered


def test_help_breaks_lines_where_the_width_ends() -> None:
    wide = Console(width=200, file=io.StringIO())
    cli.app.help_print(["rank"], console=wide)
    printed = wide.file.getvalue()  # type: ignore[attr-defined]
    assert "and measured on the other half. With several processes," in printed
    assert "need the same share and seed." in printed
    assert "\n\nExample: lens-steer rank" in printed
