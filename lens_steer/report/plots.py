"""Figures of results: `plot(result)` draws whatever lens_steer returned, as one plotly figure."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lens_steer.errors import SettingError

if TYPE_CHECKING:
    import plotly.graph_objects as go

# By name, so that drawing one result imports none of the others.
_FIGURES = {
    "Attribution": ("attribution", "attribution_figure"),
    "DownstreamShift": ("downstream", "downstream_figure"),
    "Evaluation": ("evaluation", "evaluation_figure"),
    "ExpertRanking": ("ranking", "ranking_figure"),
    "GeneratedShift": ("generated_shift", "generated_shift_figure"),
    "Interaction": ("interaction", "interaction_figure"),
    "Intervention": ("intervention", "intervention_figure"),
    "LinEASPath": ("path", "path_figure"),
    "TraceShift": ("paths", "trace_figure"),
    "UnitPage": ("unit_page", "unit_figure"),
}


def plot(result: Any) -> go.Figure:
    """Return a figure of a result, such as a DownstreamShift, an ExpertRanking, an Intervention or an Evaluation.

    SettingError for what has none; it lists what has.
    """
    for kind in type(result).__mro__:
        if kind.__module__.startswith("lens_steer.") and kind.__name__ in _FIGURES:
            module, function = _FIGURES[kind.__name__]
            figure: go.Figure = getattr(import_module(f"lens_steer.report.figures.{module}"), function)(result)
            return figure
    raise SettingError(f"there is no figure of {type(result).__name__}; there is one of {', '.join(_FIGURES)}")
