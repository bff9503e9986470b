"""Trace a shift: by which components what an edit does travels to a later site, as an exact sum and as causes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from lens_steer.activations.pooling import Pool, checked_pool
from lens_steer.effects.paths.base import Route
from lens_steer.effects.paths.lens import read_words
from lens_steer.effects.paths.measures import Cases, PathMeasures, law_changes, measured_parts, word_changes
from lens_steer.effects.paths.parts import Parts, read_parts
from lens_steer.effects.paths.result import TraceShift
from lens_steer.effects.shifts import Untouched, deviations
from lens_steer.effects.text_groups import TextGroup, pooled_sides, tokenized_groups
from lens_steer.errors import ActivationError, SettingError, SiteError
from lens_steer.host.adapter import Host, host_of
from lens_steer.host.components import find_components
from lens_steer.host.guards import require_eval
from lens_steer.host.next_tokens import read_divergences
from lens_steer.host.scope import Scope
from lens_steer.host.sites import Site, site_at
from lens_steer.interventions.intervention import Intervention, require_interventions
from lens_steer.settings import require_settings
from lens_steer.statistics.intervals import require_confidence
from lens_steer.statistics.jackknife import leave_groups_out
from lens_steer.texts.contrast import ContrastSet, Row
from lens_steer.texts.messages import Conversation

_TRACED = ("hook_resid_pre", "hook_in", "hook_resid_post", "hook_out")


def trace_shift(
    model: nn.Module,
    intervention: Intervention,
    contrast: ContrastSet,
    *,
    site: Site | str | None = None,
    pool: Pool = "mean",
    strength: float = 1.0,
    neutral: Sequence[Row | Conversation] = (),
    words: Sequence[str | int] = (),
    causal: bool = True,
    confidence: float = 0.95,
    batch_size: int | None = None,
    check_model: bool = True,
    progress: bool = True,
) -> TraceShift:
    """Split the shift that an edit makes at a later site of the residual stream into the paths by which it gets there.

    The stream is a sum, so its shift is one too, exactly and for every text: what the edits write themselves (the
    direct path), and what every later attention and MLP gives otherwise than in the unedited model. What a component
    *causes* is another question, which passes with components held at their unedited values answer: see `TraceShift`.

    The source's texts pass twice for the sum, once more for every component with edits that act in front of its own
    nonlinearity, and with `causal` three times for every component between edit and site (four where attention patterns
    can be written). Of a batch the components' outputs are held, of all texts one pooled vector per component.

    Parameters
    ----------
    model:
        A TransformerLens model.
    intervention:
        The edits; those that lie behind the traced site are left out.
    contrast:
        Held-out texts: the source's are edited, and their mean's way to the target's mean is the measure.
    site:
        Where the shift is measured, such as `blocks.5.hook_resid_post`; None for the last layer's.
    pool:
        How a text's tokens become one value: mean, last or first. A maximum is not the sum of its parts' maxima.
    strength:
        As for `Intervention.on`.
    neutral:
        Texts of neither side, whose next-token laws are compared; the contrast's control texts when none are given.
    words:
        Tokens that stand for the concept, as ids or strings of one token each: the logit lens reads their probability
        together off every layer, before and after.
    causal:
        Whether causes are measured beside the exact sum.
    confidence:
        Of the intervals, a delete-a-group jackknife over blocks of texts.
    batch_size:
        Texts per batch; None for as many as can be held.
    check_model:
        As for `Intervention.on`.
    progress:
        Whether to show a progress bar.

    Raises
    ------
    SettingError
        Nothing is traced: the strength is 0, no map moves anything, or no token that the pool reads is in the edits'
        scope. The pool is max; the confidence is none.
    SiteError
        The traced site is not on the residual stream, or every edit lies behind it; an edited site does not exist.
    ModelError
        The model's components cannot be summed; the logit lens does not know the model; and as `Intervention.on` says.
    TokenError
        A word is no single token; and as `tokenize` says.
    ActivationError
        A value is not finite.
    ArtifactError
        As `Intervention.on` says.

    """
    require_settings(trace_shift, locals())
    require_confidence(confidence)
    require_eval(model)
    if checked_pool(pool) == "max":
        raise SettingError("the maximum of a sum is not the sum of maxima: trace with pool mean, last or first")
    require_interventions(intervention)
    if strength == 0.0 or not intervention.units(tol=0.0):
        raise SettingError("there is nothing to trace: at strength 0, or with maps that move nothing, no shift arises")
    host, tokenizer = host_of(model), host_of(model).tokenizer
    spoken = Scope.of_tokens(words, tokenizer).tokens if len(words) else ()
    with intervention.on(model, strength, check_model=check_model):
        pass  # its guards speak before anything is run, and once
    route = _route(model, intervention, strength, _traced(host, site), pool)
    group, *others = tokenized_groups(model, contrast, neutral, None)
    sides = pooled_sides(model, group, [route.site], pool, batch_size, "the unedited model")
    untouched = Untouched(group, sides, deviations(sides))
    parts = read_parts(route, group.tokens["source"], causal=causal, batch_size=batch_size, progress=progress)
    _check_parts(parts, route)
    measures = PathMeasures(untouched, route.site, confidence=confidence)
    estimates = dict(measured_parts(parts, measures))
    source = group.tokens["source"]
    read = (
        read_words(model, route.edits, strength, source, spoken, pool=pool, batch_size=batch_size) if spoken else None
    )
    law = _law(model, intervention, strength, contrast, neutral, others, batch_size)
    about = {
        "method": intervention.provenance.get("method", "intervention"),
        "contrast": contrast.name,
        "site": route.site.name,
        "edited_layers": sorted({edited.layer for edited in route.edits.sites}),
        "pool": pool,
        "strength": strength,
        "confidence": confidence,
        "words": list(words),
        "texts": {f"{kind.name} {side}": len(rows) for kind in (group, *others) for side, rows in kind.tokens.items()},
        "unexplained": parts.unexplained,
    }
    return TraceShift.of(estimates, word_changes(read, untouched.kept["source"]) if read else [], law, settings=about)


def _traced(host: Host, site: Site | str | None) -> Site:
    """Return the traced site; SiteError unless it is on the residual stream, between layers."""
    name = f"blocks.{host.n_layers - 1}.hook_resid_post" if site is None else str(site)
    host.refresh()
    traced = site_at(host, name)
    if traced.kind not in _TRACED:
        raise SiteError(
            f"{name} is not the residual stream between two layers, where components add up: trace at hook_resid_post "
            "or hook_resid_pre of a layer"
        )
    return traced


def _route(model: nn.Module, intervention: Intervention, strength: float, site: Site, pool: Pool) -> Route:
    host = host_of(model)
    end = host.firing_order(site.name)
    edits = tuple(edit for edit in intervention.edits if host.firing_order(edit.site.name) <= end)
    if not edits:
        first = min(intervention.sites, key=lambda edited: host.firing_order(edited.name))
        raise SiteError(
            f"every edit lies behind {site.name}, the first at {first.name}: nothing of it arrives there; trace at a "
            "later site"
        )
    kept = intervention if len(edits) == len(intervention.edits) else replace(intervention, edits=edits)
    start = min(host.firing_order(edit.site.name) for edit in edits)
    between = [
        component for component in find_components(model) if start <= host.firing_order(component.output.name) < end
    ]
    return Route.of(model, kept, strength, site, pool, between)


def _check_parts(parts: Parts, route: Route) -> None:
    if not bool(torch.isfinite(parts.whole).all()):
        raise ActivationError(f"the edited stream at {route.site.name} is not finite: the edit is too strong")
    if not bool(parts.whole.any()):
        raise SettingError(
            f"there is nothing to trace: no token that the pool {route.pool!r} reads is changed at {route.site.name}; "
            "the edits' scopes or gates leave these texts alone"
        )
    route.touched.warn_of_idle_scopes(stacklevel=4)


def _law(
    model: nn.Module,
    intervention: Intervention,
    strength: float,
    contrast: ContrastSet,
    neutral: Sequence[Row | Conversation],
    groups: Sequence[TextGroup],
    batch_size: int | None,
) -> dict[str, Cases]:
    if not groups:
        return {}
    divergences = read_divergences(
        model,
        neutral if len(neutral) else contrast.control,
        lambda: intervention.on(model, strength, check_model=False),
        chat=contrast.chat,
        batch_size=batch_size,
        progress=False,
    )
    (kept,) = leave_groups_out(groups[0].blocks["source"])
    return law_changes(divergences, kept)
