"""Random edits of an edit's size: what any push of that length does, whatever its direction."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from lens_steer.activations.activations import Activations
from lens_steer.activations.collect import collect
from lens_steer.evaluation.card.dose import DoseReader
from lens_steer.interventions.intervention import Intervention, require_interventions
from lens_steer.interventions.random_edits import random_edits
from lens_steer.settings import require_settings
from lens_steer.texts.contrast import ContrastSet, require_contrast


def norm_matched_edits(
    model: nn.Module,
    intervention: Intervention,
    contrast: ContrastSet,
    *,
    draws: int = 20,
    seed: int = 0,
    batch_size: int | None = None,
) -> list[Intervention]:
    """Draw random edits that write as far as an edit does: controls that know nothing of the concept.

    A diagonal map does to other units, of like scale, what it does to its own, in their standard deviations and with
    random signs; any other map becomes a constant vector in a random direction. Site by site the random edit writes as
    far as the edit, in the root mean square over the tokens of the source texts; where an edit has several sites, what
    is written at a later one depends on the earlier ones, and the lengths there are near each other.

    Parameters
    ----------
    model:
        The model that the edit is for.
    intervention:
        The edit that they stand beside, at the strength that it is used at: `edit.scaled(2.0)` for twice itself.
    contrast:
        Texts of both sides: units' means and spreads are theirs. Those of the fit will do.
    draws, seed:
        How many, and from which seed. 20 carry a comparison with one more draw.
    batch_size:
        Texts in one pass; None lets the memory decide.

    Returns
    -------
    list
        `draws` interventions at the edit's sites, with its scopes and gates.

    Raises
    ------
    SettingError
        `draws` is below 1.

    """
    require_settings(norm_matched_edits, locals())
    require_interventions(intervention)
    require_contrast(contrast)
    names = [site.name for site in intervention.sites]
    activations = collect(model, contrast, names, batch_size=batch_size, progress=False)
    reader = DoseReader(model, contrast.source, chat=contrast.chat, batch_size=batch_size)
    return matched_in_norm(intervention, activations, reader, draws=draws, seed=seed)


def matched_in_norm(
    edit: Intervention, activations: Activations, reader: DoseReader, *, draws: int, seed: int
) -> list[Intervention]:
    """Return random edits that write, site by site, as far as the edit does (root mean square over tokens)."""
    wanted = [dose.size for dose in reader.read(edit)]
    matched = []
    for control in random_edits(edit, activations, draws=draws, seed=seed):
        own = [dose.size for dose in reader.read(control)]
        edits = tuple(
            replace(one, map=one.map.scaled(norm / size if size > 0 else 0.0))
            for one, norm, size in zip(control.edits, wanted, own, strict=True)
        )
        matched.append(replace(control, edits=edits))
    return matched
