"""`lens-steer report`: one HTML file from run folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from lens_steer.cli.options import DIRECTORY
from lens_steer.cli.runs import say_written


def report(
    runs: list[Annotated[Path, Parameter(validator=DIRECTORY)]],
    /,
    *,
    out: Path = Path("report.html"),
    title: str | None = None,
) -> None:
    """Write one self-contained HTML file about one or several runs; it needs no network to be read.

    Example: lens-steer report runs/rank runs/edit runs/effect --out report.html

    Parameters
    ----------
    runs:
        Folders that rank, fit, evaluate, ablate, unit or a study wrote.
    out:
        New HTML file.
    title:
        Heading; the first run's finding when left out.

    """
    from lens_steer.report.page import write_report

    say_written(write_report(out, runs, title=title))
