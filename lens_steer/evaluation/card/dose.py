"""Dose: how far an edit writes beside what is there, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lens_steer.evaluation.card.measured import Item, Measured
from lens_steer.host.adapter import host_of
from lens_steer.host.attach import Write, attach
from lens_steer.host.clock import ForwardPass
from lens_steer.host.sites import Site, find_sites
from lens_steer.host.stream_writes import IntoStream, into_stream, is_stream
from lens_steer.host.tokens import TokenBatch, Tokens, tokenize
from lens_steer.host.trunk import Visit, run_texts
from lens_steer.interventions.intervention import Intervention
from lens_steer.interventions.touched import Touched
from lens_steer.interventions.writes import writes_of
from lens_steer.texts.contrast import ChatFormat, Row

_TAIL = 0.99


@dataclass(frozen=True, eq=False)
class Dose:
    """The norms of one edit's writes at the real tokens of texts, and of what they are written into.

    `in_stream`: both are of the residual stream of the edit's layer; otherwise of the site itself.
    """

    site: Site
    write: Float[np.ndarray, " token"]
    into: Float[np.ndarray, " token"]
    in_stream: bool

    @property
    def size(self) -> float:
        """The root mean square of the write's norm over tokens."""
        return float(np.sqrt(np.square(self.write).mean()))

    @property
    def ratio(self) -> Float[np.ndarray, " token"]:
        """Norm of the write over norm of what it is written into."""
        return np.asarray(np.divide(self.write, self.into, out=np.zeros_like(self.write), where=self.into > 0))


class DoseReader:
    """Texts on which writes are measured; the unedited model runs them once for each set of sites."""

    def __init__(self, model: nn.Module, rows: Sequence[Row], *, chat: ChatFormat, batch_size: int | None) -> None:
        self._model, self._batch_size = model, batch_size
        self._tokens: Tokens = tokenize(model, rows, chat=chat)
        self._unedited: dict[str, Float[np.ndarray, " token"]] = {}

    def read(self, edit: Intervention) -> tuple[Dose, ...]:
        """Return the dose of every edit in turn; special tokens such as BOS do not count."""
        host = host_of(self._model)
        streams = {one.site: into_stream(host, one.site) for one in edit.edits}
        beside = {site: self._beside(site, route is not None) for site, route in streams.items()}
        self._read_unedited(set(beside.values()))
        routes = [streams[one.site] for one in edit.edits]
        norms: list[list[Tensor]] = [[] for _ in edit.edits]
        writes = writes_of(edit.edits, 1.0, Touched(edit.edits))
        watched = _watched(edit, writes, routes, norms)
        with attach(self._model, watched):
            self._run([self._behind(edit)], norms)
        return tuple(
            Dose(one.site, torch.cat(norm).double().numpy(), self._unedited[beside[one.site].name], route is not None)
            for one, norm, route in zip(edit.edits, norms, routes, strict=True)
        )

    def _beside(self, site: Site, in_stream: bool) -> Site:
        """Return where the norm is read that a write is held against."""
        if not in_stream or is_stream(host_of(self._model), site):
            return site
        (stream,) = find_sites(self._model, f"blocks.{site.layer}.hook_resid_post")
        return stream

    def _behind(self, edit: Intervention) -> Site:
        """Return the stream behind the last edit, where a pass may end."""
        (last,) = find_sites(self._model, f"blocks.{max(site.layer for site in edit.sites)}.hook_resid_post")
        return last

    def _read_unedited(self, sites: set[Site]) -> None:
        missing = sorted(site for site in sites if site.name not in self._unedited)
        if missing:
            norms = self._run(missing, [])
            self._unedited |= {name: torch.cat(parts).double().numpy() for name, parts in norms.items()}

    def _run(self, sites: Sequence[Site], pending: list[list[Tensor]]) -> dict[str, list[Tensor]]:
        """Run all texts; keep norms at `sites`, and of what `pending` gained in a pass, of pooled tokens alone."""
        norms: dict[str, list[Tensor]] = {site.name: [] for site in sites}
        last = max(sites, key=lambda site: host_of(self._model).firing_order(site.name))

        def reader(site: Site) -> Visit:
            def read(activation: Tensor, batch: TokenBatch) -> None:
                real = batch.pooled.to(activation.device)
                norms[site.name].append(activation.float().norm(dim=-1)[real].cpu())
                if site == last:
                    for parts in pending:
                        parts[-1] = parts[-1][batch.pooled.cpu()]

            return read

        run_texts(self._model, self._tokens, {site: reader(site) for site in sites}, self._batch_size)
        return norms


def _watched(
    edit: Intervention, writes: Sequence[tuple[Site, Write]], routes: list[IntoStream | None], norms: list[list[Tensor]]
) -> list[tuple[Site, Write]]:
    """Return the same writes, of which those of edits note how far they write; readers of gates are let be."""
    numbers: list[int | None] = []
    gates = []
    for number, one in enumerate(edit.edits):
        if one.gate is not None and one.gate not in gates:
            gates.append(one.gate)
            numbers.append(None)
        numbers.append(number)

    def watch(write: Write, number: int) -> Write:
        route = routes[number]

        def written(flat: Tensor, forward: ForwardPass | None) -> Tensor | None:
            after = write(flat, forward)
            new = flat if after is None else after
            moved = new - flat if route is None else route(new) - route(flat)
            norms[number].append(moved.float().norm(dim=-1).cpu())
            return after

        return written

    return [
        (site, write if number is None else watch(write, number))
        for (site, write), number in zip(writes, numbers, strict=True)
    ]


def dose_item(doses: Sequence[Dose]) -> Item:
    """Say per edit how large its writes are beside what they are written into; edits that never write are left out."""
    rows = []
    for dose in [dose for dose in doses if dose.write.any()] or doses[:1]:
        at_work = dose.ratio[dose.write > 0]
        beside = "the stream" if dose.in_stream else "the site itself"
        values = (float(at_work.mean()), float(np.quantile(at_work, _TAIL))) if len(at_work) else (0.0, 0.0)
        for measure, value in zip(("dose", "dose, 99th percentile"), values, strict=True):
            rows.append(
                Measured("dose", measure, value, null=0.0, of=dose.site.name, unit=f"times the norm of {beside}",
                         interval=False)
            )  # fmt: skip
        rows.append(
            Measured("dose", "tokens written", len(at_work) / max(1, len(dose.ratio)), null=0.0, of=dose.site.name,
                     unit="share of tokens", interval=False)
        )  # fmt: skip
    return Item(tuple(rows), (_sentence(rows),))


def _sentence(rows: Sequence[Measured]) -> str:
    means = [row for row in rows if row.measure == "dose"]
    largest = max(means, key=lambda row: row.value)
    tail = next(row for row in rows if row.of == largest.of and row.measure == "dose, 99th percentile")
    beside = largest.unit.removeprefix("times the norm of ")
    more = "" if len(means) == 1 else f"; that is the largest dose of {len(means)} edits"
    return (
        f"At {largest.of} a write has {largest.value:.2g} times the norm of {beside}, and {tail.value:.2g} times or "
        f"more at one token in a hundred{more}."
    )
