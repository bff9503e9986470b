"""The logit lens: what the model would say of the next token if it stopped at a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lens_steer.errors import ModelError
from lens_steer.host.adapter import Host, host_of

_LOGITS = 2**22  # logits at a time: 16 MiB in float32
_TOLERANCE = 0.1  # of the spread of log-probabilities: rounding is far below, a readout that lacks a step far above
_PROBE_TOKENS = 7
_KEPT = "logit lens"


class LogitLens:
    """Reads next-token probabilities off vectors of the residual stream.

    The vectors pass the model's own final norm, unembedding and cap on logits, by TransformerLens's `logit_readout`
    where it has that.

    Raises
    ------
    ModelError
        Read off the last layer, this is not what the model says: it does something else to the stream in between.

    """

    def __init__(self, model: nn.Module) -> None:
        self._host = host_of(model)
        self._host.refresh()
        if _KEPT not in self._host.readings:
            _require_identity(self._host)
            self._host.readings[_KEPT] = True

    def probability(self, stream: Float[Tensor, "token stream"], words: Sequence[int]) -> Float[Tensor, " token"]:
        """Return the probability that some tokens have together, float32."""
        rows = max(1, _LOGITS // self._host.vocabulary)
        with torch.no_grad(), self._host.bare():
            chunks = torch.split(stream, rows)
            parts = [_log_probabilities(self._host, some)[:, list(words)].exp().sum(1) for some in chunks]
        return torch.cat(parts)


def _log_probabilities(host: Host, stream: Float[Tensor, "token stream"]) -> Float[Tensor, "token vocab"]:
    model: Any = host.model
    readout = _readout() if host.kind == "TransformerBridge" else None
    if readout is not None:
        values: Tensor = readout(model, stream, return_type="log_probs", chunk_size=len(stream)).values
        return values.float()
    logits: Tensor = model.unembed(model.ln_final(stream[None].to(host.dtype)))[0].float()
    cap = float(getattr(model.cfg, "output_logits_soft_cap", None) or 0)
    if cap > 0:
        logits = cap * torch.tanh(logits / cap)
    return logits.log_softmax(-1)


def _readout() -> Any:
    try:
        from transformer_lens.tools.analysis import logit_readout
    except ImportError:  # transformer-lens 3.9
        return None
    return logit_readout


def _require_identity(host: Host) -> None:
    """Refuse a model whose logits are not the readout of its last layer."""
    streams: list[Tensor] = []

    def read(tensor: Tensor, hook: Any) -> None:
        streams.append(tensor.detach())

    ids = host.probe_ids(_PROBE_TOKENS)
    with torch.no_grad(), host.bare(), host.hooks([(f"blocks.{host.n_layers - 1}.hook_resid_post", read)]):
        theirs = host.logits(ids, torch.ones_like(ids, dtype=torch.bool))[0].float().log_softmax(-1)
    try:
        with torch.no_grad(), host.bare():
            ours = _log_probabilities(host, streams[0][0])
    except (ValueError, NotImplementedError) as error:
        raise ModelError(f"the logit lens does not know this model: {error}; trace without words") from error
    spread = (theirs - theirs.mean(-1, keepdim=True)).abs().max()
    if ours.shape != theirs.shape or not (ours - theirs).abs().max() <= _TOLERANCE * spread:
        raise ModelError(
            "what the logit lens reads off this model's last layer is not what the model says: it does more to the "
            "stream than its final norm and unembedding; trace without words"
        )
