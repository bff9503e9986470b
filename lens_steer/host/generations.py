"""Generations: the hosts' own calls that generate, announced to the clocks for as long as they run.

A forward pass does not tell a step of a generation from a text that is one token longer than the last; the call that
makes it does. While a clock listens, these calls go through a wrapper on the model object, taken off with the last
clock.
"""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from lens_steer.host.adapter import BridgeHost, Host


class Generation:
    """One call that generates: where its prompt ends, as far as the call says.

    Attributes
    ----------
    width:
        Columns of the prompt, pads and what a cache holds of it included; None until the first pass has shown it.
    mask:
        Which of these columns are real, as the call was told; None where the passes themselves say.
    ids:
        The prompt's ids, as the call was given them.
    without_ids:
        Whether the prompt was given as embeddings, so that its end is never known.

    """

    def __init__(
        self,
        host: Host,
        *,
        ids: Int[Tensor, "text pos"] | None = None,
        mask: Shaped[Tensor, "text column"] | None = None,
        without_ids: bool = False,
    ) -> None:
        self.host, self.ids, self.mask, self.without_ids = host, ids, mask, without_ids
        widest = [tensor.shape[1] for tensor in (ids, mask) if tensor is not None]
        # With a cache kept from an earlier turn the call may be given the new ids alone; the mask then covers all.
        self.width = max(widest) if ids is not None else None

    def goes_on_with(self, ids: Int[Tensor, "text pos"] | None) -> bool:
        """Whether a call inside this one drafts for it: its prompt is this one's and what was generated so far."""
        if self.ids is None or ids is None or ids.shape[1] < self.ids.shape[1] or len(ids) != len(self.ids):
            return False
        return torch.equal(ids[:, : self.ids.shape[1]], self.ids)


_RUNNING: ContextVar[Generation | None] = ContextVar("generation", default=None)


def running(host: Host) -> Generation | None:
    """Return the generation of this host that is under way in this thread."""
    generation = _RUNNING.get()
    return generation if generation is not None and generation.host is host else None


@contextmanager
def announced(generation: Generation) -> Iterator[None]:
    """Announce a generation to the clocks of its host; it holds for this thread."""
    outer = running(generation.host)
    token = _RUNNING.set(outer if outer is not None and outer.goes_on_with(generation.ids) else generation)
    try:
        yield
    finally:
        _RUNNING.reset(token)


def _of_hugging_face(host: Host, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Generation:
    ids = args[0] if args else kwargs.get("inputs", kwargs.get("input_ids"))
    mask = kwargs.get("attention_mask")
    flat = isinstance(mask, Tensor) and mask.ndim == 2
    whole = isinstance(ids, Tensor) and ids.ndim == 2
    return Generation(
        host,
        ids=ids if whole else None,
        mask=mask if flat else None,
        without_ids=kwargs.get("inputs_embeds") is not None,
    )


def _of_transformer_lens(host: Host, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Generation:
    """Of a call that may take text and pad it: its first pass shows the prompt, and every pass its mask."""
    return Generation(host)


Reader = Callable[[Host, tuple[Any, ...], dict[str, Any]], Generation]


def _calls(host: Host) -> list[tuple[Any, str, Reader]]:
    """Return (object, method, what reads its arguments) of every call by which a host generates."""
    own = [(host.model, name, _of_transformer_lens) for name in ("generate", "generate_stream")]
    if isinstance(host, BridgeHost):
        own.append((host.model.original_model, "generate", _of_hugging_face))
    return [call for call in own if callable(getattr(call[0], call[1], None))]


def _wrapper(host: weakref.ref[Host], call: Callable[..., Any], read: Reader) -> Callable[..., Any]:
    def generation(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Generation:
        alive = host()
        assert alive is not None  # it lives as long as its model, whose method this is
        return read(alive, args, kwargs)

    @functools.wraps(call)
    def announcing(*args: Any, **kwargs: Any) -> Any:
        with announced(generation(args, kwargs)):
            return call(*args, **kwargs)

    @functools.wraps(call)
    def streaming(*args: Any, **kwargs: Any) -> Iterator[Any]:
        # Between two pieces the caller may run what it likes: only the making of a piece is part of the generation.
        under_way, pieces = generation(args, kwargs), call(*args, **kwargs)
        while True:
            with announced(under_way):
                try:
                    piece = next(pieces)
                except StopIteration:
                    return
            yield piece

    return streaming if inspect.isgeneratorfunction(inspect.unwrap(call)) else announcing


class _Wrappers:
    """The wrappers on one host's calls, and how many clocks want them."""

    def __init__(self) -> None:
        self.listeners = 0
        self.restore: list[Callable[[], object]] = []

    def put_on(self, host: Host) -> None:
        for owner, name, read in _calls(host):
            before = owner.__dict__.get(name)
            owner.__dict__[name] = _wrapper(weakref.ref(host), getattr(owner, name), read)
            undo = functools.partial(owner.__dict__.pop, name)
            if before is not None:
                undo = functools.partial(owner.__dict__.__setitem__, name, before)
            self.restore.append(undo)

    def take_off(self) -> None:
        for undo in self.restore:
            undo()
        self.restore.clear()


_WRAPPERS: weakref.WeakKeyDictionary[Host, _Wrappers] = weakref.WeakKeyDictionary()
_COUNTING = threading.Lock()


class Listening:
    """From its making to `remove`, the generations of a host are announced."""

    def __init__(self, host: Host) -> None:
        with _COUNTING:
            self._wrappers = _WRAPPERS.setdefault(host, _Wrappers())
            self._wrappers.listeners += 1
            if self._wrappers.listeners == 1:
                self._wrappers.put_on(host)

    def remove(self) -> None:
        """Stop listening; with the last listener the calls are as before."""
        with _COUNTING:
            self._wrappers.listeners -= 1
            if self._wrappers.listeners == 0:
                self._wrappers.take_off()
