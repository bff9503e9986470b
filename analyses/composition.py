"""Composition: two concepts steered at once by edits that were fitted apart. Does each still work; does order matter?

LinEAS is fitted for either concept alone, dense and sparse. Each edit alone, both orders of the two, and the same
composition of edits fitted on shuffled labels are measured on texts that no fit has seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import pandas as pd

import lens_steer as ls
from analyses.heldout import (
    PERPLEXITY,
    HeldOut,
    Measured,
    beginnings,
    change_text,
    concept_name,
    default_scorer,
    excludes_zero,
    neutral_texts,
    plain,
    unseen,
)

KINDS = ("dense", "sparse")
Edits = dict[str, dict[str, ls.Intervention]]
"""Kind -> name of the edit -> edit; the compositions among them."""


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
    steps: int = 150,
    lr: float = 0.02,
    optimizer: Literal["sgd", "adam"] = "adam",
    scorer: ls.Scorer | None = None,
    second_scorer: ls.Scorer | None = None,
    prompts: Sequence[str] | None = None,
    prompt_words: int = 4,
    most_prompts: int = 60,
    most_neutral: int = 100,
    samples: int = 4,
    max_new_tokens: int = 24,
) -> ls.Study:
    """Compose the edits of two concepts in both orders and measure both concepts and the cost.

    Frames: `composition` (every edit, every measure), `order` (one order against the other), `interference` (each
    composition against its parts alone), `collisions` and `interaction` (where in the model they meet).

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
    steps, lr, optimizer:
        Of every fit.
    scorer, second_scorer:
        How much of either concept a text shows. By default a `ConceptClassifier` fitted on its training half, or the
        oracle of a microworld contrast.
    prompts:
        What is continued; by default the first words of held-out source texts, half of either concept.
    prompt_words, most_prompts:
        How many words, and of how many texts.
    most_neutral:
        Texts of perplexity: the contrasts' control texts, or without any their held-out target texts.
    samples, max_new_tokens:
        Continuations per prompt, and their length in tokens.

    Raises
    ------
    LensSteerError
        Both contrasts have one name.

    """
    settings = plain(locals())
    other = ls.read_contrast(second, seed=seed) if isinstance(second, str) else second
    if other.name == contrast.name:
        raise ls.LensSteerError(f"both concepts are named {other.name!r}: give contrasts with names that differ")
    halves = {concept_name(each): each.split(test=0.5, seed=seed) for each in (contrast, other)}
    train = {name: half[0] for name, half in halves.items()}
    # A text of one contrast may stand in the other one as well.
    held = {name: unseen(half[1], train.values()) for name, half in halves.items()}
    given = dict(zip(train, (scorer, second_scorer), strict=True))
    test = HeldOut(
        model,
        prompts=_beginnings(held.values(), prompt_words, most_prompts) if prompts is None else tuple(prompts),
        scorers={name: given[name] or default_scorer(train[name], seed) for name in train},
        neutral=_alternating([neutral_texts(each, most_neutral) for each in held.values()], most_neutral),
        samples=samples,
        max_new_tokens=max_new_tokens,
        chat=contrast.chat,
        seed=seed,
    )
    lineas = ls.LinEAS(sites=sites, steps=steps, lr=lr, optimizer=optimizer, seed=seed)
    small = {
        name: each.subsample(min(fit_texts, len(each.source), len(each.target)), seed=seed)
        for name, each in train.items()
    }
    edits = _edits(model, small, lineas, gamma_share, seed)
    readings = {kind: {name: test.measure(edit) for name, edit in named.items()} for kind, named in edits.items()}
    one, two = train
    frames = {
        "composition": _composition(edits, readings),
        "order": _order(readings, one, two),
        "interference": _interference(readings, one, two),
        "collisions": _collisions(edits, one, two),
        "interaction": _interaction(model, edits, held[one], one, two, seed),
    }
    study = ls.Study(
        frames=frames,
        figures=_figures(frames, one, two),
        summary=_summary(frames, edits, one, two),
        interventions={f"{kind}_{place}": edits[kind][name] for kind in KINDS for place, name in enumerate((one, two))},
        captions=_captions(test, one, two),
    )
    if out is not None:
        study.save(out, name="composition", model=model, contrast=contrast, seed=seed, settings=settings)
    return study


def _beginnings(held: Iterable[ls.ContrastSet], words: int, most: int) -> tuple[str, ...]:
    return _alternating([beginnings(each.source, words=words, most=most) for each in held], most)


def _alternating(parts: Sequence[Sequence[Any]], most: int) -> tuple[Any, ...]:
    """Return the rows of the parts in turn, each row once."""
    rows = (row for turn in zip_longest(*parts) for row in turn if row is not None)
    return tuple(dict.fromkeys(rows))[:most]


def _then(first: str, later: str) -> str:
    return f"{first}, then {later}"


def _edits(model: Any, small: Mapping[str, ls.ContrastSet], lineas: ls.LinEAS, share: float, seed: int) -> Edits:
    """Fit both concepts and their shuffled labels, dense and sparse, and compose them."""
    one, two = small
    ceilings = {name: lineas.gamma_max(model, each) for name, each in small.items()}
    edits: Edits = {}
    for kind in KINDS:
        fits = {}
        for name, each in small.items():
            fit = replace(lineas, gamma=share * ceilings[name] if kind == "sparse" else 0.0)
            fits[name] = fit.fit(model, each)
            fits[f"{name} shuffled"] = fit.fit(model, each.shuffled(seed))
        edits[kind] = {
            one: fits[one],
            two: fits[two],
            _then(one, two): ls.compose(fits[one], fits[two]),
            _then(two, one): ls.compose(fits[two], fits[one]),
            "shuffled labels": ls.compose(fits[f"{one} shuffled"], fits[f"{two} shuffled"]),
        }
    return edits


def _composition(edits: Edits, readings: Mapping[str, Mapping[str, Measured]]) -> pd.DataFrame:
    rows = []
    for kind, named in readings.items():
        for name, reading in named.items():
            units = len(edits[kind][name].units())
            rows += [{"kind": kind, "edit": name, "units": units, **row} for row in reading.rows()]
    return pd.DataFrame(rows)


def _order(readings: Mapping[str, Mapping[str, Measured]], one: str, two: str) -> pd.DataFrame:
    """Hold one order against the other; the intervals of the whole table hold at once."""
    measures = (one, two, PERPLEXITY)
    share = 0.05 / (len(measures) * len(readings))
    rows = []
    for kind, named in readings.items():
        back, there = named[_then(two, one)], named[_then(one, two)]
        for row in back.against(there, confidence=1 - share):
            if row["measure"] not in measures:
                continue
            values = {"first_order": row["before"], "other_order": row["after"], "difference": row["change"]}
            unedited = {each["measure"]: each["before"] for each in there.rows()}[row["measure"]]
            bounds = {"low": row["low"], "high": row["high"]}
            rows.append({"kind": kind, "measure": row["measure"], "unedited": unedited, **values, **bounds})
    return pd.DataFrame(rows)


def _interference(readings: Mapping[str, Mapping[str, Measured]], one: str, two: str) -> pd.DataFrame:
    """Hold each composition against the single edit, on that edit's own concept; the intervals hold at once."""
    share = 0.05 / (4 * len(readings))
    rows = []
    for kind, named in readings.items():
        for concept in (one, two):
            for order in (_then(one, two), _then(two, one)):
                found = named[order].against(named[concept], confidence=1 - share)
                row = next(each for each in found if each["measure"] == concept)
                values = {"alone": row["before"], "composed": row["after"], "difference": row["change"]}
                bounds = {"low": row["low"], "high": row["high"]}
                rows.append({"kind": kind, "concept": concept, "order": order, **values, **bounds})
    return pd.DataFrame(rows)


