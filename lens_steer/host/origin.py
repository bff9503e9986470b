"""Where the weights of a checkpoint came from: kept in its config.json, so that every copy of it can say so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_KEY = "lens_steer_origin"


def record_origin(config: Any, **origin: str) -> None:
    """Note in a Hugging Face config (or the content of a config.json) where its weights came from."""
    if isinstance(config, dict):
        config[_KEY] = origin
    else:
        setattr(config, _KEY, origin)


def origin_of(config: Any) -> dict[str, str]:
    """Return what `record_origin` noted; empty where nothing was."""
    origin = config.get(_KEY) if isinstance(config, Mapping) else getattr(config, _KEY, None)
    return {str(name): str(value) for name, value in origin.items()} if isinstance(origin, Mapping) else {}


def describe_origin(config: Any) -> str:
    """Say in one line where a checkpoint's weights came from; empty where nothing was noted."""
    return ", ".join(f"{name} {value}" for name, value in origin_of(config).items())
