"""Long jobs that go on after a kill: finished parts (descents, evaluations) lie beside the result until it is there.

A part is remembered under the order in which it was asked for and what it was computed from, so that a repetition of
the same call takes it over and computes the rest; the result is the same, bit for bit, as without a kill.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lens_steer.directories import plain, replace_file
from lens_steer.errors import LensSteerWarning, OutputError
from lens_steer.host.fingerprint import model_fingerprint
from lens_steer.settings import require_settings

_RESULT_DEPENDS_ON = ("lens-steer", "transformer-lens", "transformers", "torch")


@dataclass(frozen=True)
class Part:
    """What a finished part comes to: plain values (nan too), and tensors."""

    values: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass
class _Parts:
    """The finished parts of one call, in a hidden directory that appears with the first of them."""

    place: Path
    asked: int = 0
    taken: int = 0
    stored: int = 0

    def part(self, about: Mapping[str, Any], compute: Callable[[], Part], keep: Callable[[Part], bool]) -> Part:
        path, origin = self.place / f"{self.asked:04d}.safetensors", json.dumps(plain(about), sort_keys=True)
        self.asked += 1
        before = _read(path, origin)
        if before is not None:
            self.taken += 1
            return before
        part = compute()
        if keep(part):
            self._store(path, origin, part)
        return part

    def _store(self, path: Path, origin: str, part: Part) -> None:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in part.tensors.items()}
        about = {"origin": origin, "values": json.dumps(dict(part.values))}
        try:
            replace_file(path, lambda place: save_file(tensors, place, metadata=about))
            self.stored += 1
        except OutputError as error:  # the work itself can go on
            warnings.warn(f"what is finished is not kept for a resumption: {error}", LensSteerWarning, stacklevel=2)


def _read(path: Path, origin: str) -> Part | None:
    """Return a stored part; None where there is none that came of `origin`, or it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            if about.get("origin") != origin:
                return None
            return Part(json.loads(about["values"]), {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


_PARTS: ContextVar[_Parts | None] = ContextVar("parts", default=None)


@contextmanager
def resumable(out: str | Path, *, model: nn.Module, plan: Mapping[str, Any]) -> Iterator[None]:
    """Keep the finished parts of what runs inside until it has ended well, and take over those of an earlier call.

    Parts: every descent of LinEAS and LoReFT (so each share of a path, the choice and the refit), and every evaluation
    of an edit. They lie in a hidden directory beside `out`, whose name has the hash of `plan` (all that the result
    depends on), of the model's fingerprint and of the versions: another call meets none of them. Warns
    (LensSteerWarning) of parts that are taken over, and, where the work is broken off, of those that are kept.
    """
    require_settings(resumable, locals())
    final = Path(out).resolve()
    whole = {"plan": plan, "model": model_fingerprint(model).content()}
    whole["versions"] = {name: version(name) for name in _RESULT_DEPENDS_ON}
    digest = hashlib.sha256(json.dumps(plain(whole), sort_keys=True).encode()).hexdigest()[:12]
    parts = _Parts(final.with_name(f".{final.name}-unfinished-{digest}"))
    if (earlier := len(list(parts.place.glob("*.safetensors")))) > 0:
        _warn(f"going on from {_count(earlier)} of an earlier call, in {parts.place}")
    token = _PARTS.set(parts)
    try:
        yield
    except BaseException:
        if parts.taken + parts.stored:
            _warn(f"{_count(parts.taken + parts.stored)} kept in {parts.place}: the same call goes on from there")
        raise
    finally:
        _PARTS.reset(token)
    shutil.rmtree(parts.place, ignore_errors=True)


def remembered(
    about: Mapping[str, Any], compute: Callable[[], Part], *, keep: Callable[[Part], bool] = lambda part: True
) -> Part:
    """Return what an earlier, killed call came to from the same `about`, or compute it and keep it for a later one.

    Outside of `resumable` it is computed. `keep` says whether a part is whole.
    """
    parts = _PARTS.get()
    return compute() if parts is None else parts.part(about, compute, keep)


def digest_of(*values: Any) -> str:
    """Return a short hash of tensors and plain values, for `about`."""
    digest = hashlib.sha256()
    for value in values:
        if isinstance(value, Tensor):
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        else:
            digest.update(json.dumps(plain(value), sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _count(parts: int) -> str:
    return f"{parts} finished part{'s' * (parts != 1)}"


def _warn(message: str) -> None:
    warnings.warn(message, LensSteerWarning, stacklevel=4)
