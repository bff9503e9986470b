"""`lens-steer report`: one HTML file from run folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders that rank, fit, evaluate, ablate or a study wrote.")],
    out: Annotated[Path, typer.Option(help="New HTML file.")] = Path("report.html"),
    title: Annotated[str | None, typer.Option(help="Heading; the first run's finding when left out.")] = None,
) -> None:
    """Write one self-contained HTML file about one or several runs; it needs no network to be read."""
    from lens_steer.report.page import write_report

    typer.echo(f"written to {write_report(out, runs, title=title)}")
