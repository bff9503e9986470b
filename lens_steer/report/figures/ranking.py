"""A ranking: the AUROC of its units by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lens_steer.report.figures.auroc import auroc_by_layer

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from lens_steer.ranking.experts import ExpertRanking


def ranking_figure(ranking: ExpertRanking) -> go.Figure:
    """AUROC of units by layer; SettingError for a ranking of several concepts."""
    return auroc_by_layer(ranking.frame)
