"""CAST, conditional activation steering: steer only the prompts that meet a condition (arXiv 2409.05907)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lens_steer.activations.activations import Activations
from lens_steer.activations.collect import collect
from lens_steer.errors import SettingError, SiteError
from lens_steer.host.adapter import Host, host_of
from lens_steer.host.scope import ALL_TOKENS, Scope, special_ids
from lens_steer.host.sites import Site, SitePattern, find_sites
from lens_steer.interventions.intervention import Intervention
from lens_steer.interventions.row_gate import RowGate, Side, Similarity
from lens_steer.methods.fitting import Method, method_provenance, narrowed, require_base
from lens_steer.methods.repe import first_component
from lens_steer.ranking.halves import block_folds, halves
from lens_steer.settings import require_settings
from lens_steer.texts.blocks import prompt_of
from lens_steer.texts.contrast import ContrastSet, LabelledTexts
from lens_steer.texts.seen import known_forms, pack, seen_forms

_FOLDS = 5


@dataclass(frozen=True, kw_only=True)
class CAST:
    """Fit a method, and let it act on the rows alone whose prompt is like the source texts of a condition.

    At every candidate site a direction is drawn from the mean tokens of the condition's prompts; the site, threshold
    and side that tell its source prompts (to be steered) from its target prompts (to be left alone) with the best F1
    make the gate. They are chosen by cross-validation: each prompt is compared with a direction that others gave. How
    well the gate does is measured on held-out prompts, which chose nothing. It decides once per row, on the prompt, and
    holds while the row is continued (`RowGate` says how, and why it belongs to the edits and not to their maps).

    A condition is read before the first edit, so the base's edits have to come later than some candidate site; the
    paper, too, reads in early layers and steers in later ones.

    Attributes
    ----------
    base:
        The method that is fitted and then gated.
    layers:
        Keep only these layers of the base's sites, whatever it keeps itself; None leaves the choice to it.
    condition:
        The contrast of the condition; None takes that of the fit, so that what looks like its source is steered. Of
        pairs, the prompts are read.
    condition_sites:
        Candidate sites, as a pattern for `find_sites`; those behind the base's first edit are passed over.
    condition_layers:
        Keep only these layers of it; negative numbers count from the last. None keeps all.
    direction:
        "component" is the first principal component of the prompts of both sides around the middle between the sides'
        means (the paper's); "mean_difference" is source mean minus target mean.
    similarity:
        "projection" compares a mean token with its projection on the direction, as the paper does: the cosine without
        its sign. "cosine" keeps the sign.
    holdout:
        Share of each side's texts that choose nothing and measure the gate, in whole blocks (copies, one prompt, a
        group, a pair).
    seed:
        Of the draw of the held-out texts.
    batch_size:
        Texts per batch of `collect`.

    """

    base: Method
    layers: tuple[int, ...] | None = None
    condition: ContrastSet | None = None
    condition_sites: SitePattern = "hook_resid_pre"
    condition_layers: tuple[int, ...] | None = None
    direction: Literal["component", "mean_difference"] = "component"
    similarity: Similarity = "projection"
    holdout: float = 0.5
    seed: int = 0
    batch_size: int | None = None

    def __post_init__(self) -> None:
        require_settings(type(self), vars(self))
        require_base("CAST", self.base, self.layers)

    @property
    def sites(self) -> SitePattern:
        """Where the base method edits."""
        return self.base.sites

    def fit(self, model: nn.Module, contrast: ContrastSet, *, activations: Activations | None = None) -> Intervention:
        """Return the base method's intervention with the gate on every edit.

        The provenance says under `conditions`, best first, what each candidate site came to: threshold, side,
        `choosing_f1` (cross-validated, the highest of all thresholds), and on the held-out prompts `heldout_f1`,
        `heldout_balanced_accuracy`, `opened_source` and `closed_target` (the shares of source prompts that are steered
        and of target prompts that are left alone; a gate that is always open has a high F1 and balanced accuracy 1/2).
        `activations` are for the base method; the condition's are collected here.

        Raises
        ------
        SiteError
            No candidate site comes before the first edit.
        ContrastError
            A side of the condition has too few texts or blocks to hold some out and choose by the others.
        SettingError
            The sides of the condition do not differ at a candidate site.
        MapError
            The base method's edits have a gate already.

        """
        base = narrowed(self.base, self.layers).fit(model, contrast, activations=activations)
        host = host_of(model)
        sites = self._candidates(model, host, base)
        condition = contrast if self.condition is None else self.condition
        # The tokens that `collect` reads are those that the gate will read.
        tokens = Scope.without_special(host.tokenizer) if special_ids(host.tokenizer) else ALL_TOKENS
        names = [site.name for site in sites]
        read = collect(model, _prompts(condition), names, pool="mean", format_in_pool=True, batch_size=self.batch_size)
        kept, held = (read.rows(half) for half in halves(read, self.holdout, self.seed, what="CAST"))
        conditions = [self._at(site, kept, held, tokens) for site in read.sites]
        conditions.sort(key=lambda one: one.choosing_f1, reverse=True)
        gated = base.gated(conditions[0].gate)
        about = {
            **method_provenance(self, contrast),
            "base": dict(base.provenance),
            "condition": condition.data_hash,
            "condition_texts": {"seen": pack(seen_forms(known_forms(condition.source + condition.target)))},
            "conditions": [one.row for one in conditions],
        }
        return Intervention.fitted(model, gated.edits, strengths=base.strengths, **about)

    def _candidates(self, model: nn.Module, host: Host, base: Intervention) -> tuple[Site, ...]:
        first = min(base.sites, key=lambda site: host.firing_order(site.name))
        sites = find_sites(model, self.condition_sites, layers=self.condition_layers)
        early = tuple(site for site in sites if host.firing_order(site.name) <= host.firing_order(first.name))
        if not early:
            raise SiteError(
                f"CAST: the first edit is at {first.name}, and no candidate site comes before it: let the base method "
                "edit later layers, or set condition_sites"
            )
        return early

    def _at(self, site: Site, kept: Activations, held: Activations, tokens: Scope) -> _Condition:
        """Return the best condition at one site."""
        values, is_source = kept.values[site], kept.labels[:, 0] == 1
        likeness = torch.empty(len(values), dtype=torch.float64)
        compared = torch.zeros(len(values), dtype=torch.bool)
        for train, test in block_folds(is_source.numpy(), kept.blocks.numpy(), _FOLDS, self.seed, what="CAST"):
            gate = self._gate(site, values[train], is_source[train], tokens)
            likeness[test] = gate.similarities(values[test]).double()
            compared[test] = True
        threshold, side = best_threshold(likeness[compared], is_source[compared])
        gate = replace(self._gate(site, values, is_source, tokens), threshold=threshold, side=side)
        choosing = f1(_opened(likeness[compared], threshold, side), is_source[compared])
        opened = _opened(gate.similarities(held.values[site]).double(), threshold, side)
        return _Condition(gate, float(choosing), opened, held.labels[:, 0] == 1)

    def _gate(self, site: Site, values: Tensor, is_source: Tensor, tokens: Scope) -> RowGate:
        direction = self._direction(values[is_source].double(), values[~is_source].double(), site)
        return RowGate(site, direction, 0.0, similarity=self.similarity, tokens=tokens)

    def _direction(self, source: Tensor, target: Tensor, site: Site) -> Float[Tensor, " unit"]:
        towards = source.mean(0) - target.mean(0)
        if not bool(towards.any()):
            raise SettingError(f"CAST: the sides of the condition do not differ at {site.name}: set condition_sites")
        if self.direction == "mean_difference":
            return towards
        middle = (source.mean(0) + target.mean(0)) / 2
        component = first_component(torch.cat([source, target]) - middle)
        return component if float(component @ towards) >= 0 else -component


def _prompts(condition: ContrastSet) -> LabelledTexts:
    """Return the condition with each pair's prompt in its place: a text of its own."""
    texts = condition.labelled
    rows = tuple(prompt_of(row) for row in texts.texts)
    return replace(texts, texts=rows)


