"""Plans: what a run would take, from counts of what is in hand and two batches that are run; nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from torch import nn

from lens_steer.activations.given import labelled
from lens_steer.activations.pooled_rows import PooledRows
from lens_steer.activations.pooling import Pool, checked_pool
from lens_steer.activations.sketch import Sketching
from lens_steer.errors import SettingError
from lens_steer.host.adapter import host_of
from lens_steer.host.guards import require_eval
from lens_steer.host.padding import most_pads
from lens_steer.host.sites import Site, SitePattern, find_sites
from lens_steer.host.tokens import TokenBatch, Tokens, checked_batch_size, tokenize
from lens_steer.host.trunk import trunk
from lens_steer.processes import process_count
from lens_steer.settings import require_settings
from lens_steer.texts.contrast import ContrastSet, LabelledTexts

if TYPE_CHECKING:
    import pandas as pd

_DTYPES = {"float32": 4, "float16": 2, "bfloat16": 2}
_MOMENTS = 16  # bytes per unit, concept and side of its two token sums


@dataclass(frozen=True)
class RunPlan:
    """What a run over texts would take.

    Attributes
    ----------
    texts, tokens, longest:
        Counted: texts, their tokens, and those of the longest, as the model's tokenizer has them and its context cuts
        them.
    padded:
        Tokens that are run, padding included.
    sites, units:
        What is read.
    batches, passes, forwards:
        Batches of one pass, how often the texts pass (a backward pass counts as two forwards), and their product.
    weights, kept, disk:
        Bytes of the model's weights on its device; of what the run keeps in memory beside one batch; and of its store.
    peak:
        Bytes above the weights while the longest batch ran, on CUDA; None elsewhere, where nothing counts them.
    seconds:
        Measured on two batches, the one of the longest texts and a middle one.
    minutes:
        Expected of the whole run: the seconds per padded token of both batches, times all padded tokens and passes,
        shared by the processes.
    processes:
        How many share the batches.

    """

    texts: int
    tokens: int
    longest: int
    padded: int
    sites: int
    units: int
    batches: int
    passes: int
    forwards: int
    weights: int
    kept: int
    disk: int
    peak: int | None
    seconds: tuple[float, float]
    minutes: float
    processes: int

    @property
    def frame(self) -> pd.DataFrame:
        """One row per quantity: what, value (as a text with its unit), measured or counted."""
        import pandas as pd

        peak = "not measured on this device" if self.peak is None else _bytes(self.peak)
        share = 1 - self.tokens / self.padded
        rows = [
            ("texts", f"{self.texts:,}", "counted"),
            (
                "tokens",
                f"{self.tokens:,}, the longest text {self.longest:,}; {share:.1%} of a pass are pads",
                "counted",
            ),
            ("units", f"{self.units:,} at {self.sites} sites", "counted"),
            ("forwards", f"{self.forwards:,}: {self.batches:,} batches, {self.passes} pass(es)", "counted"),
            ("weights on the device", _bytes(self.weights), "counted"),
            ("longest batch on the device", peak, "measured" if self.peak is not None else ""),
            ("kept in memory", _bytes(self.kept), "counted"),
            ("on disk", _bytes(self.disk), "counted"),
            ("seconds per batch", " and ".join(f"{one:.3g}" for one in self.seconds), "measured"),
            ("expected minutes", f"{self.minutes:.3g} with {self.processes} process(es)", "extrapolated"),
        ]
        return pd.DataFrame(rows, columns=["what", "value", "how"])

    def __repr__(self) -> str:
        return self.frame.to_string(index=False, header=False)

    def _repr_html_(self) -> str:
        html: str = self.frame.to_html(index=False)
        return html


def plan(
    model: nn.Module,
    contrast: ContrastSet | LabelledTexts,
    sites: SitePattern = "mlp.hook_post",
    *,
    pool: Pool = "max",
    batch_size: int | None = None,
    reduce: str | Sketching | None = None,
    store: bool = False,
    store_dtype: str = "float32",
    passes: int = 1,
) -> RunPlan:
    """Say what `collect` of these arguments would take; tokenises all texts, runs three batches, writes nothing.

    Parameters
    ----------
    model, contrast, sites, pool, batch_size, reduce, store_dtype:
        As `collect` takes them.
    store:
        Whether the values go to disk.
    passes:
        How often the run passes over the texts: 1 of `collect`, and of a ranking.

    Raises
    ------
    SettingError
        Passes below 1, no such pool or dtype; and what `find_sites` and `tokenize` refuse.

    """
    require_settings(plan, locals())
    require_eval(model)
    checked_pool(pool)
    if passes < 1 or store_dtype not in _DTYPES:
        raise SettingError(f"passes are 1 or more and store_dtype one of {', '.join(_DTYPES)}")
    size = checked_batch_size(batch_size)
    texts = labelled(contrast)
    chosen = find_sites(model, sites)
    tokens = tokenize(model, texts.texts, chat=texts.chat)
    batches = list(tokens.batch_rows(size, most_pads=None if reduce else most_pads(model)))
    padded = [len(rows) * max(len(tokens.ids[row]) for row in rows) for rows in batches]
    seconds, peak, run = _measured(model, tokens, batches, chosen, pool, texts)
    concepts, units = len(texts.concepts), sum(site.width for site in chosen)
    values = len(texts.texts) * units
    sketching = reduce if isinstance(reduce, Sketching) else Sketching() if reduce else None
    moments = 2 * concepts * units * _MOMENTS
    counts = 0 if sketching is None else 4 * concepts * units * (4 * sketching.bins + 24) + 4 * units * sketching.bins
    kept = counts or (moments if store else values * 4 + moments)
    return RunPlan(
        texts=len(texts.texts),
        tokens=sum(tokens.lengths),
        longest=max(tokens.lengths),
        padded=sum(padded),
        sites=len(chosen),
        units=units,
        batches=len(batches),
        passes=passes,
        forwards=len(batches) * passes,
        weights=sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()),
        kept=kept,
        disk=0 if not store else counts or values * _DTYPES[store_dtype],
        peak=peak,
        seconds=seconds,
        minutes=sum(seconds) / run * sum(padded) * passes / process_count() / 60,
        processes=process_count(),
    )


def _measured(
    model: nn.Module,
    tokens: Tokens,
    batches: Sequence[list[int]],
    sites: tuple[Site, ...],
    pool: Pool,
    texts: LabelledTexts,
) -> tuple[tuple[float, float], int | None, int]:
    """Return the seconds of the first and a middle batch, peak bytes of the first, and the padded tokens of both."""
    device = host_of(model).device
    chosen = [batches[0], batches[len(batches) // 2]]
    run_rows = sorted({row for one in (*chosen, batches[-1]) for row in one})
    rows = PooledRows(sites, torch.from_numpy(texts.labels.copy()), pool, run_rows)
    cuda = device.type == "cuda"
    seconds, ready, peak = [], [tokens.batch(one) for one in chosen], None
    with torch.no_grad(), trunk(model, rows.visits) as run:

        def timed(batch: TokenBatch) -> float:
            began = perf_counter()
            on_device = batch.to(device)
            rows.begin(list(batch.rows), on_device)
            run(on_device)
            if cuda:
                torch.cuda.synchronize(device)
            return perf_counter() - began

        timed(tokens.batch(batches[-1]))  # the first forward of a model is slower than all others
        for batch in ready:
            if cuda:
                torch.cuda.reset_peak_memory_stats(device)
                before = torch.cuda.memory_allocated(device)
            seconds.append(timed(batch))
            if cuda and peak is None:
                peak = torch.cuda.max_memory_allocated(device) - before
    return (seconds[0], seconds[1]), peak, sum(batch.ids.numel() for batch in ready)


def _bytes(count: int) -> str:
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.3g} {unit}"
        amount /= 1024
    return f"{amount:,.3g} TiB"
