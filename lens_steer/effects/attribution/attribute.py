"""The call: what each part of a model causes of the difference between clean and corrupted prompts."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from lens_steer.effects.attribution.attribution import Attribution
from lens_steer.effects.attribution.cna import cna
from lens_steer.effects.attribution.estimates import PairMeans, gathered, in_order
from lens_steer.effects.attribution.gradient import attribution
from lens_steer.effects.attribution.integrated import integrated
from lens_steer.effects.attribution.metrics import MetricLike, bind_metric
from lens_steer.effects.attribution.pairs import PairBatch, Pairs, Place, Places, Prompts, align
from lens_steer.effects.attribution.parts import Level, Parts, parts_of
from lens_steer.effects.attribution.patch import patch
from lens_steer.effects.attribution.reliability import orders
from lens_steer.effects.attribution.relp import relp
from lens_steer.effects.attribution.task import BatchEffects, Method, Task
from lens_steer.errors import SettingError
from lens_steer.host.adapter import host_of
from lens_steer.host.guards import check_edit_sites, require_eval
from lens_steer.host.relevance import RELEVANCE_RULES, RelevanceRule
from lens_steer.host.sites import Site, SitePattern, find_sites
from lens_steer.host.tokens import checked_batch_size
from lens_steer.host.trunk import frozen
from lens_steer.host.turns import taking_turns
from lens_steer.host.units import UnitsLike
from lens_steer.progress import progress_bar
from lens_steer.settings import require_settings
from lens_steer.statistics.intervals import require_confidence
from lens_steer.statistics.jackknife import jackknife_intervals
from lens_steer.statistics.verdict import Verdict

if TYPE_CHECKING:
    import pandas as pd

AttributionMethod = Literal["patch", "attribution", "integrated", "relp", "cna"]
"""Measured; or estimated to first order; along a path; by relevance; from the means of all pairs."""

_METHODS: dict[str, Method] = {
    "patch": patch,
    "attribution": attribution,
    "integrated": integrated,
    "relp": relp,
    "cna": cna,
}
_PAIR_BUDGET = 512  # tokens of pairs whose activations and graph are held at once
_ROW_BUDGET = 2048  # tokens of rows that go on from a layer


def attribute(
    model: nn.Module,
    clean: Prompts,
    corrupted: Prompts,
    metric: MetricLike,
    *,
    sites: SitePattern,
    method: AttributionMethod = "attribution",
    level: Level = "site",
    units: UnitsLike | None = None,
    positions: Places | None = None,
    metric_position: Place | Sequence[Place] = -1,
    groups: Sequence[Hashable] | None = None,
    steps: int = 8,
    rules: Sequence[RelevanceRule] = RELEVANCE_RULES,
    reliability: bool = False,
    flag_above: float = 0.5,
    remeasure: bool = False,
    confidence: float = 0.95,
    batch_size: int | None = None,
    progress: bool = True,
) -> Attribution:
    """Say by how much a metric of the corrupted run rises when one part of the model is as it is in the clean run.

    Positive: the part carries what the clean prompt has and the corrupted one lacks (for a metric that is higher in the
    clean run). Swap the two prompts to ask what the corrupted activation destroys in the clean run.

    Parameters
    ----------
    model:
        A TransformerLens model; edits that are on act in all runs.
    clean, corrupted:
        A prompt each, or as many of each as there are pairs. The two of a pair have the same number of tokens, unless
        `positions` says which tokens stand for each other.
    metric:
        `LogitDifference`, `LogProbability`, `ConceptProbability`, `KLToClean`, or a function of logits [row, vocab]
        that gives one number per row.
    sites:
        A pattern for `find_sites`.
    method:
        "patch" measures: every part in a run of its own (`patch.py`). The others estimate: "attribution" by gradient
        times difference, "relp" by relevance coefficients (arXiv 2508.21258), "integrated" by gradients along the way
        of each site, "cna" by the mean difference over all pairs times the mean gradient (see `cna.py`).
    level:
        What a part is: a whole "site", its vector at each "position", a "head", or a "unit"; sites, heads and units are
        moved at all compared positions together.
    units:
        Judge these units only (level "unit"): a ranking, a table, or a list.
    positions:
        Which tokens are compared: numbers for all pairs or a list of them per pair; (clean, corrupted) where they
        differ; below 0 from the end. All tokens by default, with "cna" the one where the metric reads.
    metric_position:
        Where the logits are read, by default at the last token: one place, or one per pair.
    groups:
        Of each pair, such as its template: pairs of a group, and pairs that share a prompt, are one block, which the
        jackknife leaves out together.
    steps:
        Of "integrated".
    rules:
        Of "relp": without "attention" gradients go through attention patterns too, as in the example of RelP's authors;
        with it relevance is conserved, and what acts through later queries and keys (S-inhibition heads) is not seen.
    reliability, flag_above:
        Whether the next term of the estimate is measured beside it, and the ratio of the two above which a part is
        flagged as not to be trusted (arXiv 2606.09899): one more forward and backward pass from every site's layer on,
        and with "relp" and "integrated" those of a gradient.
    remeasure:
        Whether flagged parts are measured by patching, and their values and intervals replaced.
    confidence:
        Of the intervals over pairs; nan with a single block of pairs.
    batch_size:
        Pairs, or rows of patched runs, in a pass; chosen by length when None.
    progress:
        Whether to show a progress bar.

    Raises
    ------
    SettingError
        No pairs, unequal numbers of them, a pair of two equal prompts, positions that a prompt lacks; a metric that
        does not give one finite number per row; reliability asked of exact patching; a level "position" or a "cna"
        whose pairs compare unequal numbers of positions.
    TokenError
        The prompts of a pair differ in length and no positions are given, or are too long; a metric's word is several
        tokens or none.
    SiteError
        A site does not exist, cannot be written (see `check_edit_sites`), has no heads, or no gradient reaches it.
    UnitError
        Units at none of the sites, or outside their site.
    ModelError
        The model is in training mode, or RelP's rules cannot be hung on it.

    """
    require_settings(attribute, locals())
    require_confidence(confidence)
    reliability = reliability or remeasure
    if method == "patch" and reliability:
        raise SettingError("method='patch' measures: there is no estimate whose reliability could be asked")
    if steps < 1 or flag_above <= 0:
        raise SettingError(f"steps={steps} and flag_above={flag_above}: give one step or more, and a limit above 0")
    checked_batch_size(batch_size)
    require_eval(model)
    chosen = find_sites(model, sites)
    if method == "cna" and positions is None:
        positions = (
            [metric_position] if isinstance(metric_position, int | tuple) else [[one] for one in metric_position]
        )
    pairs = align(model, clean, corrupted, positions=positions, metric_position=metric_position, groups=groups)
    if (level == "position" or method == "cna") and not pairs.alike:
        asked = "method='cna'" if method == "cna" else "level='position'"
        raise SettingError(
            f"{asked} takes means over pairs position by position, and these pairs compare unequal numbers of them: "
            "give positions, as many for each"
        )
    parts = parts_of(chosen, level, pairs.most_places, units, host_of(model).device)
    check_edit_sites(model, [part.site for part in parts])
    bound = bind_metric(metric, model, len(pairs))

    def most_rows(batch: PairBatch) -> int:
        return batch_size or max(1, _ROW_BUDGET // batch.corrupted.ids.shape[1])

    task = Task(model, parts, bound, steps, most_rows, tuple(rules))
    run = _Run(task, pairs, batch_size, progress)
    estimate = run.effects(_METHODS[method], method, reliability=reliability)
    means = PairMeans(pairs.blocks)
    cases = _cases(means, parts, estimate, len(pairs))
    frame = _frame(parts, means, estimate, len(pairs)).assign(exact=method == "patch")
    if reliability:
        frame = frame.join(_reliability(parts, means, estimate, len(pairs), flag_above))
    if remeasure and frame["flagged"].any():
        only = {
            part.site: torch.tensor(_of(frame, part.site, "flagged"), device=host_of(model).device) for part in parts
        }
        measured = _cases(means, parts, run.effects(patch, "patch", only=only), len(pairs))
        for part in parts:
            flagged = only[part.site].cpu().numpy()
            cases[part.site.name][:, flagged] = measured[part.site.name][:, flagged]
        frame["exact"] = frame["exact"] | frame["flagged"]
    frame = _with_intervals(frame, parts, cases, confidence)
    numbers: dict[str, float] = {}
    for kind in ("clean", "corrupted"):
        numbers[kind] = float(torch.cat([getattr(effects, kind) for _, effects in estimate]).mean())
    about = {
        "method": method,
        "level": level,
        "metric": getattr(metric, "__name__", type(metric).__name__),
        **numbers,
        "pairs": len(pairs),
        "blocks": len(set(pairs.blocks.tolist())),
        "positions": "all" if positions is None else "given",
        "rules": tuple(rules) if method == "relp" else None,
        "steps": steps if method == "integrated" else None,
        "confidence": confidence,
        "flag_above": flag_above if reliability else None,
        "pairs_hash": hash((pairs.clean.ids, pairs.corrupted.ids, pairs.places, pairs.read)),
    }
    return Attribution(frame, cases, about)


class _Run:
    """Runs all pairs, batch by batch, on a model whose weights are frozen meanwhile."""

    def __init__(self, task: Task, pairs: Pairs, batch_size: int | None, progress: bool) -> None:
        self.task, self.pairs, self.batch_size, self.progress = task, pairs, batch_size, progress

    def batches(self, what: str) -> Any:
        batches = self.pairs.batches(self.batch_size, budget=_PAIR_BUDGET, device=host_of(self.task.model).device)
        return progress_bar(list(batches), desc=what, unit="batch", show=self.progress)

    def effects(
        self,
        method: Method,
        what: str,
        *,
        only: Mapping[Site, Bool[Tensor, " part"]] | None = None,
        reliability: bool = False,
    ) -> list[tuple[Tensor, BatchEffects]]:
        """Return what a method says of every batch, with the numbers of its pairs; its passes are let go."""
        task, estimates = replace(self.task, only=only), []
        with taking_turns(task.model), frozen(task.model):
            for batch in self.batches(what):
                effects = method(task, batch)
                terms = orders(task, batch, effects.passes) if reliability else None
                estimates.append((batch.pairs.cpu(), replace(effects, passes=None, orders=terms)))
        return estimates


Estimates = Sequence[tuple[Tensor, BatchEffects]]


def _cases(means: PairMeans, parts: Sequence[Parts], batches: Estimates, pairs: int) -> dict[str, np.ndarray]:
    if batches[0][1].factors is None:
        effects = gathered(batches, lambda batch: batch.effects, pairs)
        return {site.name: means.of(values) for site, values in effects.items()}
    cases = {}
    for part in parts:
        factors = [
            in_order([(rows, batch.factors[part.site][which]) for rows, batch in batches if batch.factors], pairs)
            for which in (0, 1)
        ]
        cases[part.site.name] = means.of_product(part, *factors)
    return cases


def _frame(parts: Sequence[Parts], means: PairMeans, batches: Estimates, pairs: int) -> pd.DataFrame:
    import pandas as pd

    moves = gathered(batches, lambda batch: batch.moves, pairs)
    sizes = [len(part) for part in parts]
    columns: dict[str, Any] = {
        name: np.repeat([getattr(part.site, name if name != "site" else "name") for part in parts], sizes)
        for name in ("site", "layer", "kind")
    }
    if parts[0].level != "site":
        columns[parts[0].level] = np.concatenate([part.names for part in parts])
    return pd.DataFrame({**columns, "difference": np.concatenate([means.of(moves[part.site])[0] for part in parts])})


def _reliability(
    parts: Sequence[Parts],
    means: PairMeans,
    batches: Estimates,
    pairs: int,
    flag_above: float,
) -> pd.DataFrame:
    import pandas as pd

    terms = [
        np.concatenate(
            [
                means.of(in_order([(rows, of.orders[part.site][which]) for rows, of in batches if of.orders], pairs))[0]
                for part in parts
            ]
        )
        for which in (0, 1)
    ]
    first, second = np.abs(terms)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(second == 0, 0.0, second / first)
    columns: dict[str, np.ndarray] = {"second_order": terms[1], "ratio": ratio, "flagged": ratio > flag_above}
    return pd.DataFrame(columns)


def _with_intervals(
    frame: pd.DataFrame, parts: Sequence[Parts], cases: Mapping[str, np.ndarray], confidence: float
) -> pd.DataFrame:
    values = np.concatenate([cases[part.site.name] for part in parts], axis=1)
    low, high = jackknife_intervals(values, confidence=confidence)
    verdicts = np.select(
        [np.isnan(low), high < 0, low > 0],
        [Verdict.CANNOT_JUDGE.value, Verdict.LOWER.value, Verdict.HIGHER.value],
        Verdict.NOT_SHOWN.value,
    )
    at = frame.columns.get_loc("difference")
    for name, column in (("verdict", verdicts), ("high", high), ("low", low), ("value", values[0])):
        frame.insert(int(at), name, column)  # type: ignore[arg-type]
    return frame


def _of(frame: pd.DataFrame, site: Site, column: str) -> list[bool]:
    return [bool(value) for value in frame.loc[frame["site"] == site.name, column]]