@dataclass(frozen=True)
class _Condition:
    """A gate, the F1 that chose it, and which held-out prompts it opens for."""

    gate: RowGate
    choosing_f1: float
    opened: Bool[Tensor, " text"]
    is_source: Bool[Tensor, " text"]

    @property
    def row(self) -> dict[str, Any]:
        """What the provenance says of it."""
        opened_source = float(self.opened[self.is_source].double().mean())
        closed_target = float((~self.opened[~self.is_source]).double().mean())
        return {
            "site": self.gate.site.name,
            "threshold": self.gate.threshold,
            "side": self.gate.side,
            "choosing_f1": self.choosing_f1,
            "heldout_f1": float(f1(self.opened, self.is_source)),
            "heldout_balanced_accuracy": (opened_source + closed_target) / 2,
            "opened_source": opened_source,
            "closed_target": closed_target,
        }


def _opened(likeness: Float[Tensor, " text"], threshold: float, side: Side) -> Bool[Tensor, " text"]:
    return likeness > threshold if side == "above" else likeness < threshold


def best_threshold(likeness: Float[Tensor, " text"], is_source: Bool[Tensor, " text"]) -> tuple[float, Side]:
    """Return the threshold and side with the best F1 for the source.

    The grid is that of all different decisions: the middles between neighbouring values. Of equal ones the one in the
    widest gap is taken, then "above". Where all values are equal the threshold is that value, and nothing is above it.
    """
    values = torch.tensor(sorted(set(likeness.tolist())), dtype=torch.float64)
    if len(values) == 1:
        return float(values), "above"
    middles, gaps = (values[1:] + values[:-1]) / 2, values[1:] - values[:-1]
    above = likeness > middles[:, None]
    scores = torch.cat([f1(above, is_source), f1(~above, is_source)])
    best = int(torch.where(scores == scores.max(), gaps.repeat(2), -1.0).argmax())
    place = best % len(middles)
    return float(middles[place]), "above" if best < len(middles) else "below"


def f1(opened: Bool[Tensor, "*threshold text"], is_source: Bool[Tensor, " text"]) -> Float[Tensor, "*threshold"]:
    """Return the harmonic mean of precision and recall of `opened` for the source texts; 0 where none is opened."""
    hits = (opened & is_source).sum(-1).double()
    mean: Tensor = 2 * hits / (opened.sum(-1) + is_source.sum())
    return mean
