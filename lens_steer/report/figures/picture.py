"""Pictures of figures: a PNG beside the interactive plot, for exported notebooks and code hosts.

kaleido draws them in a headless Chrome or Chromium that stays open for the figures to come. Where either is missing, or
does not answer, a figure stays interactive and its text says what a picture needs.
"""

from __future__ import annotations

import asyncio
import atexit
import base64
from collections.abc import Coroutine
from functools import cache
from threading import Thread
from typing import Any, TypeVar

import plotly.graph_objects as go

_Answer = TypeVar("_Answer")
_PATIENCE = 90  # seconds: a first start on a busy machine takes ten
_REMEDY = "to keep a picture in an exported notebook: pip install 'lens-steer[notebooks]' and a Chrome or Chromium"


class PicturedFigure(go.Figure):  # type: ignore[misc]  # plotly has no types
    """A plotly figure that a notebook keeps as a PNG too, where plotly's own renderer would keep its JSON alone.

    A renderer that the user has chosen (`plotly.io.renderers.default`) is left alone.
    """

    def _ipython_display_(self) -> None:
        import plotly.io
        from IPython.display import display

        if plotly.io.renderers.default != "plotly_mimetype":
            super()._ipython_display_()
            return
        display({**self._repr_mimebundle_(), **picture(self)}, raw=True)  # type: ignore[no-untyped-call]


def picture(figure: go.Figure) -> dict[str, str]:
    """Return what a notebook keeps of a figure beside the interactive one, by MIME type: its title, and a PNG."""
    title = (figure.layout.title.text or "A figure").partition("<br>")[0].removeprefix("<b>").removesuffix("</b>")
    try:
        drawn = _camera().draw(figure)
    except Exception as error:  # whatever becomes of the browser, the interactive figure is there
        return {"text/plain": f"{title}: interactive only; {_REMEDY} ({type(error).__name__}: {error})"}
    return {"text/plain": title, "image/png": base64.b64encode(drawn).decode()}


class _Camera:
    """A browser that draws figures, in a thread of its own: a notebook has a running event loop already."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        Thread(target=self._loop.run_forever, daemon=True, name="lens_steer figures").start()
        self._browser: Any = None
        self._trouble: Exception | None = None
        try:
            self._wait_for(self._open())
        except Exception as error:  # said of every figure, and never tried again
            self._trouble = error

    def draw(self, figure: go.Figure) -> bytes:
        """Return a figure as PNG, at its own size, in which JupyterLab shows it; whatever error the browser had."""
        if self._trouble is not None:
            raise self._trouble
        plain = figure.to_dict()
        size = {name: plain["layout"][name] for name in ("width", "height") if plain["layout"].get(name)}
        drawn: bytes = self._wait_for(self._browser.calc_fig(plain, {"format": "png", **size}))
        return drawn

    async def _open(self) -> None:
        from kaleido import Kaleido

        self._browser = await Kaleido(mathjax=False).__aenter__()  # MathJax would come from the network
        atexit.register(lambda: self._wait_for(self._browser.__aexit__(None, None, None)))

    def _wait_for(self, coroutine: Coroutine[Any, Any, _Answer]) -> _Answer:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_PATIENCE)


_camera = cache(_Camera)
