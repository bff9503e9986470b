"""How many texts may pass through the model together while their graphs are kept for the gradient."""

from __future__ import annotations

from torch import nn

from lens_steer.host.adapter import host_of
from lens_steer.host.tokens import Tokens

_GRAPHS = 4 * 2**30  # bytes
# Numbers of float32 that autograd keeps of a block: per token in widths of the stream, and in rows of the attention.
_WIDTHS, _ROWS = 40, 3


def texts_in_memory(model: nn.Module, tokens: Tokens, *, logits: bool = False) -> int:
    """Return how many of the longest texts have graphs of about 4 GiB together, at least one.

    `logits` says whether the graphs reach the unembedding.
    """
    return max(1, min(len(tokens), _GRAPHS // graph_bytes(model, max(tokens.lengths), logits=logits)))


def graph_bytes(model: nn.Module, length: int, *, logits: bool = False) -> int:
    """Return about how many bytes autograd keeps of one text of this many tokens."""
    cfg = host_of(model).model.cfg
    of_token = int(cfg.n_layers) * (_WIDTHS * int(cfg.d_model) + _ROWS * int(cfg.n_heads) * length)
    of_token += _ROWS * int(cfg.d_vocab) if logits else 0
    return 4 * of_token * length
