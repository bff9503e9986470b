"""Attribution on tinytalk-neo: exact patching against bare forwards, the linear methods against two forwards and one backward.

Run alone with `python -m tests.benchmarks.bench_attribution`; with transformer-lens 3.9 a HookedTransformer is timed too.
"""

from __future__ import annotations

import json
from typing import Any

import torch

from lens_steer.effects.attribution.attribute import _ROW_BUDGET, attribute
from lens_steer.effects.attribution.metrics import LogitDifference
from lens_steer.host.adapter import host_of
from lens_steer.host.load import load_model
from lens_steer.host.sites import find_sites
from lens_steer.host.tokens import tokenize
from lens_steer.host.trunk import frozen
from tests.benchmarks.timing import ratio, two_threads
from tests.conftest import SHARED

LAYER, PAIRS = 3, 16
SITES = ("mlp.hook_post", "attn.hook_z", "hook_attn_out", "hook_mlp_out", "hook_resid_post")
CLEAN = "Once upon a time there was a little girl named Lily who liked to play outside in the park with her"
CORRUPTED = "Once upon a time there was a little girl named Lily who liked to sleep outside in the park with her"
METRIC = LogitDifference(10, 11)


def patching_against_forwards(model: Any = None, *, repeats: int = 7) -> dict[str, float]:
    """Time exact patching of every unit of one MLP site for one pair, against as many bare rows from that layer on.

    The bare rows run in the same numbers at once, read no unit and write none, and unembed the last position alone.
    """
    model = model or load_model(SHARED / "models" / "tinytalk-neo")
    (site,) = find_sites(model, f"blocks.{LAYER}.mlp.hook_post")
    ids = tokenize(model, [CORRUPTED], special_in_pool=True).batch([0]).ids
    blocks = list(model.blocks)[LAYER:]
    given = _arguments(model, ids, blocks)

    def bare() -> None:
        rows = site.width
        while rows > 0:
            some = min(rows, _ROW_BUDGET // ids.shape[1])
            stream = given[0][0][0].expand(some, -1, -1)
            for block, (args, kwargs) in zip(blocks, given, strict=True):
                out = block(stream, *args[1:], **kwargs)
                stream = out[0] if isinstance(out, tuple) else out
            model.unembed(model.ln_final(stream)[:, -1:])
            rows -= some

    def ours() -> None:
        attribute(
            model,
            CLEAN,
            CORRUPTED,
            METRIC,
            sites=site.name,
            level="unit",
            method="patch",
            positions=[-5],
            progress=False,
        )

    with two_threads(), torch.no_grad():
        share, mine, other = ratio(ours, bare, repeats=repeats)
    return {"ratio": share, "seconds": mine, "bare_seconds": other, "rows": site.width}


def _arguments(model: Any, ids: torch.Tensor, blocks: list[Any]) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    given: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    handles = [
        block.register_forward_pre_hook(
            lambda _module, args, kwargs: given.append((args, dict(kwargs))), with_kwargs=True
        )
        for block in blocks
    ]
    with torch.no_grad():
        host_of(model).logits(ids, torch.ones_like(ids, dtype=torch.bool))
    for handle in handles:
        handle.remove()
    return given


def linear_against_passes(model: Any = None, *, repeats: int = 7) -> dict[str, dict[str, float]]:
    """Time the linear methods over all units of all sites, against two forwards and one backward of the same pairs."""
    model = model or load_model(SHARED / "models" / "tinytalk-neo")
    clean, corrupted = ([f"{text} friend number {pair}" for pair in range(PAIRS)] for text in (CLEAN, CORRUPTED))
    batches = [tokenize(model, rows, special_in_pool=True).batch(range(PAIRS)) for rows in (clean, corrupted)]
    host, (first,) = host_of(model), find_sites(model, "blocks.0.hook_resid_pre")

    def bare() -> None:
        with torch.no_grad():
            host.logits(batches[0].ids, batches[0].mask)
        held: list[torch.Tensor] = []

        def begin(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
            held[:] = [tensor.detach().requires_grad_()]
            return held[0]

        with torch.enable_grad(), frozen(model), host.hooks([(first.name, begin)]):
            logits = host.logits(batches[1].ids, batches[1].mask)[:, -1]
            torch.autograd.grad((logits[:, 10] - logits[:, 11]).sum(), held[0])

    found = {}
    for method in ("attribution", "relp", "cna"):

        def ours(method: Any = method) -> None:
            attribute(
                model,
                clean,
                corrupted,
                METRIC,
                sites=SITES,
                level="unit",
                method=method,
                batch_size=PAIRS,
                progress=False,
            )

        with two_threads():
            share, mine, other = ratio(ours, bare, repeats=repeats)
        found[method] = {"ratio": share, "seconds": mine, "bare_seconds": other}
    return found


if __name__ == "__main__":
    models: dict[str, Any] = {"bridge": load_model(SHARED / "models" / "tinytalk-neo")}
    try:
        from tests.compat import make_hooked_tinytalk

        models["HookedTransformer"] = make_hooked_tinytalk(SHARED / "models")
    except BaseException as error:  # pytest's skip
        print(error)
    for name, model in models.items():
        print(name, json.dumps({"patch": patching_against_forwards(model), **linear_against_passes(model)}, indent=2))
