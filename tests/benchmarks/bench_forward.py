"""One forward pass of tinytalk-neo: unedited, with a diagonal map at every layer's hook_mlp_out, and with them baked.

Run alone with `python -m tests.benchmarks.bench_forward`.
"""

from __future__ import annotations

import json
from typing import Any

import torch

from lens_steer.host.adapter import host_of
from lens_steer.host.load import load_model
from lens_steer.host.sites import find_sites
from lens_steer.interventions.bake import bake
from lens_steer.interventions.intervention import Edit, Intervention
from lens_steer.interventions.maps import DiagonalAffine
from tests.benchmarks.timing import ratio, two_threads
from tests.conftest import SHARED

ROWS, TOKENS, PASSES = 32, 64, 2


def edited_against_unedited(*, repeats: int = 21) -> dict[str, dict[str, float]]:
    """Time PASSES forward passes of ROWS x TOKENS tokens, logits included: hooked and baked, each against unedited.

    The hooked passes lie inside one `with intervention.on(model)`, entering included, and are held against the same
    bridge without it; the baked ones are a plain Hugging Face model's, held against the plain model of the weights as
    they were.
    """
    model = load_model(SHARED / "models" / "tinytalk-neo")
    host = host_of(model)
    edit = _edit(model)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, int(model.cfg.d_vocab), (ROWS, TOKENS), generator=generator)
    mask = torch.ones_like(ids, dtype=torch.bool)
    plain, baked = bake(model, edit, 0.0), bake(model, edit)

    def hosted() -> None:
        for _ in range(PASSES):
            host.logits(ids, mask)

    def hooked() -> None:
        with edit.on(model):
            hosted()

    def run(of_model: Any) -> None:
        for _ in range(PASSES):
            of_model(input_ids=ids, attention_mask=mask.long())

    found = {}
    with two_threads(), torch.no_grad():
        pairs = {"hooked": (hooked, hosted), "baked": (lambda: run(baked), lambda: run(plain))}
        for name, (ours, theirs) in pairs.items():
            share, mine, bare = ratio(ours, theirs, repeats=repeats)
            found[name] = {"ratio": share, "seconds": mine / PASSES, "bare_seconds": bare / PASSES}
    return found


def _edit(model: Any) -> Intervention:
    generator = torch.Generator().manual_seed(0)
    edits = []
    for site in find_sites(model, "hook_mlp_out"):
        scale, shift = (0.1 * torch.randn(site.width, generator=generator) for _ in range(2))
        edits.append(Edit(site, DiagonalAffine(1 + scale, shift)))
    return Intervention(tuple(edits))


if __name__ == "__main__":
    print(json.dumps(edited_against_unedited(), indent=2))
