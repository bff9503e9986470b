"""plotly's own script, compressed to two fifths for a page that unpacks it in the browser."""

from __future__ import annotations

import gzip
from base64 import b64encode
from functools import cache


@cache
def packed_plotly() -> str:
    """Return plotly.js as base64 of gzip, which browsers since 2023 unpack themselves (`DecompressionStream`)."""
    from plotly.offline import get_plotlyjs

    return b64encode(gzip.compress(get_plotlyjs().encode(), compresslevel=9, mtime=0)).decode("ascii")
