"""Composition: two concepts steered at once by edits that were fitted apart. Does each still work; does order matter?

LinEAS is fitted for either concept alone, dense and sparse. Each edit alone, both orders of the two, and the same
composition of edits fitted on shuffled labels are measured on texts that no fit has seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pandas as pd

import lens_steer as ls
from analyses.composition_findings import KINDS, NULL, summary, then
from analyses.experiment import Experiment, concept_name, default_scorer, disjoint, measured, neutral_texts
from analyses.measurements import PERPLEXITY, HeldOut, Measurements

INSIDE = ("moved", "curvature", "additivity", "excess", "commutation")
_SHOWS = 0.5  # a text with this score or more shows the concept
_FEWEST_NEUTRAL = 4
_CANDIDATES = 4  # so many texts are read for every neutral text that is wanted
Edits = Mapping[str, Mapping[str, ls.Intervention]]
"""Kind -> name of the edit -> edit; the compositions among them."""


@measured(samples=4)
def run(
    model: Any,
    contrast: ls.ContrastSet,
    *,
    out: str | Path | None,
    seed: int = 0,
    second: ls.ContrastSet | str,
    sites: str | Sequence[str] = "hook_resid_post",
    fit_texts: int = 32,
    gamma_share: float = 0.3,
    second_scorer: ls.Scorer | None = None,
    steps: int | None = None,
    **measurement: Any,
) -> ls.Study:
    """Compose the edits of two concepts in both orders and measure both concepts and the cost.

    Frames: `composition` (every edit, every measure), `order` (one order against the other), `interference` (each
    composition against its parts alone), `collisions` and `interaction` (where in the model they meet), `texts`. Half
    of the prompts are beginnings of either concept's texts; neutral texts are those of both contrasts that show neither
    concept (scores below 1/2). One fit of every edit: intervals are over prompts and texts.

    Parameters
    ----------
    model:
        A TransformerLens model.
    contrast:
        The first concept: half of its texts for the fit, the other half to measure on.
    out:
        The new run folder; None writes nothing.
    seed:
        Of the halves, the fits and the generations.
    second:
        The second concept: a contrast, or what `read_contrast` reads, such as microworld:negative.
    sites:
        Where LinEAS edits.
    fit_texts:
        Texts a side of every fit.
    gamma_share:
        Penalty of the sparse edits, as a share of each one's gamma_max.
    second_scorer:
        As `scorer`, of the second concept.
    steps:
        Gradients of every LinEAS fit, at most; None: its own.
    **measurement:
        See `Measurement`.

    Raises
    ------
    LensSteerError
        Both contrasts have one name, or fewer than four held-out texts show neither concept.

    """
    experiment = Experiment.begin("composition", run, locals())
    other = ls.read_contrast(second, seed=seed) if isinstance(second, str) else second
    if other.name == contrast.name:
        raise ls.LensSteerError(f"both concepts are named {other.name!r}: give contrasts with names that differ")
    halves = {concept_name(texts): texts.split(test=0.5, seed=seed) for texts in (contrast, other)}
    train = {name: half[0] for name, half in halves.items()}
    # A text of one contrast may stand in the other one as well.
    held = {name: unseen(half[1], train.values()) for name, half in halves.items()}
    given = dict(zip(train, (experiment.measurement.scorer, second_scorer), strict=True))
    scorers = {name: given[name] or default_scorer(train[name], seed) for name in train}
    heldout = _heldout(experiment, held, scorers)
    small = {name: disjoint(texts, fit_texts, 1, seed=seed)[0] for name, texts in train.items()}
    lineas = ls.LinEAS(sites=sites, steps=steps, seed=seed)
    edits = _edits(model, small, lineas, gamma_share, seed)
    measurements = Measurements.of(
        (heldout.measure(edit, label(kind, name)) for kind, named in edits.items() for name, edit in named.items()),
        seed=seed,
    )
    one, two = train
    frames = {
        "composition": _composition(edits, measurements),
        "order": _order(measurements, one, two),
        "interference": _interference(measurements, one, two),
        "collisions": _collisions(edits, one, two),
        "interaction": _interaction(model, edits, held[one], one, two),
        "texts": heldout.texts,
    }
    return experiment.keep(
        ls.Study(
            frames=frames,
            figures=_figures(frames, one, two, heldout.neutral_name),
            summary=summary(frames, one, two, heldout.neutral_name),
            interventions={
                f"{kind}_{place}": edits[kind][name] for kind in KINDS for place, name in enumerate((one, two))
            },
            captions=_captions(heldout, one),
        )
    )


def label(kind: str, edit: str) -> str:
    """Return the name of an edit among the measurements."""
    return f"{kind}: {edit}"


def unseen(held: ls.ContrastSet, trained: Iterable[ls.ContrastSet]) -> ls.ContrastSet:
    """Return held-out texts without those that stand in some training half: contrasts may share texts."""
    seen = {row for train in trained for row in (*train.source, *train.target, *train.control)}
    source, target, control = (
        [row for row in side if row not in seen] for side in (held.source, held.target, held.control)
    )
    return ls.ContrastSet(source, target, control=control, name=held.name, chat=held.chat)


def _heldout(experiment: Experiment, held: Mapping[str, ls.ContrastSet], scorers: Mapping[str, ls.Scorer]) -> HeldOut:
    """Return both concepts' prompts in turn, and as neutral texts those of both contrasts that show neither."""
    m = experiment.measurement
    prompts = m.prompts
    if prompts is None:
        starts = [ls.beginnings(texts.source, words=m.prompt_words, most=m.most_prompts) for texts in held.values()]
        prompts = _alternating(starts)[: m.most_prompts]
    candidates = _alternating([neutral_texts(texts, len(texts.control + texts.target))[0] for texts in held.values()])
    candidates = candidates[: _CANDIDATES * m.most_neutral]
    neutral = without_concepts(candidates, scorers.values())[: m.most_neutral]
    if len(neutral) < _FEWEST_NEUTRAL:
        raise ls.LensSteerError(
            f"of {len(candidates)} held-out control or target texts of both contrasts, {len(neutral)} show neither "
            "concept, and the cost needs four: give the contrasts control= texts"
        )
    return HeldOut(
        experiment.model,
        prompts=tuple(prompts),
        scorers=scorers,
        neutral=neutral,
        neutral_name="held-out texts that show neither concept",
        samples=m.samples,
        max_new_tokens=m.max_new_tokens,
        chat=experiment.contrast.chat,
        seed=experiment.seed,
    )


