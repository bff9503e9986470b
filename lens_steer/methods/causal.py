"""Causal estimation in one pass: a site's map is fitted to texts that have passed the maps of all earlier sites.

All batches walk through the trunk together. Each halts inside its forward pass at every site, until the last one has
arrived there and the site's map is fitted to all of them; then it walks on through that map. A forward pass can be
halted because each has a thread of its own; the threads take turns, and only one walks at a time, so nothing is
computed at once that the model would have to keep apart. The activations of all texts at one site are alive together.

The plain way runs all texts once for every site under the maps so far, which costs sites / 2 times as much. A thread
inherits neither autocast nor the current CUDA stream: both are those of a fresh thread.
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

_MOST_WALKS = 128  # each is a thread of the operating system

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
    walks = []
    listed = list(tokens.batches(batch_size))
    if len(listed) > _MOST_WALKS:  # a thread each: fewer, larger batches
        listed = list(tokens.batches(math.ceil(len(tokens) / _MOST_WALKS)))
    for rows, batch in listed:
        moved = None if moves == "both" else is_source[rows].to(device)
        walks.append(_Walk(model, rows, batch.to(device), moved, pool, maps))
    with _setting_out(model, sites, walks):
        for site in sites:
            values = torch.empty(len(tokens), site.width)
            for walk in walks:
                values[walk.rows] = walk.to(site)
            if not bool(torch.isfinite(values).all()):
                raise ActivationError(
                    f"{site.name} is not finite behind the maps of the {len(maps)} earlier sites: edit fewer sites, or "
                    'use support="observed"'
                )
            maps[site] = fit_map(values[is_source], values[~is_source])
    return maps


class _CalledOffError(Exception):
    """Ends a forward pass that nobody waits for any more."""


class _Walk:
    """One batch on its way through the trunk, on a thread of its own that runs only while `to` waits for it."""

    def __init__(
        self,
        model: nn.Module,
        rows: list[int],
        batch: TokenBatch,
        moved: Bool[Tensor, " text"] | None,
        pool: Pool,
        maps: Mapping[Site, ActivationMap],
    ) -> None:
        self.rows = rows
        self._model, self._batch, self._moved, self._maps = model, batch, moved, maps
        self._pool: Pool = pool
        self._at: Site | None = None
        self._pooled = torch.empty(0)
        self._error: BaseException | None = None
        self._called_off = False
        self._go, self._halted = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name=f"walk of {len(rows)} texts", daemon=True)

    def to(self, site: Site) -> Float[Tensor, "text unit"]:
        """Walk on to `site` and return what is pooled there."""
        if self._thread.ident is None:
            self._thread.start()
        self._go.release()
        self._halted.acquire()
        if self._error is not None:
            raise self._error
        if self._at != site:
            raise SiteError(f"{site.name} did not fire in a forward pass, or not in its place")
        return self._pooled

    def visit(self, site: Site, activation: Float[Tensor, "text pos unit"]) -> Float[Tensor, "text pos unit"]:
        """Halt at a site until its map is fitted, and return the mapped activation."""
        self._at = site
        self._pooled = TokenPool(self._batch.pooled)(activation, self._pool).cpu()
        self._halted.release()
        self._wait()
        mapped: Tensor = self._maps[site](activation)
        return mapped if self._moved is None else torch.where(self._moved[:, None, None], mapped, activation)

    def call_off(self) -> None:
        """Let the forward pass end where it stands."""
        self._called_off = True
        self._go.release()
        if self._thread.ident is not None:
            self._thread.join()

    def _wait(self) -> None:
        self._go.acquire()
        if self._called_off:
            raise _CalledOffError

    def _run(self) -> None:
        _here.walk = self
        try:
            self._wait()
            with (
                torch.no_grad(),
                announced_texts(self._batch.rows, self._batch.prompt_lengths),
            ):  # a thread inherits neither
                host_of(self._model).trunk(self._batch.ids, self._batch.mask)
            self._at = None
        except _CalledOffError:
            pass
        except BaseException as error:  # raised again where somebody waits
            self._error = error
        finally:
            self._halted.release()


_here = threading.local()  # the walk of the thread that asks, because hooks hang on modules that all threads share


@contextmanager
def _setting_out(model: nn.Module, sites: Sequence[Site], walks: Sequence[_Walk]) -> Iterator[None]:
    """Hang the visits on the sites; on leaving, however that comes, every walk has ended."""

    def hook_of(site: Site) -> Callable[..., Tensor | None]:
        def visit(activation: Tensor) -> Tensor | None:
            walk: _Walk | None = getattr(_here, "walk", None)
            return None if walk is None else walk.visit(site, activation)

        return as_hook(visit)

    with taking_turns(model), host_of(model).hooks((site.name, hook_of(site)) for site in sites):
        try:
            yield
        finally:
            for walk in walks:
                walk.call_off()
