"""The language-model loss of texts under edits that are being learned, with exact gradients in micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from lens_steer.errors import SettingError, TokenError
from lens_steer.host.adapter import host_of
from lens_steer.host.padding import most_pads
from lens_steer.host.scope import Scope
from lens_steer.host.sites import Site
from lens_steer.host.tokens import TokenBatch, tokenize
from lens_steer.host.trunk import as_hook, text_logits
from lens_steer.texts.contrast import ChatFormat, Row

EditOf = Callable[[Float[Tensor, "text pos unit"]], Float[Tensor, "text pos unit"]]
"""What a vector of parameters does to a site's activation, differentiable in the parameters."""


class TextLoss:
    """Loss of a parameter vector: the mean next-token negative log-likelihood of texts, in nats, under its edits.

    Every token behind the first counts alike, of a (prompt, completion) pair those of the completion, as in
    `perplexity`. `edits_of` turns parameters into one edit per site. `scope` says which tokens are edited; of a plain
    text all behind BOS counts as generated (see `Scope`). SettingError if no edited token stands in front of a counted
    one, and for the scope `prompt` on plain texts.
    """

    def __init__(
        self,
        model: nn.Module,
        texts: Sequence[Row],
        edits_of: Callable[[Tensor], Mapping[Site, EditOf]],
        *,
        scope: Scope,
        micro_batch: int,
        chat: ChatFormat = None,
    ) -> None:
        self._model, self._edits_of, self._scope, self._micro_batch = model, edits_of, scope, micro_batch
        self._tokens = tokenize(model, texts, chat=chat, special_in_pool=True, format_in_pool=True)
        short = [row for row, pooled in enumerate(self._tokens.pooled) if not any(pooled[1:])]
        if short:
            raise TokenError(f"text {short[0]} has no token to predict: it is one token long")
        if not any(self._reached(batch) for _, batch in self._chunks(None)):
            raise SettingError(
                f"no token in the scope '{scope}' stands in front of one that the loss is of: give longer texts, or "
                'set scope="all"'
            )

    def __call__(self, parameters: Tensor, source: list[int] | None = None, target: list[int] | None = None) -> float:
        """Return the loss over some of the texts (`target`) or all."""
        chunks = self._chunks(target)
        with torch.no_grad():
            sums = [float(self._summed(parameters, batch)) for _, batch in chunks]
        return sum(sums) / sum(int(self._counted(batch).sum()) for _, batch in chunks)

    @torch.enable_grad()  # also where the caller has switched gradients off
    def with_gradient(
        self, parameters: Tensor, source: list[int] | None = None, target: list[int] | None = None
    ) -> tuple[float, Float[Tensor, " parameter"]]:
        """Return loss and gradient, the same whatever the micro-batch."""
        chunks = self._chunks(target)
        count = sum(int(self._counted(batch).sum()) for _, batch in chunks)
        leaf = parameters.detach().requires_grad_()
        total, gradient = 0.0, torch.zeros_like(leaf)
        for _, batch in chunks:
            part = self._summed(leaf, batch) / count
            if part.requires_grad:  # a text may hold no token of the scope
                gradient += torch.autograd.grad(part, leaf)[0]
            total += part.item()
        return total, gradient

    def _chunks(self, rows: Sequence[int] | None) -> list[tuple[list[int], TokenBatch]]:
        device, pads = host_of(self._model).device, most_pads(self._model)
        chunks = self._tokens.batch_rows(self._micro_batch, rows=rows)
        parts = (part for chosen in chunks for part in self._tokens.of_like_length(chosen, pads))
        return [(part, self._tokens.batch(part).to(device)) for part in parts]

    @staticmethod
    def _counted(batch: TokenBatch) -> Bool[Tensor, "text pos"]:
        """Which tokens are predicted and count, from the second position on."""
        return batch.mask[:, 1:] & batch.pooled[:, 1:]

    def _inside(self, batch: TokenBatch) -> Bool[Tensor, "text pos"]:
        """Which tokens are edited."""
        return self._scope.mask(batch.positions)

    def _reached(self, batch: TokenBatch) -> bool:
        """Whether an edited token stands in front of a counted one, which alone it can change."""
        counted_later = self._counted(batch).flip(1).cummax(1).values.flip(1)
        return bool((self._inside(batch)[:, :-1] & counted_later).any())

    def _summed(self, parameters: Tensor, batch: TokenBatch) -> Float[Tensor, ""]:
        inside = self._inside(batch)[..., None]

        def hook_of(edit: EditOf) -> Callable[..., Tensor | None]:
            return as_hook(lambda flat: torch.where(inside, edit(flat), flat))

        hooks = [(site.name, hook_of(edit)) for site, edit in self._edits_of(parameters).items()]
        with host_of(self._model).hooks(hooks):
            logits = text_logits(self._model, batch)
        counted = self._counted(batch)
        return F.cross_entropy(logits[:, :-1][counted].float(), batch.ids[:, 1:][counted], reduction="sum")