def without_concepts(rows: Sequence[Any], scorers: Iterable[ls.Scorer]) -> tuple[Any, ...]:
    """Return the rows that no scorer reads as showing its concept; those that cannot be read are left out too."""
    texts = [ls.pooled_text(row) for row in rows]
    scores = [ls.read_continuations(scorer, [""] * len(texts), texts).scores for scorer in scorers]
    return tuple(row for place, row in enumerate(rows) if all(score[place] < _SHOWS for score in scores))


def _alternating(parts: Sequence[Sequence[Any]]) -> tuple[Any, ...]:
    """Return the rows of the parts in turn, each row once."""
    rows = (row for turn in zip_longest(*parts) for row in turn if row is not None)
    return tuple(dict.fromkeys(rows))


def _edits(model: Any, small: Mapping[str, ls.ContrastSet], lineas: ls.LinEAS, share: float, seed: int) -> Edits:
    """Fit both concepts and their shuffled labels, dense and sparse, and compose them."""
    one, two = small
    edits: dict[str, dict[str, ls.Intervention]] = {}
    for kind in KINDS:
        fits = {}
        for name, edit in small.items():
            fit = replace(lineas, gamma_share=share if kind == "sparse" else 0.0)
            fits[name] = fit.fit(model, edit)
            fits[f"{name} shuffled"] = fit.fit(model, edit.shuffled(seed))
        edits[kind] = {
            one: fits[one],
            two: fits[two],
            then(one, two): ls.compose(fits[one], fits[two]),
            then(two, one): ls.compose(fits[two], fits[one]),
            NULL: ls.compose(fits[f"{one} shuffled"], fits[f"{two} shuffled"]),
        }
    return edits


def _composition(edits: Edits, measurements: Measurements) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"kind": kind, "edit": name, "units": len(edit.units()), **row}
            for kind, named in edits.items()
            for name, edit in named.items()
            for row in measurements.changes(label(kind, name))
        ]
    )


