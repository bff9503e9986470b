"""A LinEAS step against a bare forward and backward of the same texts, and its memory in the number of texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lens_steer.activations.whole_texts import pool_texts
from lens_steer.host.adapter import host_of
from lens_steer.host.load import load_model
from lens_steer.host.sites import find_sites
from lens_steer.host.tokens import tokenize
from lens_steer.host.trunk import frozen
from lens_steer.methods.descent import descend
from lens_steer.methods.descent_run import Descent
from lens_steer.methods.end_to_end import EndToEndLoss
from lens_steer.methods.sparse_group_lasso import SparseGroupLasso
from lens_steer.texts.contrast import ContrastSet
from lens_steer.texts.readers import read_contrast
from tests.benchmarks.memory import peak_bytes
from tests.benchmarks.timing import ratio, two_threads
from tests.conftest import SHARED

STEPS = 3


def loss_of(model: Any, contrast: ContrastSet, micro_batch: int) -> EndToEndLoss:
    """Build the loss of all of the residual stream."""
    sites = find_sites(model, "hook_resid_post")
    source, target = (tokenize(model, side) for side in (contrast.source, contrast.target))
    pooled = pool_texts(model, target, sites, "mean", micro_batch)
    return EndToEndLoss(model, source, pooled, edit_sites=sites, loss_sites=sites, pool="mean", micro_batch=micro_batch)


def _descent(loss: EndToEndLoss, steps: int) -> None:
    penalty = SparseGroupLasso(loss.layout.group, 1.0, 1.0)
    settings = Descent(
        steps=steps, lr=0.01, optimizer="sgd", gamma=1e-3, penalty=penalty, evaluate_every=25, patience=5
    )
    rows = iter([None] * steps)
    start = torch.zeros(len(loss.layout.group))
    descend(loss, settings, name="LinEAS", start=start, batches=rows, support=loss.layout.support, progress=False)


def step_against_forward_backward(*, repeats: int = 15) -> dict[str, float]:
    """Time a gradient on tinytalk-neo against bare passes, and what a step of a whole descent takes of them.

    What the descent does once, before and after its steps, counts: two evaluations without gradients, at the identity
    and at the end.
    """
    model = load_model(SHARED / "models" / "tinytalk-neo")
    contrast = read_contrast(SHARED / "data" / "story_concepts" / "sad.json", n=32)
    got = gradient_against_passes(model, contrast, repeats=repeats)
    with two_threads(), frozen(model):
        loss, bare = loss_of(model, contrast, 32), passes_of(model, contrast, STEPS)
        descent, _, _ = ratio(lambda: _descent(loss, 10), bare, repeats=5)
    return {**got, "ten_steps": descent * STEPS / 10}


def gradient_against_passes(model: Any, contrast: ContrastSet, *, repeats: int) -> dict[str, float]:
    """Time gradients of the loss, and as many bare forward and backward passes of the trunk, weights frozen."""
    with two_threads(), frozen(model):
        loss = loss_of(model, contrast, 32)
        zero = torch.zeros(len(loss.layout.group))

        def gradients() -> None:
            for _ in range(STEPS):
                loss.with_gradient(zero)

        share, mine, theirs = ratio(gradients, passes_of(model, contrast, STEPS), repeats=repeats)
    return {"ratio": share, "seconds": mine / STEPS, "bare_seconds": theirs / STEPS}


def passes_of(model: Any, contrast: ContrastSet, steps: int) -> Callable[[], None]:
    """Return a call of so many bare passes of the source texts, from the first block's input to the last block's output and back."""
    batch = tokenize(model, contrast.source).batch(range(len(contrast.source)))
    host = host_of(model)
    last: list[torch.Tensor] = []

    def begin(tensor: Any, hook: Any) -> Any:
        return tensor.detach().requires_grad_()

    def end(tensor: Any, hook: Any) -> None:
        last[:] = [tensor]

    ends = [("blocks.0.hook_resid_pre", begin), (f"blocks.{host.n_layers - 1}.hook_resid_post", end)]

    def bare() -> None:
        with host.hooks(ends):
            for _ in range(steps):
                host.trunk(batch.ids, batch.mask)
                last[0].sum().backward()

    return bare


def memory_in_texts() -> dict[str, float]:
    """Measure the peak memory of a gradient with 32 and with 256 source texts in micro-batches of 8."""
    model = load_model(SHARED / "models" / "tinytalk-neo")
    whole = read_contrast(SHARED / "data" / "story_concepts" / "happy.json")
    longest = max(whole.source, key=len)
    peaks = {}
    with frozen(model):
        for count in (32, 256):
            contrast = ContrastSet([longest] * count, whole.target[:32])
            loss = loss_of(model, contrast, 8)
            zero = torch.zeros(len(loss.layout.group))
            loss.with_gradient(zero)
            peaks[count] = peak_bytes(lambda loss=loss, zero=zero: loss.with_gradient(zero))
    return {"bytes_32": peaks[32], "bytes_256": peaks[256], "ratio": peaks[256] / peaks[32]}
