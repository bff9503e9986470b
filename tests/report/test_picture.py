"""A figure's picture: without what draws it, the figure stays interactive and says what is missing."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import plotly.graph_objects as go
import pytest

from lens_steer.report.figures import styled
from lens_steer.report.figures.picture import PicturedFigure, _camera, picture


@pytest.fixture(autouse=True)
def fresh_camera() -> Iterator[None]:
    _camera.cache_clear()
    yield
    _camera.cache_clear()


def test_without_kaleido_it_says_what_a_picture_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kaleido", None)
    figure = styled(go.Figure(go.Bar(x=[1], y=[2])), "Units", "a note")
    shown = picture(figure)
    assert list(shown) == ["text/plain"]
    assert shown["text/plain"].startswith("Units: interactive only; ")
    assert "pip install 'lens-steer[notebooks]' and a Chrome" in shown["text/plain"]


def test_without_a_browser_it_says_so_too(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("kaleido", reason="kaleido is not installed: pip install -e '.[notebooks]'")
    monkeypatch.setenv("BROWSER_PATH", "/nowhere/chrome")
    assert "a Chrome or Chromium" in picture(go.Figure())["text/plain"]


def test_styled_figures_keep_their_data_and_panels() -> None:
    from plotly.subplots import make_subplots

    panels = make_subplots(1, 2).add_bar(x=[1], y=[2], row=1, col=2)
    figure = styled(panels, "Title", "note")
    assert isinstance(figure, PicturedFigure)
    assert figure.data == panels.data
    assert [shape.xref for shape in figure.add_vline(1, row=1, col=2).layout.shapes] == ["x2"]
