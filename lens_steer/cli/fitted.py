"""What a fit came to, in sentences: how far the loss fell and why it ended there, what is kept, whether it bakes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from lens_steer.interventions.intervention import Intervention


def fit_sentences(edit: Intervention) -> list[str]:
    """Say how the fit of an edit went, and what it moves."""
    about = edit.provenance
    sentences = []
    if "stopped" in about:
        sentences.append(_descent(about))
    if "choice" in about:
        sentences.append(_choice(about["choice"]))
    if "layer_choice" in about:
        sentences.append(_layer(about["layer_choice"]))
    sentences.append(_kept(edit))
    return sentences


def fit_values(edit: Intervention) -> dict[str, Any]:
    """Return what the provenance says of the fit in numbers, as far as the method has them."""
    named = ("method", "loss", "gamma", "relaxed_gamma", "choice", "layer_choice", "stopped", "steps_done", "back_offs")
    return {name: edit.provenance[name] for name in named if name in edit.provenance}


def bake_sentence(model: nn.Module, edit: Intervention) -> str:
    """Say whether the edit can be folded into the weights of the model."""
    from lens_steer.interventions.folding import why_not_bakeable

    obstacle = why_not_bakeable(edit.edits, model)
    return (
        "it bakes into plain weights: lens-steer bake"
        if obstacle is None
        else f"it does not bake into plain weights: {obstacle}"
    )


def _descent(about: Any) -> str:
    loss, backs = about["loss"], about["back_offs"]
    heldout = loss.get("heldout")
    parts = [f"training loss {loss['identity']:.4g} without the edit, {loss['training']:.4g} with it"]
    parts += [f"held-out loss {heldout:.4g}"] if heldout is not None else []
    steps = about["steps_done"]
    parts.append(f"{steps} step{'s' * (steps != 1)}, {backs} of them taken back")
    return f"{', '.join(parts)}; ended because: {about['stopped']}"


def _choice(choice: Any) -> str:
    tried = choice["path"]
    by = "by held-out loss" if "heldout_loss" in tried[0] else "by the number of units"
    return f"gamma share {choice['gamma_share']:.3g} was chosen of {len(tried)} tried, {by}"


def _layer(choice: Any) -> str:
    if not choice["sites"]:
        return f"layer {choice['chosen']}, in the middle, was taken: too few texts to choose one"
    return f"layer {choice['chosen']} was chosen among those of {len(choice['sites'])} sites, on held-out texts"


def _kept(edit: Intervention) -> str:
    by_site = edit.support().groupby("site", sort=False)[["layer", "units", "kept"]].max()
    moved = by_site[by_site["kept"] > 0]
    units = f"moves {int(moved['kept'].sum()):,} of {int(by_site['units'].sum()):,} units"
    layers = sorted({int(layer) for layer in moved["layer"].dropna()})
    where = f", layer{'s' * (len(layers) != 1)} {_ranges(layers)}" if layers else ""
    return f"{units} at {len(moved)} of {len(by_site)} site{'s' * (len(by_site) != 1)}{where}"


def _ranges(numbers: Sequence[int]) -> str:
    """Write sorted whole numbers with runs as ranges: 0, 2-4."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs)
