"""Causal activation transport in one pass against the bare trunk, at several numbers of sites.

Run alone with `python -m tests.benchmarks.bench_causal`.
"""

from __future__ import annotations

import json
from typing import Any

import torch

from lens_steer.host.adapter import host_of
from lens_steer.host.load import load_model
from lens_steer.host.tokens import tokenize
from lens_steer.methods.activation_transport import LinearAcT
from lens_steer.texts.contrast import ContrastSet
from lens_steer.texts.readers import read_contrast
from tests.benchmarks.timing import ratio, two_threads
from tests.conftest import SHARED

TEXTS = 96  # a side
SITES: dict[int, Any] = {
    4: [f"blocks.{layer}.hook_resid_post" for layer in (1, 3, 5, 7)],
    8: "hook_resid_post",
    16: ("hook_attn_out", "hook_mlp_out"),
}


def causal_against_trunk(*, repeats: int = 9) -> dict[int, dict[str, float]]:
    """Time `LinearAcT().fit` and one pass of the same batches through the trunk, tokenising included in both.

    tinytalk-neo, 8 layers; number of sites -> ratio and median seconds of either.
    """
    model = load_model(SHARED / "models" / "tinytalk-neo")
    contrast = read_contrast(SHARED / "data" / "story_concepts" / "sad.json", n=TEXTS)
    host = host_of(model)

    def bare() -> None:
        tokens = tokenize(model, contrast.labelled.texts)
        with torch.no_grad():
            for _, batch in tokens.batches():
                host.trunk(batch.ids, batch.mask)

    found = {}
    with two_threads():
        for count, sites in SITES.items():
            method = LinearAcT(sites=sites)
            assert len(method.fit(model, _few(contrast)).sites) == count
            share, mine, trunk = ratio(lambda m=method: m.fit(model, contrast), bare, repeats=repeats)
            found[count] = {"ratio": share, "seconds": mine, "trunk_seconds": trunk}
    return found


def _few(contrast: ContrastSet) -> ContrastSet:
    return contrast.subsample(4, seed=0)


if __name__ == "__main__":
    print(json.dumps(causal_against_trunk(), indent=2))
