"""Figures, studies and their report."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Load `figures` when it is asked for: drawing is the one thing that needs plotly."""
    if name != "figures":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import lens_steer.report.figures as figures

    return figures
