"""The report: one self-contained HTML file from run folders, which loads nothing from the network."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path, PurePath
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from lens_steer.directories import replace_file, require_new_file
from lens_steer.errors import SettingError
from lens_steer.evaluation.card.page import fragment
from lens_steer.report.figures.intervention import intervention_figure
from lens_steer.report.run_folder import RunFolder, read_run
from lens_steer.report.run_writing import versions
from lens_steer.report.shown_figure import ShownFigure, shown_figure
from lens_steer.report.shown_table import heading, number, shown_table
from lens_steer.report.token_view import TokenView, UnitTokens

_HERE = Path(__file__).parent
_SOURCE_MAP = re.compile(r"^//# sourceMappingURL=.*$", re.MULTILINE)
_MOST_ITEMS = 12  # of a list among the settings
_LEFT_OUT = {"history", "fingerprint", "seen", "run"}  # of an intervention's provenance: long, or shown elsewhere


def write_report(out: str | Path, run_folders: str | Path | Sequence[str | Path], *, title: str | None = None) -> Path:
    """Write one HTML file about run folders, in their order, and return it.

    The file holds everything that it shows, with the scripts that draw it (about 6 MB), and loads nothing.

    Parameters
    ----------
    out:
        The new file.
    run_folders:
        One folder or several: whatever `Study.save`, a study's command or `lens-steer rank`, `fit`, `evaluate`,
        `ablate` and `generate` wrote.
    title:
        Heading of the page; the first sentence of the first run when None.

    Raises
    ------
    OutputError
        `out` exists.
    ArtifactError
        A folder is no run folder, or a file in it is missing or damaged (it is named).
    SettingError
        No folder was given.

    """
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
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["embedded"] = _embedded
    sections = [_section(run, number) for number, run in enumerate(runs, start=1)]
    circuitsvis = files("circuitsvis").joinpath("dist", "cdn", "iife.js").read_text(encoding="utf-8")
    return environment.get_template("page.html.j2").render(
        title=title or runs[0].study.summary[0],
        several=len(runs) > 1,
        sections=sections,
        plotly=_script(get_plotlyjs()) if any(section["has_plots"] for section in sections) else None,
        circuitsvis=_script(circuitsvis) if any(section["tokens"] for section in sections) else None,
        style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        script=_script((_HERE / "page.js").read_text(encoding="utf-8")),
        version=versions()["lens-steer"],
    )


def _script(source: str) -> Markup:
    """A script that can stand inside an element, without the link to its source map."""
    return Markup(_SOURCE_MAP.sub("", source).replace("</script", "<\\/script"))


def _embedded(data: Any) -> Markup:
    """JSON that can stand inside a script element, whatever texts it holds."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _section(run: RunFolder, place: int) -> dict[str, Any]:
    study, about, key = run.study, run.about, f"run{place}"
    blocks = [*_blocks(run, key)]
    tokens = [_token_block(run, name, f"{key}-tokens{n}") for n, name in enumerate(study.tokens)]
    edits = [_edit_block(run, name, f"{key}-edit{n}") for n, name in enumerate(study.interventions)]
    return {
        "key": key,
        "name": _capital(heading(run.name)),
        "finding": study.summary[0],
        "sentences": list(study.summary[1:]),
        "byline": _byline(about),
        "blocks": blocks,
        "tokens": tokens,
        "edits": edits,
        "card": None if study.card is None else Markup(fragment(study.card, follow=False)),
        "has_plots": bool(study.figures or study.interventions),
        "settings": [(group, list(_flat(values))) for group, values in _groups(about) if values],
    }


def _blocks(run: RunFolder, key: str) -> Iterator[dict[str, Any]]:
    """Figures and tables under one heading where they share a name, in the order of the study."""
    study = run.study
    for place, name in enumerate(dict.fromkeys([*study.figures, *study.frames])):
        figure = shown_figure(study.figures[name]) if name in study.figures else None
        has_rows = name in study.frames and len(study.frames[name]) > 0
        if figure is None and not has_rows:
            continue
        yield {
            "key": f"{key}-part{place}",
            "heading": (figure.heading if figure else "") or _capital(heading(name)),
            "figure": figure,
            "table": shown_table(study.frames[name]) if has_rows else None,
            "file": f"tables/{name}.parquet",
            "caption": study.captions.get(name),
        }


