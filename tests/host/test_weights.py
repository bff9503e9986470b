"""Weights of the plain model: what a norm multiplies by is measured, not read off its name."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRMSNorm

from lens_steer.host.weights import _offset_of


@pytest.mark.parametrize(
    ("norm", "offset"),
    [
        (Gemma2RMSNorm(8), 1.0),
        (RecurrentGemmaRMSNorm(8), 1.0),
        (Gemma3nRMSNorm(8), 0.0),
        (LlamaRMSNorm(8), 0.0),
        (nn.LayerNorm(8), 0.0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_norm_adds_to_its_weight(norm: nn.Module, offset: float, dtype: torch.dtype) -> None:
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    assert _offset_of(norm.to(dtype)) == offset
    assert all(torch.equal(norm.to(torch.float32).state_dict()[n], v.to(dtype).float()) for n, v in before.items())
