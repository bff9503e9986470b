"""Where activations come from: whether two of them, or one and a model, are of one model under the same edits.

Activations made from arrays do not say, and pass.
"""

from __future__ import annotations

from torch import nn

from lens_steer.activations.activations import Activations
from lens_steer.errors import ActivationError
from lens_steer.host.fingerprint import ModelFingerprint, model_fingerprint


def require_of_model(given: Activations, model: nn.Module) -> None:
    """Raise ActivationError for activations of another model than `model` with the edits that are attached to it."""
    known = _fingerprint(given)
    difference = known.difference(model_fingerprint(model)) if known else ""
    if difference:
        raise ActivationError(
            f"the given activations are of another model, or of this one under other edits: {difference}. Collect them "
            "anew, or leave them out"
        )


def require_one_origin(given: Activations, others: Activations, what: str) -> None:
    """Raise ActivationError where `given` and those of `what` are not of one model under one set of edits."""
    known, other = _fingerprint(given), _fingerprint(others)
    difference = known.difference(other) if known and other else ""
    if difference:
        raise ActivationError(
            f"the given activations and those of {what} are of two models, or of one under other edits: {difference}. "
            "Collect both from the model that is to be edited"
        )


def _fingerprint(given: Activations) -> ModelFingerprint | None:
    content = given.provenance.get("fingerprint")
    return None if content is None else ModelFingerprint.rebuilt(content)