def _order(measurements: Measurements, one: str, two: str) -> pd.DataFrame:
    """Hold the other order (after) against the first one (before); the intervals of the whole table hold at once."""
    measures = (one, two, PERPLEXITY)
    confidence = 1 - 0.05 / (len(measures) * len(KINDS))
    rows = []
    for kind in KINDS:
        first, other = (label(kind, order) for order in (then(one, two), then(two, one)))
        for row in measurements.between(first, other, measures=measures, confidence=confidence):
            unedited = measurements.value(first, row["measure"], "before")
            rows.append({"kind": kind, "unedited": unedited, **row})
    return pd.DataFrame(rows)


def _interference(measurements: Measurements, one: str, two: str) -> pd.DataFrame:
    """Hold each composition (after) against the single edit (before), on that edit's own concept; all at once."""
    confidence = 1 - 0.05 / (4 * len(KINDS))
    return pd.DataFrame(
        [
            {"kind": kind, "order": order, **row}
            for kind in KINDS
            for concept in (one, two)
            for order in (then(one, two), then(two, one))
            for row in measurements.between(
                label(kind, concept), label(kind, order), measures=[concept], confidence=confidence
            )
        ]
    )


def _collisions(edits: Edits, one: str, two: str) -> pd.DataFrame:
    """Return per site how many units both edits move, and how much their order matters to the two maps there."""
    parts = []
    for kind, named in edits.items():
        by_site = ls.collisions(named[one], named[two]).by_site()
        by_site.insert(0, "kind", kind)
        parts.append(by_site.drop(columns=["order_sd_mean", "order_sd_max"]))
    return pd.concat(parts, ignore_index=True)


def _interaction(model: Any, edits: Edits, held: ls.ContrastSet, one: str, two: str) -> pd.DataFrame:
    parts = []
    for kind, named in edits.items():
        if not all(named[name].units(tol=0.0) for name in (one, two)):
            continue  # nothing to compose
        table = ls.interaction(model, {name: named[name] for name in (one, two)}, held, progress=False).frame
        table.insert(0, "kind", kind)
        parts.append(table[table["measure"].isin(INSIDE)])
    columns = ["kind", "site", "layer", "side", "first", "later", "measure", "value", "low", "high"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def _figures(frames: Mapping[str, pd.DataFrame], one: str, two: str, neutral: str) -> dict[str, Any]:
    table = frames["composition"].assign(name=lambda rows: rows["kind"] + ": " + rows["edit"])

    def bars(measure: str, title: str, axis: str) -> Any:
        return ls.figures.overlap_bars(
            table[table["measure"] == measure],
            label="name",
            value="change",
            low="low",
            high="high",
            title=title,
            note="Change against the unedited model on held-out texts; bars: 95 % intervals.",
            x_title=axis,
            percent=False,
        )

    order = frames["order"].assign(name=lambda rows: rows["kind"] + ": " + rows["measure"])
    return {
        "effect_on_first": bars(one, f"What every edit does to {one}", f"change of the mean score of {one}"),
        "effect_on_second": bars(two, f"What every edit does to {two}", f"change of the mean score of {two}"),
        "cost": bars(PERPLEXITY, "What every edit costs", f"change of the perplexity of {neutral}"),
        "order": ls.figures.order_dependence(
            order[order["measure"] != PERPLEXITY],
            label="name",
            first="before",
            second="after",
            before="unedited",
            names=(then(one, two), then(two, one)),
            title="Does order matter?",
            note="Mean score of the concept in generated texts; a long line says that order matters.",
            x_title="mean score",
        ),
    }


def _captions(heldout: HeldOut, one: str) -> dict[str, str]:
    return {
        "composition": f"{heldout.about}; 95 % intervals over prompts or texts, for one fit of every edit.",
        "order": "The second order (after) against the first one (before), prompt by prompt; the intervals hold at 95 "
        "% "
        "for all rows together (Bonferroni).",
        "interference": "A composition (after) against one of its parts alone (before), on that part's own concept; "
        "the "
        "intervals hold at 95 % for all rows together (Bonferroni).",
        "collisions": "Units that both edits move, and the distance between the two orders there, in units of "
        "activation.",
        "interaction": f"On held-out texts of {one}: size of an edit (moved), of what does not add up of two edits "
        "(additivity) and of two halves of one (curvature), their difference (excess), and of what order changes "
        "(commutation), in standard deviations per unit; 95 % intervals.",
        "texts": "Continuations of the first prompts, before and after every edit.",
    }


if __name__ == "__main__":
    ls.study_command(run)()
