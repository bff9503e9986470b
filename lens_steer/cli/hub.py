"""Names on the hub where there is no network: said at once, and not after half a minute of retries."""

from __future__ import annotations

import socket
import sys
import warnings
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from lens_steer.errors import LensSteerWarning


def look_in_cache_where_offline(name: str) -> None:
    """Let the hub's client use its cache alone if `name` is no file here and the hub's host has no address.

    Warns (LensSteerWarning) where that is so. Behind a proxy nothing is asked: there the proxy knows addresses.
    """
    if Path(name).exists() or getproxies():
        return
    from huggingface_hub import constants

    host = urlsplit(constants.ENDPOINT).hostname
    if constants.HF_HUB_OFFLINE or host is None:
        return
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        constants.HF_HUB_OFFLINE = True
        if "datasets" in sys.modules:
            sys.modules["datasets"].config.HF_HUB_OFFLINE = True
        message = f"{host} cannot be reached: {name} is looked for in the cache only"
        warnings.warn(message, LensSteerWarning, stacklevel=2)
