"""`lens-steer lint`, and what `fit` says of its texts before it loads a model."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from lens_steer import cli
from lens_steer.cli.options import ModelOptions
from lens_steer.errors import ContrastError, ModelError
from tests.families import sentences


def said(folder: Path, source: list[str], target: list[str], command: str) -> list[str]:
    """Run a command on two text files; what it printed, by lines."""
    (folder / "a.txt").write_text("\n".join(source))
    (folder / "b.txt").write_text("\n".join(target))
    written = io.StringIO()
    with redirect_stdout(written):
        cli.app(f"{command} --texts {folder}/a.txt --texts {folder}/b.txt".split())
    return written.getvalue().splitlines()


def test_one_line_when_all_is_well(tmp_path: Path) -> None:
    rows = sentences(50, seed=1)
    (line,) = said(tmp_path, rows[:25], rows[25:], "lint")
    assert line == "a vs b: 25 source and 25 target texts: nothing stands out"


def test_every_finding_has_a_line_and_a_severe_one_ends_in_an_error(tmp_path: Path) -> None:
    rows = sentences(50, seed=1)
    lines = said(tmp_path, [f"{row} zebra" for row in rows[:25]], rows[25:], "lint")
    assert len(lines) == 2
    assert lines[1].startswith("warning: giveaways: of 25 and 25: the word 'zebra' in 25 source and 0 target texts")
    with pytest.raises(ContrastError, match="mend what is called severe"):
        said(tmp_path, rows[:3], rows[3:6], "lint")


def test_a_fit_says_it_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_model(_: ModelOptions) -> None:
        raise ModelError("too late")

    monkeypatch.setattr(ModelOptions, "load", no_model)
    rows = sentences(12, seed=1)
    (tmp_path / "a.txt").write_text("\n".join(rows[:6]))
    (tmp_path / "b.txt").write_text("\n".join(rows[6:]))
    with pytest.raises(ModelError, match="too late"):
        cli.app(
            f"fit --model tiny --texts {tmp_path}/a.txt --texts {tmp_path}/b.txt --method aura "
            f"--out {tmp_path}/out".split()
        )
    assert "warning: few texts: 6 source and 6 target texts" in capsys.readouterr().out
