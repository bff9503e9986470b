"""The report: one self-contained HTML file from run folders, which loads nothing from the network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from lens_steer.directories import replace_file, require_new_file
from lens_steer.display.paper import paper_style
from lens_steer.errors import SettingError
from lens_steer.report.comparison import comparison
from lens_steer.report.packed_script import packed_plotly
from lens_steer.report.run_folder import RunFolder, read_run
from lens_steer.report.run_writing import versions
from lens_steer.report.sections import DrawnEdits, section_of
from lens_steer.settings import require_settings

_HERE = Path(__file__).parent


def write_report(out: str | Path, run_folders: str | Path | Sequence[str | Path], *, title: str | None = None) -> Path:
    """Write one HTML file about run folders, in their order, and return it.

    The file holds everything that it shows, with the scripts that draw it (about 2 MB), and loads nothing.

    Parameters
    ----------
    out:
        The new file.
    run_folders:
        One folder or several: whatever `Study.save`, a study's command or `lens-steer rank`, `fit`, `evaluate`,
        `ablate`, `generate` and `unit` wrote.
    title:
        Heading of the page; when None the verdict of the first card, the first sentence of the first evaluation, or
        that of the first run.

    Raises
    ------
    OutputError
        `out` exists.
    ArtifactError
        A folder is no run folder, or a file in it is missing or damaged (it is named).
    SettingError
        No folder was given.

    """
    require_settings(write_report, locals())
    place = Path(out)
    require_new_file(place)
    given = [run_folders] if isinstance(run_folders, str | Path) else list(run_folders)
    if not given:
        raise SettingError("a report needs at least one run folder, such as lens-steer rank writes")
    text = _html([read_run(folder) for folder in given], title)
    replace_file(place, lambda path: _write(path, text))
    return place


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _html(runs: Sequence[RunFolder], title: str | None) -> str:
    environment = Environment(loader=FileSystemLoader(_HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["embedded"] = _embedded
    drawn = DrawnEdits()
    sections = [section_of(run, number, drawn) for number, run in enumerate(runs, start=1)]
    return environment.get_template("page.html.j2").render(
        title=title or _title(runs),
        several=len(runs) > 1,
        sections=sections,
        comparison=comparison(runs),
        plotly=Markup(packed_plotly()) if any(section["has_plots"] for section in sections) else None,
        style=paper_style() + Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup((_HERE / "page.js").read_text(encoding="utf-8")),
        version=versions()["lens-steer"],
    )


def _title(runs: Sequence[RunFolder]) -> str:
    """Return what a report is about: the verdict of a card, else what an edit was found to do, else what was found."""
    for run in runs:
        if run.study.card is not None:
            return run.study.card.headline
    effects = [run for run in runs if "scores" in run.study.frames]
    return [*effects, *runs][0].study.summary[0]


def _embedded(data: Any) -> Markup:
    """JSON that can stand inside a script element, whatever texts it holds."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))
