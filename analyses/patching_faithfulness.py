"""How faithful cheap attributions are to exact patching: in the stream, at attention and MLP outputs, heads and units.

Every estimate is correlated with exact activation patching of the same parts and pairs, beside what shuffled parts
and other parts of the same site, such as random units of an MLP, give. Published for GPT-2 small on indirect objects
(Pearson; arXiv 2508.21258): attribution patching and RelP at the stream .753 and .968, at attention outputs .979 and
.962, at MLP outputs .195 and .992.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import lens_steer as ls
from analyses.experiment import Experiment, as_study
from analyses.sentences import by_verdict, interval, listed, sentence

PLACES: Mapping[str, tuple[str, Any]] = {
    "residual stream": ("hook_resid_post", "position"),
    "attention outputs": ("hook_attn_out", "position"),
    "MLP outputs": ("hook_mlp_out", "position"),
    "heads": ("attn.hook_z", "head"),
    "units": ("mlp.hook_post", "unit"),
}
"""Where parts are judged: kind of site, and what a part is."""
GRADIENT, RELP, FREE, INTEGRATED = "gradient", "RelP", "RelP, patterns free", "integrated gradients"
METHODS: Mapping[str, dict[str, Any]] = {
    GRADIENT: {"method": "attribution"},
    RELP: {"method": "relp"},
    FREE: {"method": "relp", "rules": ("norm", "activation")},
    INTEGRATED: {"method": "integrated"},
}
"""Estimates; RelP with all rules, and without that of attention, as in the example of its authors."""
_OF_RELP = {"residual stream": 0.968, "attention outputs": 0.962, "MLP outputs": 0.992}
PUBLISHED: Mapping[str, Mapping[str, float]] = {
    GRADIENT: {"residual stream": 0.753, "attention outputs": 0.979, "MLP outputs": 0.195},
    RELP: _OF_RELP,
    FREE: _OF_RELP,
}
"""Pearson correlations of GPT-2 small; which rules RelP had there is not said."""
_SHUFFLES = 200
_WORST = 10


@as_study
def run(
    model: Any,
    contrast: ls.ContrastSet,
    *,
    out: str | Path | None,
    seed: int = 0,
    layers: Sequence[int] | None = None,
    units: int = 32,
    steps: int = 5,
    confidence: float = 0.95,
    batch_size: int | None = None,
) -> ls.Study:
    """Correlate gradient, RelP and integrated attributions with exact patching, level by level.

    Frames: `agreement` (one row per place, method and measure, with the interval over pairs, what shuffled parts give
    and what was published), `differences` (RelP against the gradient), `worst` (where RelP is farthest from what was
    measured), `seconds`.

    Parameters
    ----------
    model:
        A TransformerLens model.
    contrast:
        Paired rows (prompt, next word): clean prompts as source, corrupted ones as target, all of one number of tokens;
        `analyses.indirect_objects` writes some. The metric is the logit of the clean word less that of the corrupted.
    out:
        The new run folder; None writes nothing.
    seed:
        Of the units that are drawn, and of the shuffles.
    layers:
        Only these; all by default.
    units:
        How many units per MLP are patched one by one, drawn from all of them and the same for all methods.
    steps:
        Of the integrated gradients.
    confidence:
        Of the intervals over pairs.
    batch_size:
        Pairs, or rows of patched runs, in a pass; chosen by length when left out.

    Raises
    ------
    LensSteerError
        The contrast is not paired, or its rows are no (prompt, next word).

    """
    experiment = Experiment.begin("patching_faithfulness", run, locals())
    clean, corrupted, metric = prompts_and_metric(contrast)
    agreement, differences, worst, seconds = [], [], [], []
    for place, (kind, level) in PLACES.items():
        sites = ls.find_sites(model, kind, layers=layers)
        most = min(units * len(sites), sum(site.width for site in sites))
        chosen = ls.random_units(sites, most, seed=seed) if level == "unit" else None
        settings: dict[str, Any] = {
            "sites": [site.name for site in sites],
            "level": level,
            "units": chosen,
            "steps": steps,
            "confidence": confidence,
            "batch_size": batch_size,
            "progress": False,
        }
        exact, taken = timed(model, clean, corrupted, metric, method="patch", **settings)
        seconds.append({"place": place, "method": "patch", "seconds": taken})
        cases = {}
        for method, how in METHODS.items():
            estimate, taken = timed(model, clean, corrupted, metric, **how, **settings)
            seconds.append({"place": place, "method": method, "seconds": taken})
            rows = estimate.agreement(exact).assign(place=place, method=method)
            rows["shuffled"] = [shuffled_parts(estimate, exact, measure, seed) for measure in rows["measure"]]
            rows["same_site"] = [
                shuffled_parts(estimate, exact, measure, seed, within="site") for measure in rows["measure"]
            ]
            rows["published"] = [
                PUBLISHED.get(method, {}).get(place, np.nan) if measure == "pearson" else np.nan
                for measure in rows["measure"]
            ]
            rows["slope"] = slope(estimate, exact)
            agreement.append(rows)
            cases[method] = estimate.correlations(exact)
            if method == RELP:
                worst.append(farthest(estimate, exact, place))
        for method in (RELP, FREE):
            changes = compared(place, cases[GRADIENT], cases[method], confidence)
            differences += [{"method": method, **change} for change in changes]
    frames = {
        "agreement": pd.concat(agreement, ignore_index=True)[
            [
                "place",
                "method",
                "measure",
                "value",
                "low",
                "high",
                "shuffled",
                "same_site",
                "published",
                "slope",
                "parts",
            ]
        ],
        "differences": pd.DataFrame(differences),
        "worst": pd.concat(worst, ignore_index=True),
        "seconds": pd.DataFrame(seconds),
    }
    return experiment.keep(
        ls.Study(
            frames=frames,
            figures={"agreement": figure(frames["agreement"], len(clean))},
            summary=summary(frames, pairs=len(clean)),
            captions={
                "agreement": "Correlation with exact patching over parts, intervals over pairs; slope: estimated for "
                "measured, least squares through 0; shuffled: the size that one in twenty shuffles of the parts "
                "exceeds; same_site: that of shuffles within each site, such as of random units of the same MLP; "
                "published: GPT-2 small.",
                "worst": "Parts where RelP is farthest from what was measured, in the metric's unit (logits).",
                "seconds": "One run each, on whatever the machine was doing beside.",
            },
        )
    )


def prompts_and_metric(contrast: ls.ContrastSet) -> tuple[list[str], list[str], ls.LogitDifference]:
    """Return clean and corrupted prompts, and the metric of their next words.

    Raises
    ------
    LensSteerError
        The contrast is not paired, or a row is no (prompt, next word).

    """
    rows = (*contrast.source, *contrast.target)
    if not contrast.paired or not all(isinstance(row, tuple) and len(row) == 2 for row in rows):
        raise ls.LensSteerError(
            "give a paired contrast whose rows are (prompt, next word), clean prompts as source and corrupted ones as "
            "target; analyses.indirect_objects writes one"
        )
    (clean, right), (corrupted, wrong) = (zip(*side, strict=True) for side in (contrast.source, contrast.target))
    return [*map(str, clean)], [*map(str, corrupted)], ls.LogitDifference([*map(str, right)], [*map(str, wrong)])


def timed(model: Any, *given: Any, **settings: Any) -> tuple[ls.Attribution, float]:
    """Return an attribution and the seconds that it took."""
    from time import perf_counter

    start = perf_counter()
    return ls.attribute(model, *given, **settings), perf_counter() - start


def shuffled_parts(
    estimate: ls.Attribution, exact: ls.Attribution, measure: str, seed: int, *, within: str | None = None
) -> float:
    """Return the size of a correlation that one in twenty shuffles of the parts exceeds: what reads as nothing.

    Within "site" every part has the estimate of another of its own site, a unit that of a random unit of its MLP: what
    reads as knowing the layers alone.
    """
    differs = (estimate.frame["difference"] != 0).to_numpy()
    one, other = (attribution.frame.loc[differs, "value"] for attribution in (estimate, exact))
    if measure == "spearman":
        one, other = one.rank(), other.rank()
    groups = exact.frame.loc[differs, within].to_numpy() if within else np.zeros(len(one))
    generator = np.random.default_rng(seed)
    values, fixed = one.to_numpy(), other.to_numpy()
    sizes = []
    for _ in range(_SHUFFLES):
        shuffled = values.copy()
        for group in dict.fromkeys(groups):
            here = groups == group
            shuffled[here] = generator.permutation(values[here])
        sizes.append(abs(np.corrcoef(shuffled, fixed)[0, 1]))
    return float(np.quantile(sizes, 0.95))


def slope(estimate: ls.Attribution, exact: ls.Attribution) -> float:
    """Return what is estimated per unit that is measured, by least squares through 0."""
    one, other = estimate.frame["value"], exact.frame["value"]
    return float((one * other).sum() / other.pow(2).sum())


def farthest(estimate: ls.Attribution, exact: ls.Attribution, place: str) -> pd.DataFrame:
    """Return the parts where an estimate is farthest from what was measured."""
    table = estimate.frame.rename(columns={"value": "estimated"})
    part = [] if estimate.level == "site" else [estimate.level]
    table = table.assign(place=place, measured=exact.frame["value"], error=table["estimated"] - exact.frame["value"])
    order = table["error"].abs().sort_values(ascending=False).index[:_WORST]
    chosen = table.loc[order, ["place", "site", *part, "measured", "estimated", "error"]]
    return chosen.rename(columns=dict.fromkeys(part, "part"))


def compared(
    place: str,
    gradient: Mapping[tuple[str, str], np.ndarray],
    relp: Mapping[tuple[str, str], np.ndarray],
    confidence: float,
) -> list[dict[str, Any]]:
    """Return RelP's correlation beside the gradient's, and the interval of the difference over pairs."""
    rows = []
    for (_, measure), before in gradient.items():
        after = next(values for (_, other), values in relp.items() if other == measure)
        change = ls.jackknife_interval(float(after[0] - before[0]), (after - before)[1:], confidence=confidence)
        rows.append(
            {
                "place": place,
                "measure": measure,
                "before": before[0],
                "after": after[0],
                "low": change.low,
                "high": change.high,
            }
        )
    return rows


def summary(frames: Mapping[str, pd.DataFrame], *, pairs: int) -> list[str]:
    """Return what was found, from the frames alone."""
    table = frames["agreement"]
    pearson = table[table["measure"] == "pearson"]
    best = pearson.loc[pearson.groupby("method")["value"].mean().idxmax() == pearson["method"]]
    sentences = [
        sentence(
            f"over {pairs} pairs, the highest Pearson correlation with exact patching, on average over places, has "
            f"{best['method'].iloc[0]} ({best['value'].mean():.2f}, lowest {best['value'].min():.2f})"
        )
    ]
    for place in dict.fromkeys(table["place"]):
        here = pearson[pearson["place"] == place]
        values = [f"{row['method']} {interval(row)}{_bar(row)}" for _, row in here.iterrows()]
        sentences.append(sentence(f"{place}, Pearson correlation with exact patching: {', '.join(values)}"))
    for method, rows in frames["differences"].query("measure == 'pearson'").groupby("method", sort=False):
        verdicts = {row["place"]: ls.Change.of(row).verdict for row in rows.to_dict("records")}
        sentences.append(sentence(f"correlation of {method} against that of the gradient: {by_verdict(verdicts)}"))
    low = pearson[(pearson["method"] == RELP) & (pearson["low"] <= pearson["shuffled"])]
    if len(low):
        sentences.append(sentence(f"RelP is not shown to follow exact patching at {', '.join(low['place'])}"))
    blind = pearson[(pearson["method"] == RELP) & ~(pearson["low"] > pearson["same_site"])]
    blind = blind[~blind["place"].isin(low["place"])]
    if len(blind):
        named = listed(blind["place"])
        sentences.append(sentence(f"RelP is not shown to know more of the parts than their layers at {named}"))
    worst = frames["worst"]
    off = worst.iloc[int(worst["error"].abs().to_numpy().argmax())]
    part = "" if pd.isna(off["part"]) else f"[{int(off['part'])}]"
    sentences.append(
        sentence(
            f"RelP is farthest from what was measured at {off['site']}{part} ({off['place']}): {off['estimated']:+.2f} "
            f"for {off['measured']:+.2f}"
        )
    )
    return sentences


def _bar(row: Any) -> str:
    return "" if np.isnan(row["published"]) else f" (GPT-2 small: {row['published']:.3f})"


def figure(table: pd.DataFrame, pairs: int) -> Any:
    """Return a heat map of Pearson correlations, place by method."""
    wide = table[table["measure"] == "pearson"].pivot(index="place", columns="method", values="value")
    return ls.figures.matrix(
        wide.reindex(index=[*PLACES], columns=[*METHODS]),
        title="Faithfulness to exact patching",
        note=f"Pearson correlation over parts, of means over {pairs} pairs.",
        x_title="method",
        y_title="place",
        value_title="Pearson",
        diverging=True,
        low=-1.0,
        high=1.0,
    )


if __name__ == "__main__":
    ls.study_command(run)()
