"""The model cache: the folder where `lens-steer get` puts models and `load_model` finds them by name."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError, safe_open

from lens_steer.directories import read_json
from lens_steer.errors import ArtifactError, ModelError
from lens_steer.host.known_models import KNOWN_MODELS, KnownModel

PLACE_VARIABLE = "LENS_STEER_MODELS"


def models_directory() -> Path:
    """Return the folder of the models: `LENS_STEER_MODELS`, else lens_steer/models in the user's cache directory."""
    given = os.environ.get(PLACE_VARIABLE, "").strip()
    if given:
        return Path(given).expanduser()
    caches = os.environ.get("XDG_CACHE_HOME", "").strip()
    return (Path(caches) if Path(caches).is_absolute() else Path.home() / ".cache") / "lens_steer" / "models"


def cached_model(name: str) -> Path:
    """Return the directory of a known model in the cache.

    ModelError where it was not fetched, is damaged, or holds another model; the message says what to run.
    """
    model = KNOWN_MODELS[name]
    place = models_directory() / name
    if not place.exists():
        raise ModelError(
            f"{name} ({model.about}) is not in the model cache, {models_directory()}: run `lens-steer get {name}` "
            f"({model.megabytes} MB; {PLACE_VARIABLE} names another cache)"
        )
    require_model(model, place)
    return place


def require_model(model: KnownModel, place: Path) -> None:
    """Check that a directory holds a known model, whole as far as its headers tell; ModelError otherwise."""
    remedy = f"`lens-steer get {model.name} --again` fetches it anew"
    try:
        config = read_json(place / "config.json")
        weights = sorted(place.glob("*.safetensors"))
        for file in weights:
            with safe_open(file, framework="pt"):
                pass
    except (ArtifactError, OSError, SafetensorError) as error:
        raise ModelError(f"{place} is damaged or only half there ({error}): {remedy}") from error
    if not weights:
        raise ModelError(f"{place} is damaged or only half there (it has no weights): {remedy}")
    expected = (model.model_type, model.layers, model.width)
    named = ("model_type", "num_hidden_layers", "hidden_size")
    values = tuple(config.get(key) for key in named) if isinstance(config, dict) else (None, None, None)
    if values != expected:
        raise ModelError(
            f"{place} holds another model than {model.name}: its config says {values[0]}, {values[1]} layers of "
            f"{values[2]}, not {expected[0]}, {expected[1]} layers of {expected[2]}: move it away, or {remedy}"
        )
