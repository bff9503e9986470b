"""The sections of a report: what of a run folder is shown, in which order and under which headings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import PurePath
from typing import Any

from markupsafe import Markup

from lens_steer.display.shown_table import heading, number, shown_table
from lens_steer.evaluation.card.page import fragment
from lens_steer.interventions.intervention import Intervention
from lens_steer.report.figures.intervention import intervention_figure
from lens_steer.report.figures.learning import is_learned, learning_curve
from lens_steer.report.run_folder import RunFolder
from lens_steer.report.shown_figure import shown_figure
from lens_steer.report.shown_tokens import shown_units
from lens_steer.report.token_view import TokenView

_MOST_ITEMS = 12  # of a list among the settings
_LEFT_OUT = {"history", "fingerprint", "seen", "run"}  # of an intervention's provenance: long, or shown elsewhere


class DrawnEdits:
    """The edits that a report has drawn so far: none is drawn twice."""

    def __init__(self) -> None:
        self._drawn: list[tuple[Intervention, str, str]] = []

    def place_of(self, edit: Intervention) -> tuple[str, str] | None:
        """Return key and heading of the part that draws an equal edit already."""
        return next(((key, title) for drawn, key, title in self._drawn if drawn == edit), None)

    def add(self, edit: Intervention, key: str, title: str) -> None:
        """Remember where an edit is drawn."""
        self._drawn.append((edit, key, title))


def section_of(run: RunFolder, place: int, drawn: DrawnEdits) -> dict[str, Any]:
    """Return what the page's template needs of a run, the report's `place`-th."""
    study, about, key = run.study, run.about, f"run{place}"
    return {
        "key": key,
        "name": _capital(heading(run.name)),
        "finding": study.summary[0],
        "sentences": list(study.summary[1:]),
        "byline": _byline(about),
        "blocks": [*_blocks(run, key)],
        "tokens": [_token_block(run, name, f"{key}-tokens{n}") for n, name in enumerate(study.tokens)],
        "edits": [_edit_block(run, name, f"{key}-edit{n}", drawn) for n, name in enumerate(study.interventions)],
        "card": None if study.card is None else Markup(fragment(study.card)),
        "headline": None if study.card is None else study.card.headline,
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
    assert isinstance(view, TokenView)  # read from disk: never a view that `save` takes too
    caption = run.study.captions.get(name)
    return {"key": key, "heading": _capital(heading(name)), "caption": caption, "units": shown_units(view)}


def _edit_block(run: RunFolder, name: str, key: str, drawn: DrawnEdits) -> dict[str, Any]:
    edit = run.study.interventions[name]
    method = str(edit.provenance.get("method", ""))
    called = _capital(method if method.casefold() == name.casefold() else heading(name))
    title = f"{called}: layers and units that the edit moves"
    block = {"key": key, "heading": title, "caption": run.study.captions.get(name), "same": drawn.place_of(edit)}
    if block["same"] is not None:
        return block
    drawn.add(edit, key, title)
    provenance = {part: value for part, value in edit.provenance.items() if part not in _LEFT_OUT}
    return {
        **block,
        "figure": shown_figure(intervention_figure(edit)),
        "learning": shown_figure(learning_curve(edit)) if is_learned(edit) else None,
        "table": shown_table(edit.support()),
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
