"""`lens-steer demo`: the whole job on the embedded model, without a network, and a report about it."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from lens_steer.cli.options import Seed
from lens_steer.cli.runs import require_free_place, say, show_pairs
from lens_steer.cli.study import find_studies, load_study
from lens_steer.errors import SettingError

_PLACE = Path("runs/demo")


def demo(
    *,
    out: Annotated[
        Path | None, Parameter(help="New directory for run and report; runs/demo, or the next free one.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Find the experts of "rude" in the embedded model, steer away from it, and write a report; about three minutes.

    Example: lens-steer demo --seed 7
    """
    from lens_steer.host.load import load_model
    from lens_steer.report.page import write_report
    from lens_steer.texts.readers import read_contrast

    place = _free_place() if out is None else out
    require_free_place(place)
    if "demo" not in find_studies():
        raise SettingError("the study of the demo is not installed: run `make demo`, or `pip install -e .` again")
    run = load_study("demo")
    study = run(
        load_model("microworld"), read_contrast("microworld:rude", n=400, seed=seed), out=place / "run", seed=seed
    )
    for line in study.summary:
        say(line)
    show_pairs(study.frames["texts"])
    say(f"The report is {write_report(place / 'report.html', place / 'run')}")


def _free_place() -> Path:
    """Return runs/demo, or runs/demo-2 and so on when earlier demos are there."""
    names = (_PLACE if number == 1 else _PLACE.with_name(f"{_PLACE.name}-{number}") for number in count(1))
    return next(place for place in names if not place.exists())
