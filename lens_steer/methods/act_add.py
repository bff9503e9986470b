"""ActAdd, activation addition: what one prompt has over another, added token by token (arXiv 2308.10248)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lens_steer.activations.activations import Activations
from lens_steer.errors import ContrastError, SettingError
from lens_steer.host.adapter import host_of
from lens_steer.host.guards import check_edit_sites
from lens_steer.host.scope import Scope
from lens_steer.host.sites import Site, SitePattern, find_sites
from lens_steer.host.tokens import TokenBatch, pad_id, tokenize
from lens_steer.host.trunk import Visit, trunk
from lens_steer.interventions.edit import Edit
from lens_steer.interventions.intervention import Intervention
from lens_steer.interventions.maps import DiagonalAffine
from lens_steer.methods.fitting import method_provenance
from lens_steer.settings import require_settings
from lens_steer.texts.contrast import ChatFormat, ContrastSet, Row, require_contrast


@dataclass(frozen=True, kw_only=True)
class ActAdd:
    """Add multiplier * (h(target prompt) - h(source prompt)), position by position, to the first tokens of a prompt.

    The shorter of the two is filled up with spaces at its end. BOS counts as position 0; there, and at every further
    position up to the first token in which the two differ, they do not differ and nothing is added. Each position is an
    edit of its own, of the scope `Scope("prompt", start=position, stop=position + 1)`: a prompt that is shorter
    than the pair gets what falls on its tokens, and `.scoped(...)` leaves each at its position.

    The paper edits one layer; several are added to as if each were the only one.

    Attributes
    ----------
    pair:
        Which source and target text of a contrast that has more than one.
    prompts:
        (source, target): two prompts to use in place of the contrast's, as they are, without a chat format.
    multiplier:
        How far to go; negative moves towards the source. The paper goes from 1 to 15.
    sites:
        Pattern for `find_sites`; the paper adds in front of a layer.
    layers:
        Keep only these layers of it; negative numbers count from the last. None keeps all.

    """

    pair: int | None = None
    prompts: tuple[str, str] | None = None
    multiplier: float = 1.0
    sites: SitePattern = "hook_resid_pre"
    layers: tuple[int, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require_settings(type(self), vars(self))
        if not math.isfinite(self.multiplier):
            raise SettingError(f"ActAdd: the multiplier is a finite number, not {self.multiplier}")
        if self.pair is not None and (self.prompts is not None or self.pair < 0):
            raise SettingError(f"ActAdd: pair is 0 or more and goes without prompts, not {self.pair}")
        if self.prompts is not None and not all(prompt.strip() for prompt in self.prompts):
            raise SettingError("ActAdd: prompts are two texts, (source, target), neither of them blank")

    def fit(self, model: nn.Module, contrast: ContrastSet, *, activations: Activations | None = None) -> Intervention:
        """Return one shift per site and position.

        Pooled `activations` hold no positions: they are not looked at.

        Raises
        ------
        ContrastError
            The contrast has more than one pair and neither `pair` nor `prompts` chooses; it has no such pair; or the
            two prompts have the same tokens.
        SiteError, TokenError, ModelError
            As `find_sites` and `tokenize` say; the model is in training mode.

        """
        sites = find_sites(model, self.sites, layers=self.layers)
        check_edit_sites(model, sites)
        require_contrast(contrast)
        prompts, chat = self._chosen(contrast)
        ids = _aligned_ids(model, prompts, chat)
        different = (ids[0] != ids[1]).nonzero()[:, 0].tolist()
        if not different:
            raise ContrastError(f"ActAdd: {prompts[0]!r} and {prompts[1]!r} are the same tokens: nothing differs")
        edits = []
        for site, (source, target) in _at_every_token(model, sites, ids).items():
            for position in range(different[0], ids.shape[1]):
                shift = self.multiplier * (target[position].double() - source[position].double())
                scope = Scope("prompt", start=position, stop=position + 1)
                edits.append(Edit(site, DiagonalAffine(torch.ones(site.width), shift), scope))
        about = {**method_provenance(self, contrast), "prompts": prompts, "tokens": ids.tolist()}
        return Intervention.fitted(model, edits, **about)

    def _chosen(self, contrast: ContrastSet) -> tuple[tuple[Row, Row], ChatFormat]:
        """Return the source prompt, the target prompt and their chat format."""
        if self.prompts is not None:
            return self.prompts, None
        counts = len(contrast.source), len(contrast.target)
        if self.pair is None and counts != (1, 1):
            raise ContrastError(f"ActAdd takes one pair of prompts, and {contrast!r} has more: set pair= or prompts=")
        pair = self.pair or 0
        if pair >= min(counts):
            raise ContrastError(f"ActAdd: {contrast!r} has no pair {pair}; they are counted from 0")
        return (contrast.source[pair], contrast.target[pair]), contrast.chat


def _aligned_ids(model: nn.Module, prompts: tuple[Row, Row], chat: ChatFormat) -> Tensor:
    """Return the ids of both prompts, the shorter filled up at its end: [2, pos]."""
    tokens = tokenize(model, prompts, chat=chat)
    tokenizer = host_of(model).tokenizer
    # Where the tokenizer keeps a mark in front of every word, one space makes two of its token.
    spaces = set(tokenizer(" ", add_special_tokens=False).input_ids)
    filler = spaces.pop() if len(spaces) == 1 else pad_id(tokenizer, host_of(model).vocabulary)
    length = max(tokens.lengths)
    return torch.tensor([[*row, *[filler] * (length - len(row))] for row in tokens.ids])


def _at_every_token(
    model: nn.Module, sites: Sequence[Site], ids: Tensor
) -> dict[Site, Float[Tensor, "prompt pos unit"]]:
    """Return the values of both prompts at every position; what they are filled up with counts as a token."""
    values: dict[Site, Tensor] = {}

    def reader(site: Site) -> Visit:
        def read(activation: Tensor, batch: TokenBatch) -> None:
            values[site] = activation.float().cpu()

        return read

    real = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad(), trunk(model, {site: reader(site) for site in sites}) as run:
        run(TokenBatch(ids, real, real).to(host_of(model).device))
    return values