def _collisions(edits: Edits, one: str, two: str) -> pd.DataFrame:
    """Return per site how many units both edits move, and how much their order matters to the two maps there."""
    parts = []
    for kind, named in edits.items():
        by_site = ls.collisions(named[one], named[two]).by_site()
        by_site.insert(0, "kind", kind)
        parts.append(by_site.drop(columns=["order_sd_mean", "order_sd_max"]))
    return pd.concat(parts, ignore_index=True)


def _interaction(model: Any, edits: Edits, held: ls.ContrastSet, one: str, two: str, seed: int) -> pd.DataFrame:
    parts = []
    for kind, named in edits.items():
        if not all(named[name].units(tol=0.0) for name in (one, two)):
            continue  # nothing to compose
        found = ls.interaction(model, {name: named[name] for name in (one, two)}, held, progress=False).frame
        found.insert(0, "kind", kind)
        parts.append(found[found["measure"].isin(["moved", "additivity", "commutation"])])
    columns = ["kind", "site", "layer", "side", "first", "later", "measure", "value", "low", "high"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def _summary(frames: Mapping[str, pd.DataFrame], edits: Edits, one: str, two: str) -> list[str]:
    table = frames["composition"]

    def cell(kind: str, edit: str, measure: str) -> Any:
        found = table[(table["kind"] == kind) & (table["edit"] == edit) & (table["measure"] == measure)]
        return found.iloc[0]

    both = {
        kind: [
            order
            for order in (_then(one, two), _then(two, one))
            if all(cell(kind, order, concept)["high"] < 0 for concept in (one, two))
        ]
        for kind in KINDS
    }
    works = [f"{kind} edits" for kind in KINDS if len(both[kind]) == 2]
    title = (
        f"Composed in either order, {' and '.join(works)} lower both {one} and {two}."
        if works
        else f"No composition lowers both {one} and {two} whatever the order."
    )
    sentences = [title]
    for kind in KINDS:
        if empty := [concept for concept in (one, two) if not edits[kind][concept].units()]:
            sentences.append(f"LinEAS found no {kind} edit for {' or '.join(empty)}: it left the model as it is.")
        order = _then(one, two)
        parts = [f"{concept} {change_text(cell(kind, order, concept))}" for concept in (one, two)]
        cost = cell(kind, order, PERPLEXITY)
        alone = ", ".join(f"{concept} {change_text(cell(kind, concept, concept))}" for concept in (one, two))
        sentences.append(
            f"{kind.capitalize()} ({cell(kind, order, one)['units']} units), {order}: {'; '.join(parts)}; perplexity "
            f"{cost['before']:.1f} to {cost['after']:.1f}. Each alone, on its own concept: {alone}."
        )
    return [*sentences, _order_sentence(frames), _interference_sentence(frames), _null_sentence(table, one, two)]


def _order_sentence(frames: Mapping[str, pd.DataFrame]) -> str:
    order = frames["order"]
    found = order[[excludes_zero(row) for _, row in order.iterrows()]]
    if found.empty:
        said = "No dependence on order was found in what the model writes or in its perplexity"
    else:
        each = "; ".join(
            f"{row['kind']}, {row['measure']} {change_text(row, 'difference')}" for _, row in found.iterrows()
        )
        said = f"Order matters (the other order less the first one): {each}"
    inside = frames["interaction"]
    turned = inside[(inside["measure"] == "commutation") & (inside["side"] == "source")]
    met = []
    for kind in KINDS:
        units = int(frames["collisions"].query("kind == @kind")["units"].sum())
        here = turned[turned["kind"] == kind]
        apart = f", which the order moves by up to {here['value'].max():.3f} sd per unit" if len(here) else ""
        met.append(f"the {kind} edits meet at {units} units{apart}")
    return f"{said}; inside, {' and '.join(met)}."


def _interference_sentence(frames: Mapping[str, pd.DataFrame]) -> str:
    table = frames["interference"]
    found = table[[excludes_zero(row) for _, row in table.iterrows()]]
    if found.empty:
        return "Composing was not found to cost either edit, or to add to its effect on its own concept."
    each = "; ".join(
        f"{row['kind']}, {row['order']}: {row['concept']} {change_text(row, 'difference')}"
        for _, row in found.iterrows()
    )
    return f"Composed, an edit does not do what it does alone on its own concept (composed less alone): {each}."


def _null_sentence(table: pd.DataFrame, one: str, two: str) -> str:
    null = table[(table["edit"] == "shuffled labels") & table["measure"].isin([one, two])]
    found = null[[excludes_zero(row) for _, row in null.iterrows()]]
    if found.empty:
        return "The same fits on shuffled labels, composed, change neither concept."
    each = "; ".join(f"{row['kind']}: {row['measure']} {change_text(row)}" for _, row in found.iterrows())
    return f"The same fits on shuffled labels, composed, change a concept too: {each}."


def _figures(frames: Mapping[str, pd.DataFrame], one: str, two: str) -> dict[str, Any]:
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
        "cost": bars(PERPLEXITY, "What every edit costs", "change of the perplexity of neutral texts"),
        "order": ls.figures.order_dependence(
            order[order["measure"] != PERPLEXITY],
            label="name",
            first="first_order",
            second="other_order",
            before="unedited",
            names=(_then(one, two), _then(two, one)),
            title="Does order matter?",
            note="Mean score of the concept in generated texts; a long line says that order matters.",
            x_title="mean score",
        ),
    }


def _captions(test: HeldOut, one: str, two: str) -> dict[str, str]:
    names = ", ".join(scorer.name for scorer in test.scorers.values())
    return {
        "composition": f"Mean score ({names}) of {test.samples} continuations of each of {len(test.prompts)} held-out "
        f"prompts, and perplexity of {len(test.neutral)} neutral texts; 95 % intervals (bootstrap).",
        "order": f"{_then(two, one)} (other_order) less {_then(one, two)} (first_order), prompt by prompt; the "
        "intervals hold at 95 % for all rows together (Bonferroni).",
        "interference": "A composition less one of its parts alone, on that part's own concept; the intervals hold at "
        "95 % for all rows together (Bonferroni).",
        "collisions": "Units that both edits move, and the distance between the two orders there, in units of "
        "activation.",
        "interaction": f"On held-out texts of {one}: size of an edit (moved), of what does not add up (additivity) and "
        "of what order changes (commutation), in standard deviations per unit; 95 % intervals.",
    }


if __name__ == "__main__":
    ls.study_command(run)()