def _token_block(run: RunFolder, name: str, key: str) -> dict[str, Any]:
    view = run.study.tokens[name]
    assert isinstance(view, TokenView)  # read from disk: never the UnitView that `save` takes too
    return {
        "key": key,
        "heading": _capital(heading(name)),
        "caption": run.study.captions.get(name),
        "units": [_unit(unit, f"{key}-{place}") for place, unit in enumerate(view.units)],
    }


def _unit(unit: UnitTokens, key: str) -> dict[str, Any]:
    """One colour scale for all texts of a unit: white at 0, and as deep for -x as for x."""
    low, high = min(unit.low, 0.0), max(unit.high, 0.0)
    end = max(-low, high) or 1.0
    colours = {"positiveColor": _POSITIVE, "negativeColor": _NEGATIVE}
    texts = []
    for place, text in enumerate(unit.texts):
        props = {"tokens": text.tokens, "values": text.values, "minValue": -end, "maxValue": end}
        shown = {"key": f"{key}-{place}", "plain": "".join(text.tokens), "props": {**props, **colours}}
        texts.append({**shown, "text": text, "largest": number(max(text.values))})
    zero = 100 * -low / ((high - low) or 1.0)
    stops = [f"{_mixed(_NEGATIVE, -low / end)} 0%", f"#fff {zero:.0f}%", f"{_mixed(_POSITIVE, high / end)} 100%"]
    return {"name": unit.unit, "low": number(low), "high": number(high), "ramp": ", ".join(stops), "texts": texts}


_POSITIVE, _NEGATIVE = "rgb(123, 50, 148)", "rgb(0, 136, 55)"


def _mixed(colour: str, share: float) -> str:
    return f"color-mix(in srgb, {colour} {share:.0%}, white)"


def _edit_block(run: RunFolder, name: str, key: str) -> dict[str, Any]:
    edit = run.study.interventions[name]
    figure: ShownFigure = shown_figure(intervention_figure(edit))
    provenance = {part: value for part, value in edit.provenance.items() if part not in _LEFT_OUT}
    return {
        "key": key,
        "heading": f"{_capital(heading(name))}: layers and units that the edit moves",
        "figure": figure,
        "table": shown_table(edit.support()),
        "caption": run.study.captions.get(name),
        "provenance": list(_flat(provenance)),
    }


def _byline(about: Mapping[str, Any]) -> list[str]:
    """Model, contrast, seed and day, as far as run.json says."""
    parts = []
    if model := (about.get("model") or {}).get("model"):
        parts.append(f"model {PurePath(model).name if PurePath(model).is_absolute() else model}")
    if contrast := about.get("contrast"):
        parts.append(f"contrast “{contrast['name']}” ({_texts(contrast.get('texts'))})")
    if about.get("seed") is not None:
        parts.append(f"seed {about['seed']}")
    if about.get("time"):
        day = datetime.fromisoformat(about["time"])
        parts.append(f"{day.day} {day:%B %Y}")
    return parts


def _texts(count: Any) -> str:
    if isinstance(count, Mapping):
        return " + ".join(f"{number(value)} {side}" for side, value in count.items()) + " texts"
    return f"{number(count)} texts"


def _groups(about: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    command = {"command": about.get("command"), "seed": about.get("seed"), "time": about.get("time")}
    return [
        ("How to repeat it", {name: value for name, value in command.items() if value is not None}),
        ("Settings", about.get("settings") or {}),
        ("Model", about.get("model") or {}),
        ("Contrast", about.get("contrast") or {}),
        ("Versions", about.get("versions") or {}),
    ]


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Names and values of nested settings, one row each: `lr`, `optimizer.momentum`."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{name}.")
        elif value is not None and value != "":
            yield f"{before}{name}", _setting(value)


def _setting(value: Any) -> str:
    if isinstance(value, list | tuple):
        shown = ", ".join(str(item) for item in value[:_MOST_ITEMS])
        return shown + (f", … ({len(value):,} in all)" if len(value) > _MOST_ITEMS else "")
    return str(value)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
