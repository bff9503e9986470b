"""Progress where no terminal is: a line every half minute, with a clock that the test moves."""

from __future__ import annotations

import io
import sys

import pytest
from tqdm.auto import tqdm

from lens_steer import progress
from lens_steer.progress import heard, one_bar, progress_bar


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "_LOG", progress._Log())
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    return now


def test_a_line_says_step_rate_and_minutes_left(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    steps = progress_bar(range(40), desc="LinEAS", unit="step", show=True)
    for step in steps:
        clock[0] += 20
        steps.set_postfix(loss=f"{40 - step}", refresh=False)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 40 * 20 // 40  # as often as half a minute allows, at steps of 20 s
    assert lines[0] == "LinEAS: step 2/40, 20 s/step, 13 min left, loss 39"
    assert lines[-1] == "LinEAS: step 40/40, 20 s/step, less than a minute left, loss 1"


def test_many_short_passes_are_heard_too(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(12):
        for _ in progress_bar(iter("abcde"), desc="perplexity", unit="batch", show=True):
            clock[0] += 2
    assert capsys.readouterr().err.splitlines() == ["perplexity: batch 5, 2 s/batch"] * 4


def test_quick_work_and_hidden_work_write_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress_bar(range(5), desc="x", unit="step", show=True)) == list(range(5))
    for _ in progress_bar(range(5), desc="x", unit="step", show=False):
        clock[0] += 100
    assert capsys.readouterr().err == ""


def test_hidden_work_is_heard_in_a_log_where_that_is_asked_for(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with heard("downstream"):
        for _ in progress_bar(range(2), desc="generate", unit="batch", show=False):
            clock[0] += 40
    assert capsys.readouterr().err.splitlines()[0].startswith("downstream: generate: batch 1/2, 40 s/batch")


def test_rates_above_one_are_per_second(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    for _ in progress_bar(range(600), desc="x", unit="step", show=True):
        clock[0] += 0.25
    assert capsys.readouterr().err.splitlines()[0] == "x: step 120/600, 4 step/s, 2 min left"


def test_a_terminal_has_its_bar(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    bar = progress_bar(range(3), desc="x", unit="step", show=True)
    assert isinstance(bar, tqdm)
    assert list(bar) == [0, 1, 2]


def test_no_stderr_at_all_is_no_error(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    for _ in progress_bar(range(3), desc="x", unit="step", show=True):
        clock[0] += 100


def test_the_parts_of_a_whole_are_one_bar(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    """What a part leaves out counts as done; bars of another unit are their own."""
    with one_bar(40, desc="LinEAS", unit="step", show=True):
        for _ in range(4):
            part = progress_bar(range(10), desc="descent", unit="step", show=True)
            for step in part:
                clock[0] += 20
                part.set_postfix(loss=f"{step}", refresh=False)
                if step == 4:
                    break
            assert list(progress_bar(range(2), desc="x", unit="batch", show=True)) == [0, 1]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "LinEAS: step 2/40, 20 s/step, 13 min left, loss 1"
    assert [line.split(",")[0] for line in lines[1:3]] == ["LinEAS: step 4/40", "LinEAS: step 11/40"]
    assert len(lines) == 4 * 5 * 20 // 40
    assert list(progress_bar(range(2), desc="x", unit="step", show=False)) == [0, 1]


def test_a_whole_of_unknown_length_counts_what_is_done(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with one_bar(None, desc="LinEAS", unit="step", show=True):
        for step in progress_bar(range(10), desc="descent", unit="step", show=True):
            clock[0] += 30
            if step == 3:
                break
    assert capsys.readouterr().err.splitlines() == [f"LinEAS: step {step}, 30 s/step" for step in (1, 2, 3, 4)]


def test_a_whole_on_a_terminal_is_one_bar(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with one_bar(20, desc="x", unit="step", show=True):
        _, whole = progress._WHOLE.get() or ("", None)
        assert isinstance(whole, tqdm)
        for _ in range(2):
            for _ in progress_bar(range(10), desc="y", unit="step", show=True):
                break
        assert whole.n == 20
    assert progress._WHOLE.get() is None
