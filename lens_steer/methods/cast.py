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
from lens_steer.methods.fitting import Method, method_provenance
from lens_steer.methods.repe import first_component
from lens_steer.ranking.halves import halves
from lens_steer.texts.contrast import ContrastSet, LabelledTexts


@dataclass(frozen=True, kw_only=True)
class CAST:
    """Fit a method, and let it act on the rows alone whose prompt is like the source texts of a condition.

    At every candidate site a direction is drawn from the mean tokens of the condition's prompts; the site, threshold
    and side that tell its source prompts (to be steered) from its target prompts (to be left alone) with the best F1 on
    held-out texts make the gate. It decides once per row, on the prompt, and holds while the row is continued
    (`RowGate` says how, and why it belongs to the edits and not to their maps).

    A condition is read before the first edit, so the base's edits have to come later than some candidate site; the
    paper, too, reads in early layers and steers in later ones.

    Attributes
    ----------
    base:
        The method that is fitted and then gated.
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
        Share of each side's texts that F1 is measured on; of a paired condition, whole pairs.
    seed:
        Of the draw of the held-out texts.
    batch_size:
        Texts per batch of `collect`.

    """

    base: Method
    condition: ContrastSet | None = None
    condition_sites: SitePattern = "hook_resid_pre"
    condition_layers: tuple[int, ...] | None = None
    direction: Literal["component", "mean_difference"] = "component"
    similarity: Similarity = "projection"
    holdout: float = 0.5
    seed: int = 0
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.direction not in ("component", "mean_difference"):
            raise SettingError(f"CAST: direction is 'component' or 'mean_difference', not {self.direction!r}")
        if self.similarity not in ("projection", "cosine"):
            raise SettingError(f"CAST: similarity is 'projection' or 'cosine', not {self.similarity!r}")

    @property
    def sites(self) -> SitePattern:
        """Where the base method edits."""
        return self.base.sites

    def fit(self, model: nn.Module, contrast: ContrastSet, *, activations: Activations | None = None) -> Intervention:
        """Return the base method's intervention with the gate on every edit.

        The provenance says under `conditions`, best first, what each candidate site came to: threshold, side, F1 on the
        held-out texts and on those that gave the direction. `activations` are for the base method; the condition's are
        collected here.

        Raises
        ------
        SiteError
            No candidate site comes before the first edit.
        SettingError
            A side of the condition has too few texts to hold some out.
        MapError
            The base method's edits have a gate already.

        """
        base = self.base.fit(model, contrast, activations=activations)
        host = host_of(model)
        sites = self._candidates(model, host, base)
        condition = contrast if self.condition is None else self.condition
        # The tokens that `collect` reads are those that the gate will read.
        tokens = Scope.without_special(host.tokenizer) if special_ids(host.tokenizer) else ALL_TOKENS
        names = [site.name for site in sites]
        read = collect(model, _prompts(condition), names, pool="mean", format_in_pool=True, batch_size=self.batch_size)
        kept, held = self._halves(condition, read)
        found = [self._at(site, read, kept, held, tokens) for site in read.sites]
        found.sort(key=lambda one: one.rank, reverse=True)
        gated = base.gated(found[0].gate)
        about = {
            **method_provenance(self, contrast),
            "base": dict(base.provenance),
            "condition": condition.data_hash,
            "conditions": [condition.row for condition in found],
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

    def _halves(self, condition: ContrastSet, read: Activations) -> tuple[Bool[Tensor, " text"], Bool[Tensor, " text"]]:
        """Return the masks of texts kept for the directions and held out for F1."""
        kept, held = halves(read, self.holdout, self.seed)
        return kept, held

    def _at(self, site: Site, read: Activations, kept: Tensor, held: Tensor, tokens: Scope) -> _Condition:
        """Return the best condition at one site."""
        values, is_source = read.values[site].double(), read.labels[:, 0] == 1
        direction = self._direction(values[kept & is_source], values[kept & ~is_source], site)
        gate = RowGate(site, direction, 0.0, similarity=self.similarity, tokens=tokens)
        likeness = gate.similarities(read.values[site]).double()
        threshold, side = best_threshold(likeness[held], is_source[held])
        gate = replace(gate, threshold=threshold, side=side)
        opened = likeness > threshold if side == "above" else likeness < threshold
        return _Condition(gate, *(float(f1(opened[half], is_source[half])) for half in (held, kept)))

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
    rows = tuple(row if isinstance(row, str) else row[0] for row in texts.texts)
    return replace(texts, texts=rows)


@dataclass(frozen=True)
class _Condition:
    """A gate, and its F1 on held-out texts and on those that gave the direction."""

    gate: RowGate
    heldout_f1: float
    kept_f1: float

    @property
    def rank(self) -> tuple[float, float]:
        return self.heldout_f1, self.kept_f1

    @property
    def row(self) -> dict[str, Any]:
        about = {"site": self.gate.site.name, "threshold": self.gate.threshold, "side": self.gate.side}
        return {**about, "heldout_f1": self.heldout_f1, "kept_f1": self.kept_f1}


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
    found: Tensor = 2 * hits / (opened.sum(-1) + is_source.sum())
    return found
