"""Baking: an intervention's affine maps folded into the weights, exactly, as a plain Hugging Face model.

`lens_steer.interventions.folding` knows which maps can be folded and how; here it is done, and compared with the hooks.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lens_steer.errors import ModelError, SettingError
from lens_steer.host.adapter import host_of
from lens_steer.host.weights import PlainWeights
from lens_steer.interventions.folding import KEEP_HOOKS, planned_writes, require_foldable
from lens_steer.interventions.intervention import Intervention, require_interventions
from lens_steer.settings import require_settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PROBE_TOKENS = 16


def bake(
    model: nn.Module, intervention: Intervention, strength: float = 1.0, *, check_model: bool = True
) -> PreTrainedModel:
    """Return a plain Hugging Face model with the intervention at this strength in its weights.

    Its logits are the hooked model's up to rounding, about 1e-6 of the largest in float32; they are compared on a probe
    before it is returned. `save_pretrained` writes what plain transformers loads. It shares nothing with the hosted
    model, which stays as it is. A shift may switch biases on in the config (Llama's `attention_bias`, `mlp_bias`).

    Raises
    ------
    MapError
        An edit cannot be folded: it acts inside an interval or for some tokens or rows only, its map is not affine, it
        scales or mixes units of the residual stream, it mixes those of a norm that no projection reads, it shifts where
        this architecture has no bias, or its site has no weights beside it. The message says which edit, why, and what
        is nearest. `why_not_bakeable` says so beforehand.
    ModelError
        The model is a HookedTransformer, or its weights were folded, or the baked model does not give its logits.
    SiteError, ArtifactError
        As for `Intervention.on`; `check_model=False` allows weights that the intervention was not fitted on.

    """
    require_settings(bake, locals())
    if not math.isfinite(strength):
        raise SettingError(f"a strength is a finite number, not {strength}")
    require_interventions(intervention)
    weights = PlainWeights(model)
    host = host_of(model)
    edits = intervention.scaled(strength).edits if strength != 0.0 else ()
    require_foldable(edits)
    ids = host.probe_ids(min(_PROBE_TOKENS, host.context))
    mask = torch.ones_like(ids, dtype=torch.bool)
    with intervention.on(model, strength, check_model=check_model):
        pass  # its checks; the pass itself is one of plain hooks, because nothing else acts on a bare model
    with torch.no_grad(), host.bare():
        plain = host.logits(ids, mask)
        with host.hooks(intervention.hooks(strength) if edits else ()):
            hooked = host.logits(ids, mask)
    for write in planned_writes(weights, host, edits):
        write()
    baked = weights.build()
    with torch.no_grad():
        _require_same_effect(baked(input_ids=ids, attention_mask=mask.long()).logits, hooked, plain)
    return baked


def _require_same_effect(baked: Tensor, hooked: Tensor, plain: Tensor) -> None:
    """Raise ModelError unless the baked logits are the hooked ones up to rounding, and change as the hooked ones do.

    In half precision rounding hides a weak edit, present or not, in any single logit. Over all of them it averages out:
    of what the hooks change, the weights have to change once as much, and not half or twice.
    """
    tolerance = 1e-4 if baked.dtype in (torch.float32, torch.float64) else 0.1
    baked, hooked, plain = (logits.double() for logits in (baked, hooked, plain))
    difference, largest = (baked - hooked).abs().max(), hooked.abs().max()
    if not difference <= tolerance * largest:
        raise ModelError(
            f"the baked model's logits differ from the hooked model's by {float(difference / largest):.1e} of the "
            f"largest: this architecture does not compute what its sites say, {KEEP_HOOKS}"
        )
    effect = hooked - plain
    if not bool(effect.any()):
        return
    share = float(((baked - plain) * effect).sum() / effect.square().sum())
    if abs(share - 1) > 0.5:
        raise ModelError(
            f"the baked weights change the logits {share:.2f} times as much as the hooks do: the edit is lost in the "
            "rounding of the weights (bake it into a float32 model), or this architecture does not compute what its "
            f"sites say. {KEEP_HOOKS[0].upper()}{KEEP_HOOKS[1:]}"
        )
