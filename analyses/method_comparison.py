"""Every method at its best strength: what it does to a concept, what it costs, and how much of the model it edits.

All methods are fitted on the same texts. Each has its strength chosen on validation prompts and is measured on others;
it stands at the same sites as all others and at the sites of its own paper, beside a fit on shuffled labels at the same
strength.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd
from tqdm import tqdm

import lens_steer as ls
from analyses.heldout import (
    PERPLEXITY,
    HeldOut,
    beginnings,
    change_text,
    continued,
    excludes_zero,
    neutral_texts,
    plain,
)

COMMON, OWN = "the same for all", "the paper's"
NULL = "shuffled labels"
_CONCEPT = "concept"
_SHARES = ("unreadable", "grammatical")


@dataclass(frozen=True)
class _Entry:
    """A method under a name of the table: how it is made for given sites, and the sites of its own paper."""

    name: str
    make: Callable[[Any], Any]
    own: Any
    anywhere: bool = True


def run(
    model: Any,
    contrast: ls.ContrastSet,
    *,
    out: str | Path | None,
    seed: int = 0,
    sites: str | Sequence[str] = "hook_resid_post",
    only: tuple[str, ...] = ("",),
    strengths: tuple[float, ...] = (0.25, 0.5, 1.0, 1.5, 2.0),
    budget: float = 1.25,
    fit_texts: int = 32,
    steps: int = 200,
    share: float = 0.02,
    scorer: ls.Scorer | None = None,
    prompts: Sequence[str] | None = None,
    prompt_words: int = 4,
    most_prompts: int = 200,
    most_neutral: int = 100,
    samples: int = 1,
    max_new_tokens: int = 24,
    given: Mapping[str, str] | None = None,
) -> ls.Study:
    """Fit every method on the same texts and measure each at its best strength.

    Parameters
    ----------
    model, contrast:
        Methods are fitted on one half of the contrast (split by `seed`); prompts, neutral texts and, without a
        `scorer`, nothing else come from the other. DSAS needs control texts and is left out without them.
    out:
        The new run folder; None writes nothing.
    seed:
        Of the split, the fits, the shuffle and the generations.
    sites:
        The sites at which all methods are compared.
    only:
        Names that a method's must begin with one of; the empty one takes all.
    strengths, budget:
        The strength of a method is the one of these with the least of the concept on the validation prompts, among
        those at which the perplexity of the validation texts is at most `budget` times the unedited model's; where
        there is none, the one with the lowest perplexity.
    fit_texts:
        Texts a side, the same for every method.
    steps:
        Of LinEAS and LoReFT.
    share:
        Of all units, for the methods that choose k units; ITI takes a quarter of the heads.
    scorer, prompts, prompt_words, most_prompts:
        How much of the concept a text shows, and what is continued: the even ones to choose strengths, the odd ones to
        measure. By default a `ConceptClassifier` of the training half, and the first `prompt_words` words of at most
        `most_prompts` held-out source texts.
    most_neutral:
        Neutral texts (control, or held-out target texts), halved likewise; behind their first `prompt_words` words the
        cost is measured, and those that are shorter are left out.
    samples, max_new_tokens:
        Continuations per prompt, and their length in tokens.
    given:
        On a microworld model, the target's attributes: adds the steering error, in nats per token; nan for an edit of
        prompts alone, because the microworld's documents have none.

    Raises
    ------
    LensSteerError
        `only` names no method.

    """
    settings = plain(locals())
    train, held = contrast.split(test=0.5, seed=seed)
    starts = list(beginnings(held.source, words=prompt_words, most=most_prompts) if prompts is None else prompts)
    # As pairs, because some methods edit prompts alone, which plain texts do not have.
    neutral = list(continued(neutral_texts(held, most_neutral), words=prompt_words))
    score = scorer or ls.ConceptClassifier.fit(train, seed=seed)
    tuning, test = (
        HeldOut(
            model,
            prompts=tuple(starts[half::2]),
            scorers={_CONCEPT: score},
            neutral=tuple(neutral[half::2]),
            samples=samples,
            max_new_tokens=max_new_tokens,
            chat=contrast.chat,
            seed=seed,
        )
        for half in (0, 1)
    )
    small = train.subsample(min(fit_texts, len(train.source), len(train.target)), seed=seed)
    texts = {"": small, NULL: train.shuffled(seed).subsample(len(small.source), seed=seed)}
    entries = [each for each in _entries(model, small, sites, steps, share, seed) if each.name.startswith(tuple(only))]
    if not entries:
        raise ls.LensSteerError(f"only={only} names no method")
    chosen, tried, kept = [], [], {}
    for entry, where, place in tqdm(list(_placed(entries, sites)), desc="methods"):
        strength, within = 0.0, False
        for control, fitted_on in texts.items():
            begun = perf_counter()
            edit = entry.make(place).fit(model, fitted_on)
            about = {"method": entry.name, "sites": where, "control": control}
            seconds = perf_counter() - begun
            if not control:
                curve = [{**about, **_measured(tuning, edit, each)} for each in strengths]
                tried += curve
                strength, within = _best(curve, budget)
            row = {**about, **_measured(test, edit, strength), "within_budget": within}
            row |= _size(model, edit) | {"fit_seconds": seconds}
            if given is not None:
                row |= _steering_error(model, edit, strength, given, seed)
            chosen.append(row)
            if not control and where == COMMON:
                kept[entry.name.replace(" ", "_")] = edit
    table = pd.DataFrame(chosen)
    study = ls.Study(
        frames={"methods": table, "strengths": pd.DataFrame(tried)},
        figures={"strengths": _figure(contrast.name, pd.DataFrame(tried))},
        summary=_summary(contrast.name, table, score.name),
        interventions=kept,
        captions=_captions(len(starts) // 2, samples, budget, len(small.source)),
    )
    if out is not None:
        study.save(out, name="method_comparison", model=model, contrast=contrast, seed=seed, settings=settings)
    return study


def _steering_error(
    model: Any, edit: ls.Intervention, strength: float, given: Mapping[str, str], seed: int
) -> dict[str, float]:
    if any(each.gate is not None or each.scope.name == "prompt" for each in edit.edits):
        before = ls.steering_error(model, given=given, n=64, seed=seed + 1).before
        return {"error_before": before.nats.mean, "error_after": float("nan")}
    errors = ls.steering_error(model, given=given, intervention=edit, strength=strength, n=64, seed=seed + 1)
    return {"error_before": errors.before.nats.mean, "error_after": errors.nats}


def _entries(model: Any, small: ls.ContrastSet, sites: Any, steps: int, share: float, seed: int) -> Iterator[_Entry]:
    """Yield the methods; where a paper edits one layer of the residual stream, that is the middle one."""
    layers = sorted({site.layer for site in ls.find_sites(model, "hook_resid_post")})
    middle = (layers[len(layers) // 2],)
    one: dict[str, Any] = {"sites": "hook_resid_post", "layers": middle}
    at: dict[str, Any] = {"seed": seed}

    def k(place: Any) -> int:
        return max(1, round(share * sum(site.width for site in ls.find_sites(model, place))))

    def lineas(place: Any, gamma_share: float) -> ls.LinEAS:
        dense = ls.LinEAS(sites=place, steps=steps, progress=False, **at)
        if gamma_share == 0:
            return dense
        gamma = gamma_share * dense.gamma_max(model, small)
        return ls.LinEAS(sites=place, steps=steps, gamma=gamma, progress=False, **at)

    def layered(method: Callable[..., Any], **own: Any) -> Callable[[Any], Any]:
        return lambda place: method(**(place if isinstance(place, dict) else {"sites": place}), **own, **at)

    n_heads = sum(site.heads for site in ls.find_sites(model, "attn.hook_z"))
    yield _Entry("AurA", lambda place: ls.AurA(sites=place, **at), "paper:aura")
    yield _Entry("Det0", lambda place: ls.Det0(k=k(place), sites=place, **at), "paper:aura")
    yield _Entry("Damp", lambda place: ls.Damp(k=k(place), sites=place, **at), "paper:aura")
    yield _Entry("SelfCond", lambda place: ls.SelfCond(k=k(place), sites=place, **at), "paper:selfcond")
    token: dict[str, Any] = {"statistic": "token", "value": "mean"}
    yield _Entry(
        "SelfCond, token means", lambda place: ls.SelfCond(k=k(place), sites=place, **token, **at), "paper:selfcond"
    )
    yield _Entry("MeanAcT", layered(ls.MeanAcT), "paper:act")
    yield _Entry("GaussianAcT", layered(ls.GaussianAcT), "paper:act")
    yield _Entry("LinearAcT", layered(ls.LinearAcT), "paper:act")
    yield _Entry("CAA", layered(ls.CAA, pool="mean"), one)
    yield _Entry("ActAdd", layered(ls.ActAdd, pair=0), one)
    yield _Entry(
        "ITI", lambda place: ls.ITI(k=max(1, n_heads // 4), alpha=1.0, sites=place, **at), "attn.hook_z", False
    )
    pairing: dict[str, Any] = {"pairing": "random", "pool": "mean"}
    yield _Entry("RepE", layered(ls.RepE, **pairing), one)
    yield _Entry("RepE, projected out", layered(ls.RepE, mode="project_out", **pairing), one)
    yield _Entry("LinEAS", lambda place: lineas(place, 0.0), "paper:lineas")
    yield _Entry("LinEAS, sparse", lambda place: lineas(place, 0.4), "paper:lineas")
    yield _Entry("LoReFT", layered(ls.LoReFT, steps=steps, progress=False), one)
    yield _Entry("CAST of CAA", lambda place: ls.CAST(base=layered(ls.CAA, pool="mean")(place), **at), one)
    if small.control:
        yield _Entry(
            "DSAS of LinearAcT", lambda place: ls.DSAS(base=ls.LinearAcT(sites=place, **at), **at), "paper:act"
        )


def _placed(entries: Sequence[_Entry], sites: Any) -> Iterator[tuple[_Entry, str, Any]]:
    for entry in entries:
        if entry.anywhere:
            yield entry, COMMON, sites
        yield entry, OWN, entry.own


def _measured(test: HeldOut, edit: ls.Intervention, strength: float) -> dict[str, Any]:
    """Return effect, cost and what the scorer tells beside them, as one row."""
    rows = {row["measure"]: row for row in test.measure(edit, strength).rows()}
    effect, cost = rows[_CONCEPT], rows[PERPLEXITY]
    row = {"strength": strength} | {name: effect[name] for name in ("before", "after", "change", "low", "high")}
    row |= {"perplexity_before": cost["before"], "perplexity_after": cost["after"]}
    return row | {f"{name}_change": rows[name]["change"] for name in _SHARES if name in rows}


def _best(curve: Sequence[dict[str, Any]], budget: float) -> tuple[float, bool]:
    """Return the strength to take and whether it is within the budget; one that leaves nothing to score is not."""
    fine = [
        row
        for row in curve
        if row["perplexity_after"] <= budget * row["perplexity_before"] and row["after"] == row["after"]
    ]
    if fine:
        return float(min(fine, key=lambda row: float(row["after"]))["strength"]), True
    return float(min(curve, key=lambda row: float(row["perplexity_after"]))["strength"]), False


def _size(model: Any, edit: ls.Intervention) -> dict[str, Any]:
    support = edit.support()
    parameters = sum(tensor.numel() for each in edit.edits for tensor in each.map.state_dict().values())
    try:
        ls.bake(model, edit)
        bakeable = True
    except ls.LensSteerError:
        bakeable = False
    units = {"units": int(support["kept"].sum()), "of_units": int(support["units"].sum())}
    return {**units, "parameters": parameters, "bakeable": bakeable}


def _summary(concept: str, table: pd.DataFrame, scorer: str) -> list[str]:
    real, null = table[table["control"] == ""], table[table["control"] == NULL]
    base = real["before"].iloc[0]
    found = []
    for where in (COMMON, OWN):
        rows = real[(real["sites"] == where) & real["within_budget"] & (real["high"] < 0)].sort_values("after")
        label = "At the same sites" if where == COMMON else "At the papers' own sites"
        if rows.empty:
            found.append(f"{label}, no method lowers the share of {concept} within the budget of perplexity.")
            continue
        best = rows.iloc[0]
        found.append(
            f"{label}, {best['method']} does most against {concept}: {best['before']:.3f} to {best['after']:.3f} of "
            f"continuations ({change_text(best)}), perplexity {best['perplexity_before']:.2f} to "
            f"{best['perplexity_after']:.2f}, {best['units']} of {best['of_units']} units."
        )
    still = [
        f"{row['method']} ({row['sites']})"
        for _, row in real.iterrows()
        if not (row["within_budget"] and excludes_zero(row) and row["change"] < 0)
    ]
    if still:
        found.append(f"No effect within the budget: {'; '.join(still)}.")
    moved = [row["method"] for _, row in null.iterrows() if row["high"] < 0]
    count = f"{len(moved)} of {len(null)} fits on shuffled labels lower it too"
    found.append(f"{count}{': ' + ', '.join(dict.fromkeys(moved)) if moved else ''}.")
    found.append(f"The unedited model's share is {base:.3f}, as scored by {scorer}.")
    return found


def _figure(concept: str, tried: pd.DataFrame) -> Any:
    part = tried[(tried["control"] == "") & (tried["sites"] == COMMON)]
    return ls.figures.dose_response(
        part,
        x="strength",
        y="change",
        by="method",
        title=f"Share of {concept} in continuations, by strength",
        note="Change against the unedited model, validation prompts, the same sites for all methods.",
        x_title="strength",
        y_title="change of share",
    )


def _captions(prompts: int, samples: int, budget: float, texts: int) -> dict[str, str]:
    return {
        "methods": (
            f"Each method fitted on {texts} + {texts} texts, at the strength chosen on other prompts, measured on "
            f"{prompts} prompts x {samples}. before, after: mean score of the continuations; low, high: 95 % interval "
            f"of the change. within_budget: perplexity at most {budget:g} times the unedited model's when it was "
            "chosen. units: moved, of those at the sites. error: steering error in nats per token."
        ),
        "strengths": "Every strength that was tried, on the validation prompts.",
    }


if __name__ == "__main__":
    from lens_steer.cli.study import study_command

    study_command(run)()
