"""The installation and the machine: versions, device, memory, threads, cache and hub."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import psutil
import torch
from packaging.requirements import Requirement
from packaging.version import Version

from lens_steer.cli.doctor.check import Check
from lens_steer.directories import require_free_place
from lens_steer.errors import ModelError, OutputError
from lens_steer.host.known_models import KNOWN_MODELS
from lens_steer.host.model_cache import PLACE_VARIABLE, models_directory, require_model

_NAMED = (
    "lens-steer", "torch", "transformers", "transformer-lens", "numpy", "pandas", "safetensors", "huggingface_hub",
)  # fmt: skip
_LEAST_FREE = 2**28  # bytes: results of one run
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def installed_versions() -> dict[str, str]:
    """Return the versions that a bug report needs, python's first."""
    named = {name: version(name) for name in _NAMED}
    return {"python": ".".join(map(str, sys.version_info[:3])), **named, "system": platform.platform(terse=True)}


def check_versions() -> Iterator[Check]:
    """Hold what is installed against what lens_steer asks for, and name versions that behave in a way of their own."""
    unfit = []
    for line in requires("lens-steer") or []:
        asked = Requirement(line)
        if asked.marker is not None and not asked.marker.evaluate({"extra": ""}):
            continue
        try:
            here = version(asked.name)
        except PackageNotFoundError:
            here = "missing"
        if here == "missing" or not asked.specifier.contains(here, prereleases=True):
            unfit.append(f"{asked.name} {here} (needed: {asked.specifier})")
    if unfit:
        yield Check("versions", "fault", ", ".join(unfit), "run `pip install lens-steer` again")
    else:
        yield Check("versions", "ok", "everything that lens_steer asks for is installed")
    if Version(version("transformer-lens")) < Version("4"):
        detail = f"transformer-lens {version('transformer-lens')} has fewer architectures on its bridge than 4.x"
        yield Check("transformer-lens", "note", detail)


def check_device(device: torch.device) -> Iterator[Check]:
    """Name the device, the memory and the threads, and a torch that was built for another machine."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        where = f"{torch.cuda.get_device_name(device)}, {_gigabytes(free)} of {_gigabytes(total)} free"
    else:
        where = f"{device.type}, {_gigabytes(available_memory(device))} of memory available"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = torch.get_num_threads()
    yield Check("device", "ok", f"{where}, {threads} thread{'s' * (threads != 1)} on {cores} cores")
    if cores and threads > cores:
        detail = f"{threads} threads share {cores} cores, which is slower than one each"
        yield Check("threads", "note", detail, f"set OMP_NUM_THREADS={cores}")
    if torch.version.cuda and not torch.cuda.is_available():
        detail = (
            f"torch was built for CUDA {torch.version.cuda} and there is no GPU that it can use: the CPU does the work"
        )
        yield Check("CUDA", "note", detail, "on a machine without a GPU torch's CPU build is the smaller one")
    if device.type == "cpu" and torch.cuda.is_available():
        yield Check("CUDA", "note", "there is a GPU, and the model is on the CPU", "give --device cuda")


def available_memory(device: torch.device) -> int:
    """Return the bytes that can still be had on a device, within the container's limit where there is one."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    available = int(psutil.virtual_memory().available)
    for limit in map(Path, _CGROUP_LIMITS):
        if limit.is_file() and (given := limit.read_text().strip()).isdigit():
            available = min(available, max(0, int(given) - psutil.Process().memory_info().rss))
    return available


def check_cache() -> Iterator[Check]:
    """Look whether the model cache can be written, has room, and holds whole models."""
    place = models_directory()
    existing = next(folder for folder in (place, *place.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    held = [name for name in KNOWN_MODELS if (place / name).exists()]
    detail = f"{shown_path(place)} ({', '.join(held) or 'empty'}; {_gigabytes(free)} free)"
    damaged = []
    for name in held:
        try:
            require_model(KNOWN_MODELS[name], place / name)
        except ModelError as error:
            damaged.append(str(error))
    try:
        require_free_place(place / ".doctor")
    except OutputError as error:
        yield Check("model cache", "fault", f"{detail}: {error}", f"{PLACE_VARIABLE} names another place")
        return
    needed = max(4 * model.parameters for model in KNOWN_MODELS.values())
    if damaged:
        yield Check("model cache", "fault", "; ".join(damaged))
    elif free < _LEAST_FREE:
        yield Check("model cache", "fault", f"no space is left: {detail}", f"make room, or {PLACE_VARIABLE}=PLACE")
    elif free < needed:
        yield Check("model cache", "note", f"{detail}: too little for every model of `lens-steer get`")
    else:
        yield Check("model cache", "ok", detail)
    offline = [name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(name, "") not in ("", "0")]
    if offline:
        yield Check("hub", "note", f"{' and '.join(offline)} set: of hub names only those in the cache load")


def shown_path(place: Path) -> str:
    """Write a place below the home directory from there on."""
    try:
        return str(Path("~") / place.relative_to(Path.home()))
    except (ValueError, RuntimeError):
        return str(place)


def _gigabytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
