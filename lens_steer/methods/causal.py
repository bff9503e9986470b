"""Causal estimation in one pass: each site's map is fitted to texts that have been through the maps of earlier sites.

The plain way runs all texts again for every site, under the maps fitted so far: half as many passes as there are sites.
Here every text runs once. The forward pass of each batch is paused at every site, until all batches have arrived there
and the site's map is fitted to them; then it goes on, through that map.

What can pause a forward pass is a hook that blocks, so every batch runs on a thread of its own. The threads take turns:
one runs until it pauses again, while all others wait, so nothing runs in parallel and no result depends on timing.
A new thread inherits neither autocast nor the current CUDA stream: batches run without the one, on the default of the
other. The activations of all texts at one site are in memory together.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lens_steer.activations.pooling import Pool, TokenPool
from lens_steer.errors import ActivationError, SiteError
from lens_steer.host.adapter import host_of
from lens_steer.host.clock import announced_texts
from lens_steer.host.guards import check_edit_sites
from lens_steer.host.sites import Site
from lens_steer.host.tokens import TokenBatch, tokenize
from lens_steer.host.trunk import as_hook
from lens_steer.host.turns import taking_turns
from lens_steer.interventions.maps import ActivationMap
from lens_steer.texts.contrast import ContrastSet

Moves = Literal["both", "source"]
"""Which texts pass the maps of earlier sites: all of them, or the source alone."""

_MOST_THREADS = 128

FitMap = Callable[[Float[Tensor, "n unit"], Float[Tensor, "m unit"]], ActivationMap]
"""Fits the map of one site to pooled source and target activations."""


def fit_causally(
    model: nn.Module,
    contrast: ContrastSet,
    sites: Sequence[Site],
    fit_map: FitMap,
    *,
    pool: Pool,
    moves: Moves,
    batch_size: int | None = None,
) -> dict[Site, ActivationMap]:
    """Fit a map at each of `sites`, which are in the order of a forward pass; every text passes the trunk once.

    Equal to collecting and fitting site by site under the maps found so far. ActivationError if those maps drive a
    later site out of range; whatever else a forward pass raises is raised here. `batch_size` is raised where there
    would be more than 128 batches, because each needs a thread.
    """
    check_edit_sites(model, sites)
    texts = contrast.labelled
    tokens = tokenize(model, texts.texts, chat=texts.chat)
    is_source = torch.from_numpy(texts.labels[:, 0] == 1)
    device = host_of(model).device
    maps: dict[Site, ActivationMap] = {}
    batches = list(tokens.batches(batch_size))
    if len(batches) > _MOST_THREADS:
        batches = list(tokens.batches(math.ceil(len(tokens) / _MOST_THREADS)))
    passes = []
    for rows, batch in batches:
        mapped_rows = None if moves == "both" else is_source[rows].to(device)
        passes.append(_PausedPass(model, rows, batch.to(device), mapped_rows, pool, maps))
    with _pausing(model, sites, passes):
        for site in sites:
            pooled = torch.empty(len(tokens), site.width)
            for one in passes:
                pooled[one.rows] = one.run_to(site)
            if not bool(torch.isfinite(pooled).all()):
                raise ActivationError(
                    f"{site.name} is not finite behind the maps of the {len(maps)} earlier sites: edit fewer sites, or "
                    'use support="observed"'
                )
            maps[site] = fit_map(pooled[is_source], pooled[~is_source])
    return maps


class _AbandonedError(Exception):
    """Ends a forward pass in the middle, when nobody waits for its result any more."""


class _PausedPass:
    """The forward pass of one batch, on a thread that runs only while `run_to` waits for it.

    Two semaphores hand the turn to and fro: `_resume` lets the thread run, `_paused` tells that it has stopped again,
    at a site or for good. `run_to` and `abandon` are called by the thread that fits, `pause_at` by a hook in the pass.
    """

    def __init__(
        self,
        model: nn.Module,
        rows: list[int],
        batch: TokenBatch,
        mapped_rows: Bool[Tensor, " text"] | None,
        pool: Pool,
        maps: Mapping[Site, ActivationMap],
    ) -> None:
        """`mapped_rows` are those that the maps act on, None for all; `maps` is filled while the pass is paused."""
        self.rows = rows
        self._model, self._batch, self._mapped_rows, self._maps = model, batch, mapped_rows, maps
        self._pool: Pool = pool
        self._paused_at: Site | None = None
        self._pooled = torch.empty(0)
        self._error: BaseException | None = None
        self._abandoned = False
        self._resume, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name=f"causal fit, {len(rows)} texts", daemon=True)

    def run_to(self, site: Site) -> Float[Tensor, "text unit"]:
        """Run on until the pass pauses at `site`, and return the pooled activations there, not mapped yet."""
        if self._thread.ident is None:
            self._thread.start()
        self._resume.release()
        self._paused.acquire()
        if self._error is not None:
            raise self._error
        if self._paused_at != site:
            raise SiteError(f"{site.name} did not fire in a forward pass, or not in its place")
        return self._pooled

    def pause_at(self, site: Site, activation: Float[Tensor, "text pos unit"]) -> Float[Tensor, "text pos unit"]:
        """Pause until the map of `site` is fitted, and return the mapped activation."""
        self._paused_at = site
        self._pooled = TokenPool(self._batch.pooled)(activation, self._pool).cpu()
        self._paused.release()
        self._wait_for_turn()
        mapped: Tensor = self._maps[site](activation)
        if self._mapped_rows is None:
            return mapped
        return torch.where(self._mapped_rows[:, None, None], mapped, activation)

    def abandon(self) -> None:
        """End the pass where it stands, and its thread; nothing happens to one that has ended."""
        self._abandoned = True
        self._resume.release()
        if self._thread.ident is not None:
            self._thread.join()

    def _wait_for_turn(self) -> None:
        self._resume.acquire()
        if self._abandoned:
            raise _AbandonedError

    def _run(self) -> None:
        _of_this_thread.forward_pass = self
        try:
            self._wait_for_turn()
            texts = announced_texts(self._batch.rows, self._batch.prompt_lengths)
            with torch.no_grad(), texts:  # a thread inherits neither from the one that started it
                host_of(self._model).trunk(self._batch.ids, self._batch.mask)
            self._paused_at = None
        except _AbandonedError:
            pass
        except BaseException as error:  # `run_to` raises it again, in the thread that fits
            self._error = error
        finally:
            self._paused.release()


# Hooks hang on modules, which all threads share: a hook finds its pass by the thread that runs it.
_of_this_thread = threading.local()


@contextmanager
def _pausing(model: nn.Module, sites: Sequence[Site], passes: Sequence[_PausedPass]) -> Iterator[None]:
    """Let the passes pause at the sites; when the context is left, in whatever way, all of their threads have ended."""

    def hook_at(site: Site) -> Callable[..., Tensor | None]:
        def pause(activation: Tensor) -> Tensor | None:
            own: _PausedPass | None = getattr(_of_this_thread, "forward_pass", None)
            return None if own is None else own.pause_at(site, activation)

        return as_hook(pause)

    with taking_turns(model), host_of(model).hooks((site.name, hook_at(site)) for site in sites):
        try:
            yield
        finally:
            for one in passes:
                one.abandon()
