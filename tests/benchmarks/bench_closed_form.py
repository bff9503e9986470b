"""Fits of every closed-form map on activations that were collected before: 10,000 units, 1,000 texts.

Run alone with `python -m tests.benchmarks.bench_closed_form`.
"""

from __future__ import annotations

import json
from statistics import median
from time import perf_counter
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lens_steer.activations.activations import Activations
from lens_steer.host.load import load_model
from lens_steer.methods.activation_transport import GaussianAcT, LinearAcT, MeanAcT
from lens_steer.methods.aura import AurA
from lens_steer.methods.caa import CAA
from lens_steer.methods.damp import Damp, Det0
from lens_steer.methods.self_conditioning import SelfCond
from lens_steer.texts.contrast import ContrastSet
from tests.benchmarks.timing import two_threads
from tests.families import CONFIGS, make_tokenizer, sentences

SITE = "blocks.0.mlp.hook_post"
METHODS: dict[str, Any] = {
    "AurA": AurA(sites=SITE),
    "Damp": Damp(sites=SITE, k=100),
    "Det0": Det0(sites=SITE, k=100),
    "SelfCond": SelfCond(sites=SITE, k=100),
    "MeanAcT": MeanAcT(sites=SITE, causal=False),
    "GaussianAcT": GaussianAcT(sites=SITE, causal=False),
    "LinearAcT": LinearAcT(sites=SITE, causal=False),
    "CAA": CAA(sites=SITE, pool="mean"),
}


def fit_seconds(*, units: int = 10_000, texts: int = 1_000, repeats: int = 3) -> dict[str, float]:
    """Median seconds of each method's `fit` with the activations of one MLP as wide as that, of a one-layer model.

    The fit is the whole call, with the model's fingerprint and the provenance.
    """
    model = _wide_model(units)
    n = texts // 2
    contrast = ContrastSet(sentences(n, seed=0, must="sad"), sentences(n, seed=1, must="happy"))
    values = torch.randn(texts, units, generator=torch.Generator().manual_seed(0)).numpy()
    values[:n] += torch.linspace(-1, 1, units).numpy()
    found = {}
    with two_threads():
        for name, method in METHODS.items():
            given = Activations.from_arrays(source={SITE: values[:n]}, target={SITE: values[n:]}, pool=method.pool)
            seconds = []
            for _ in range(1 + repeats):
                start = perf_counter()
                method.fit(model, contrast, activations=given)
                seconds.append(perf_counter() - start)
            found[name] = median(seconds[1:])
    return found


def _wide_model(units: int) -> Any:
    torch.manual_seed(0)
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model("gpt2", **{**CONFIGS["gpt2"], **special, "n_layer": 1, "n_inner": units})
    return load_model(AutoModelForCausalLM.from_config(config), tokenizer=make_tokenizer())


if __name__ == "__main__":
    print(json.dumps(fit_seconds(), indent=2))
