"""Proximal descent: run it, stop it, return the best iterate, say when it takes long."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields

import torch
from torch import Tensor

from lens_steer.errors import LensSteerWarning, ModelError
from lens_steer.interruption import keeps_on_interrupt
from lens_steer.methods.descent_run import Descent, Loss, Outcome, Rows, Run
from lens_steer.methods.gradient_descent import GradientRun
from lens_steer.methods.quasi_newton_descent import QuasiNewtonRun
from lens_steer.progress import progress_bar
from lens_steer.resumption import Part, digest_of, remembered

_LONG = 600.0  # seconds


def require_gradients(name: str) -> None:
    """Raise ModelError where torch keeps no graphs whatever is asked of it."""
    if torch.is_inference_mode_enabled():
        raise ModelError(f"{name} needs gradients, which torch.inference_mode() rules out: leave it for the fit")


def descend(
    loss: Loss,
    settings: Descent,
    *,
    name: str,
    start: Tensor,
    batches: Iterator[Rows],
    support: Callable[[Tensor], int],
    heldout: Callable[[Tensor], float] | None = None,
    progress: bool = True,
) -> Outcome:
    """Minimise loss + gamma penalty and return the best iterate, never one worse than the identity (all zeros).

    `name` is that of the method, for progress bar and warnings; `support` counts, for the record, what a point edits.
    With held-out texts the best iterate is the one with the smallest held-out loss. The outcome says why the descent
    stopped. Ctrl-C does what `on_interrupt` says. After two steps it warns (LensSteerWarning) if all of them will take
    more than ten minutes. Inside `resumable` an outcome of an earlier call is taken over.
    """

    def compute() -> Part:
        outcome = _descended(
            loss,
            settings,
            name=name,
            start=start,
            batches=batches,
            support=support,
            heldout=heldout,
            progress=progress,
        )
        values = {field.name: getattr(outcome, field.name) for field in fields(outcome) if field.name != "parameters"}
        return Part(values, {"parameters": outcome.parameters})

    of_settings = (settings.steps, settings.optimizer, settings.gamma, settings.lr, settings.tolerance)
    about = {"descent": name, "of": digest_of(start, of_settings)}
    part = remembered(about, compute, keep=lambda part: not part.values["interrupted"])
    return Outcome(parameters=part.tensors["parameters"].to(start.device), **part.values)


def _descended(
    loss: Loss,
    settings: Descent,
    *,
    name: str,
    start: Tensor,
    batches: Iterator[Rows],
    support: Callable[[Tensor], int],
    heldout: Callable[[Tensor], float] | None,
    progress: bool,
) -> Outcome:
    """Run the descent."""
    rule: type[Run] = QuasiNewtonRun if settings.optimizer == "quasi-newton" else GradientRun
    run = rule(loss, settings, start, support, heldout)
    bar = progress_bar(range(settings.steps), desc=name, unit="step", show=progress)
    try:
        begun = time.perf_counter()
        for step in bar:
            ends = run.step(step, next(batches))
            bar.set_postfix(loss=f"{run.last_loss:.4g}", support=support(run.parameters), refresh=False)
            if step == 0:
                begun = time.perf_counter()  # the first step pays for what is made once
            elif step == 1:
                _warn_if_long(name, time.perf_counter() - begun, settings)
            if run.stopped_improving:
                ends = f"the held-out loss did not fall for {settings.patience} evaluations"
            if ends:
                run.best.stopped = ends
                break
        else:
            run.best.stopped = f"all {settings.steps} steps are done"
        run.consider(run.parameters)
    except KeyboardInterrupt:
        if not keeps_on_interrupt():
            raise
        run.best.interrupted, run.best.stopped = True, "interrupted"
        done = f"{len(run.best.history)} of {settings.steps} steps"
        message = f"{name} was interrupted after {done}: this is the best map so far"
        warnings.warn(message, LensSteerWarning, 3)
    return run.best


def _warn_if_long(name: str, seconds: float, settings: Descent) -> None:
    expected = seconds * settings.steps * settings.fits
    if expected > _LONG:
        fits = f"{settings.fits} fits of " if settings.fits > 1 else ""
        warnings.warn(
            f"{name}: {fits}{settings.steps} steps of {seconds:.2g} s take about {_duration(expected)}: take fewer "
            "texts or steps; in Jupyter, interrupting keeps the best map so far",
            LensSteerWarning,
            3,
        )


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds > 5400 else f"{seconds / 60:.0f} minutes"


def draw_rows(counts: tuple[int, int], batch_size: int | None, seed: int) -> Iterator[Rows]:
    """Yield the rows of each step: all, or of source and target texts the next ones of a fresh shuffle."""
    if batch_size is None or batch_size >= max(counts):
        while True:
            yield None
    generator = torch.Generator().manual_seed(seed)
    sides = [_shuffled(count, min(batch_size, count), generator) for count in counts]
    while True:
        source, target = (next(side) for side in sides)
        yield source, target


def _shuffled(count: int, size: int, generator: torch.Generator) -> Iterator[list[int]]:
    while True:
        order = torch.randperm(count, generator=generator).tolist()
        yield from (order[start : start + size] for start in range(0, count - size + 1, size))
