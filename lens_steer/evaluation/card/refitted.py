"""The same fit on shuffled labels: a method made again from what an edit says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from torch import nn

from lens_steer.errors import ContrastError, LensSteerError, SettingError
from lens_steer.interventions.intervention import Intervention
from lens_steer.methods.act_add import ActAdd
from lens_steer.methods.activation_transport import GaussianAcT, LinearAcT, MeanAcT
from lens_steer.methods.aura import AurA
from lens_steer.methods.caa import CAA
from lens_steer.methods.damp import Damp, Det0
from lens_steer.methods.iti import ITI
from lens_steer.methods.lineas import LinEAS
from lens_steer.methods.loreft import LoReFT
from lens_steer.methods.repe import RepE
from lens_steer.methods.self_conditioning import SelfCond
from lens_steer.texts.contrast import ContrastSet
from lens_steer.texts.seen import seen_in, was_seen

_METHODS: dict[str, Any] = {
    method.__name__: method
    for method in (
        ActAdd, AurA, CAA, Damp, Det0, GaussianAcT, ITI, LinEAS, LinearAcT, LoReFT, MeanAcT, RepE, SelfCond,
    )
}  # fmt: skip


def refitted_on_shuffled(model: nn.Module, edit: Intervention, train: ContrastSet, *, seed: int) -> Intervention:
    """Fit the method of an edit once more, on the texts of `train` that it was made from, their labels shuffled.

    Raises
    ------
    SettingError
        The edit does not say by which method and settings it was made, or they cannot be made again.
    ContrastError
        `train` holds hardly any of the texts that the edit was made from.

    """
    method = _method(edit.provenance)
    seen = seen_in(edit.provenance)
    sides = [np.flatnonzero(was_seen(rows, seen)) for rows in (train.source, train.target)]
    if min(map(len, sides)) < 2:
        raise ContrastError(
            f"{train!r} does not hold the texts that the edit was made from, so it cannot be fitted once more: give "
            "train= the texts of the fit, or shuffled= an edit that was fitted on contrast.shuffled()"
        )
    fitted: Intervention = method.fit(model, train.take(*sides).shuffled(seed))
    return fitted


def _method(about: Mapping[str, Any]) -> Any:
    name, settings = about.get("method"), about.get("settings")
    remedy = "give shuffled= an edit that was fitted on contrast.shuffled(), or leave it out"
    if name not in _METHODS or not isinstance(settings, Mapping):
        raise SettingError(f"the edit was made by {name!r}, which its settings cannot make once more: {remedy}")
    known = {field.name for field in fields(_METHODS[name])}
    plain = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items() if key in known}
    try:
        return _METHODS[name](**{**plain, **({"progress": False} if "progress" in known else {})})
    except (LensSteerError, TypeError) as error:
        raise SettingError(f"{name} cannot be made again from the edit's settings ({error}): {remedy}") from error
