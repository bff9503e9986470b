"""Downstream: edits fitted layer by layer against one fitted end to end; what adds up on the way through the model?

Plain mean differences at every layer, each estimated on the untouched model, are all applied together. Every later
layer then receives its own edit and what the earlier ones have already brought about. LinEAS learns all layers through
the model and is held against them, on held-out, neutral and foreign texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.stats import t as student

import lens_steer as ls
from analyses.heldout import concept_name, neutral_texts, plain

APART, CAUSAL, END_TO_END = "mean differences", "mean differences in turn", "LinEAS"
_KEYS = ["edit", "texts", "edited", "layer", "measure"]


def run(
    model: Any,
    contrast: ls.ContrastSet,
    *,
    out: str | Path | None,
    seed: int = 0,
    sites: str | Sequence[str] = "hook_resid_post",
    pool: Literal["mean", "last"] = "mean",
    fit_texts: int = 32,
    steps: int = 200,
    lr: float = 0.02,
    optimizer: Literal["sgd", "adam"] = "adam",
    foreign: ls.ContrastSet | Sequence[str] | str | None = None,
    most_texts: int = 60,
    folds: int = 5,
) -> ls.Study:
    """Measure at every layer how far edits carry the source towards the target, and what else they move.

    Frames: `carried` (all layers edited: every measure at every layer), `one_layer` (each layer's edit alone: how much
    of it is left later on), `overshoot` (one row per edit and kind of text).

    Parameters
    ----------
    model:
        A TransformerLens model.
    contrast:
        Half of its texts for the fits, the other half to measure on.
    out:
        The new run folder; None writes nothing.
    seed:
        Of the halves and the fits.
    sites:
        Where edits lie and where they are measured; one a layer.
    pool:
        How a text's tokens become one value, in the fits and in the measurement.
    fit_texts:
        Texts a side of every fit, the same for all edits.
    steps, lr, optimizer:
        Of LinEAS.
    foreign:
        Texts unlike those of the fits: a contrast of the same concept from other data, plain texts, or a name or file
        for `read_contrast`. By default the neutral texts with their words in random order.
    most_texts:
        Held-out, neutral and foreign texts a side.
    folds:
        Of the intervals: the measurement is repeated without each fold of the texts (delete-a-group jackknife).

    Raises
    ------
    LensSteerError
        Fewer than two folds, or fewer texts of some kind than folds.

    """
    settings = plain(locals())
    train, held = contrast.split(test=0.5, seed=seed)
    small = train.subsample(min(fit_texts, len(train.source), len(train.target)), seed=seed)
    held = _first(held, most_texts)
    strange = _foreign(foreign, held, most_texts, seed)
    if not 2 <= folds <= min(len(side) for each in (held, strange) for side in (each.source, each.target)):
        raise ls.LensSteerError(f"folds={folds}: give two or more, and at least as many texts of every kind")
    shuffled = small.shuffled(seed)
    means = ls.MeanAcT(sites=sites, pool=pool, causal=False, support="unbounded", seed=seed)
    causal = ls.MeanAcT(sites=sites, pool=pool, causal=True, moves="source", support="unbounded", seed=seed)
    lineas = ls.LinEAS(sites=sites, pool=pool, steps=steps, lr=lr, optimizer=optimizer, seed=seed)
    edits = {
        APART: means.fit(model, small),
        CAUSAL: causal.fit(model, small),
        END_TO_END: lineas.fit(model, small),
        f"{APART}, shuffled labels": means.fit(model, shuffled),
        f"{END_TO_END}, shuffled labels": lineas.fit(model, shuffled),
    }
    parts = []
    for name, edit in edits.items():
        by_layer = name in (APART, END_TO_END)
        measured = _with_intervals(model, edit, held, strange, sites, pool, folds, by_layer)
        parts.append(measured.assign(edit=name))
    table = pd.concat(parts, ignore_index=True)[[*_KEYS, "value", "low", "high"]]
    contrast_too = isinstance(foreign, ls.ContrastSet | str)
    if not contrast_too:  # foreign texts have no target of their own to arrive at
        table = table[(table["texts"] != "foreign") | (table["measure"] == "moved")]
    carried = table[table["edited"] == "all"].drop(columns="edited").reset_index(drop=True)
    one_layer = table[(table["edited"] != "all") & (table["texts"] == "heldout")].reset_index(drop=True)
    frames = {"carried": carried, "one_layer": one_layer, "overshoot": _overshoot(carried)}
    study = ls.Study(
        frames=frames,
        figures=_figures(frames, concept_name(contrast)),
        summary=_summary(frames, concept_name(contrast)),
        interventions={name.replace(", ", "_").replace(" ", "_"): edits[name] for name in (APART, CAUSAL, END_TO_END)},
        captions=_captions(held, strange, folds, contrast_too),
    )
    if out is not None:
        study.save(out, name="downstream", model=model, contrast=contrast, seed=seed, settings=settings)
    return study


def _first(texts: ls.ContrastSet, most: int) -> ls.ContrastSet:
    return _contrast(texts, texts.source[:most], texts.target[:most], neutral_texts(texts, most))


def _contrast(
    like: ls.ContrastSet, source: Sequence[Any], target: Sequence[Any], control: Sequence[Any]
) -> ls.ContrastSet:
    return ls.ContrastSet(source, target, control=control, name=like.name, chat=like.chat)


def _foreign(
    foreign: ls.ContrastSet | Sequence[str] | str | None, held: ls.ContrastSet, most: int, seed: int
) -> ls.ContrastSet:
    """Return foreign texts as a contrast; plain texts stand opposite the held-out target."""
    if isinstance(foreign, str):
        foreign = ls.read_contrast(foreign, seed=seed)
    if isinstance(foreign, ls.ContrastSet):
        return _contrast(foreign, foreign.source[:most], foreign.target[:most], ())
    texts = _scrambled(held.control, seed) if foreign is None else foreign
    texts = [row for row in texts if row not in held.target]
    return ls.ContrastSet(texts[:most], held.target, name="foreign", chat=held.chat)


def _scrambled(texts: Iterable[Any], seed: int) -> list[Any]:
    """Put the words of every text into random order."""
    random = np.random.default_rng(seed)

    def shuffle(text: str) -> str:
        return " ".join(random.permutation(text.split()).tolist())

    return [shuffle(row) if isinstance(row, str) else (row[0], shuffle(row[1])) for row in texts]


def _with_intervals(
    model: Any,
    edit: ls.Intervention,
    held: ls.ContrastSet,
    strange: ls.ContrastSet,
    sites: str | Sequence[str],
    pool: Literal["mean", "last"],
    folds: int,
    by_layer: bool,
) -> pd.DataFrame:
    """Return every measure with the 95 % interval of a delete-a-group jackknife.

    Drawing texts again with replacement would lengthen the distances themselves: a Wasserstein distance of samples
    grows with their ties.
    """

    def measured(leave: int | None) -> pd.Series:
        texts, other = (_without(each, leave, folds) for each in (held, strange))
        shift = ls.downstream_shift(
            model,
            edit,
            texts,
            sites=sites,
            pool=pool,
            neutral=texts.control,
            foreign=other,
            by_layer=by_layer,
            progress=False,
        )
        return _measures(shift.frame)

    whole = measured(None)
    left = pd.concat([measured(fold) for fold in range(folds)], axis=1)
    spread = left.sub(left.mean(axis=1), axis=0)
    error = ((folds - 1) / folds * spread.pow(2).sum(axis=1, skipna=False)) ** 0.5
    half = student.ppf(0.975, folds - 1) * error
    return pd.DataFrame({"value": whole, "low": whole - half, "high": whole + half}).reset_index()


def _without(texts: ls.ContrastSet, fold: int | None, folds: int) -> ls.ContrastSet:
    if fold is None:
        return texts

    def rest(side: Sequence[Any]) -> list[Any]:
        return [row for place, row in enumerate(side) if place % folds != fold]

    return _contrast(texts, rest(texts.source), rest(texts.target), rest(texts.control))


def _measures(frame: pd.DataFrame) -> pd.Series:
    """Return texts, edited, layer, measure -> value, out of the frame of a downstream shift.

    arrived: how far the source's mean has gone to the target's, as a share of that way (1 arrives, above it
    overshoots); removed: share of the Wasserstein distance removed; moved: size of the move of the mean, in standard
    deviations per unit; left: arrived, less what it was at the edited layer itself.
    """
    scaled = frame[["texts", "edited", "layer"]].copy()
    way, step = frame["gap"] / frame["sd"], frame["moved"] / frame["sd"]
    scaled["along"], scaled["way"], scaled["moved"] = way * step, way**2, step**2
    scaled["before"], scaled["after"] = frame["before_sd"], frame["after_sd"]
    keys = ["texts", "edited", "layer"]
    sums = scaled.groupby(keys, sort=False)
    total, mean = sums[["along", "way", "before", "after"]].sum(), sums["moved"].mean()
    measures = pd.DataFrame({"moved": mean**0.5})
    sided = total["way"] > 0
    measures["arrived"] = (total["along"] / total["way"]).where(sided)
    measures["removed"] = (1 - total["after"] / total["before"]).where(sided)
    edited = measures.index.get_level_values("edited")
    layers = measures.index.get_level_values("layer")
    own = measures["arrived"][edited == "layer " + layers.astype(str)].reset_index("layer", drop=True)
    here = pd.MultiIndex.from_arrays([measures.index.get_level_values("texts"), edited])
    measures["left"] = measures["arrived"] - own.reindex(here).to_numpy()
    wide = measures.reset_index().melt(id_vars=keys, var_name="measure", value_name="value").dropna()
    found: pd.Series = wide.set_index([*keys, "measure"])["value"]
    return found


def _overshoot(carried: pd.DataFrame) -> pd.DataFrame:
    """Return per edit and sided texts: where the source has gone furthest, and where it stands at the last layer.

    `beyond` counts the layers at which the whole interval lies above 1.
    """
    rows = []
    for (edit, texts), part in carried[carried["measure"] == "arrived"].groupby(["edit", "texts"], sort=False):
        furthest, last = (part.sort_values(column).iloc[-1] for column in ("value", "layer"))
        row = {"edit": edit, "texts": texts, "layers": len(part), "beyond": int((part["low"] > 1).sum())}
        for name, place in (("furthest", furthest), ("last", last)):
            row |= {f"{name}_{column}": place[column] for column in ("layer", "value", "low", "high")}
        rows.append(row)
    return pd.DataFrame(rows)


def _summary(frames: dict[str, pd.DataFrame], concept: str) -> list[str]:
    table = frames["overshoot"][frames["overshoot"]["texts"] == "heldout"].set_index("edit")
    apart, joint = table.loc[APART], table.loc[END_TO_END]
    if apart["beyond"] > joint["beyond"]:
        less = "does so at fewer layers" if joint["beyond"] else "was not found to"
        title = f"Mean differences fitted layer by layer overshoot on {concept}; the end-to-end edit {less}"
    elif apart["beyond"] < joint["beyond"]:
        title = f"The end-to-end edit overshoots on {concept} at more layers than mean differences do"
    elif apart["beyond"]:
        title = f"Both edits overshoot on {concept}, at equally many layers"
    else:
        title = f"No edit was found to overshoot on {concept}"
    each = ", ".join(
        f"{name} beyond the target at {row['beyond']} of {row['layers']} layers, furthest {_of(row, 'furthest')} of "
        f"the way at layer {row['furthest_layer']}"
        for name, row in ((APART, apart), (END_TO_END, joint))
    )
    causal = table.loc[CAUSAL]
    return [
        f"{title}.",
        f"On held-out texts of the source: {each}.",
        f"At the last layer {APART} stands at {_of(apart, 'last')}, {END_TO_END} at {_of(joint, 'last')}, and "
        f"{CAUSAL}, each estimated behind the earlier edits, at {_of(causal, 'last')}.",
        _left_sentence(frames["one_layer"]),
        _removed_sentence(frames["carried"]),
        *_others(frames["carried"]),
        _null_sentence(table),
    ]


def _of(row: Any, place: str) -> str:
    return f"{row[f'{place}_value']:.2f} [{row[f'{place}_low']:.2f}, {row[f'{place}_high']:.2f}]"


def _left_sentence(one_layer: pd.DataFrame) -> str:
    """Say of how many layers' edits less is left at the last layer than they did at their own."""
    parts = one_layer[(one_layer["measure"] == "left") & (one_layer["layer"] == one_layer["layer"].max())]
    said = []
    for edit in (APART, END_TO_END):
        early = parts[(parts["edit"] == edit) & (parts["edited"] != f"layer {one_layer['layer'].max()}")]
        less, more = int((early["high"] < 0).sum()), int((early["low"] > 0).sum())
        said.append(f"{edit}, {less} decay and {more} grow of {len(early)}")
    return f"One layer's edit alone, followed to the last layer: {'; '.join(said)}."


def _removed_sentence(carried: pd.DataFrame) -> str:
    last = carried[carried["layer"] == carried["layer"].max()]
    last = last[(last["texts"] == "heldout") & (last["measure"] == "removed")].set_index("edit")
    said = []
    for edit in (APART, END_TO_END):
        row = last.loc[edit]
        worse = (
            ", which drives the sides apart" if row["high"] < 0 else "" if row["low"] > 0 else ", nothing to speak of"
        )
        said.append(f"{edit} {row['value']:.0%} [{row['low']:.0%}, {row['high']:.0%}]{worse}")
    return f"Share of the distance between source and target removed at the last layer: {'; '.join(said)}."


def _others(carried: pd.DataFrame) -> list[str]:
    last = carried[(carried["layer"] == carried["layer"].max()) & (carried["measure"] == "moved")]
    said = []
    for texts in ("neutral", "foreign"):
        rows = last[last["texts"] == texts].set_index("edit")
        each = "; ".join(
            f"{edit} {rows.loc[edit, 'value']:.2f} [{rows.loc[edit, 'low']:.2f}, {rows.loc[edit, 'high']:.2f}] sd"
            for edit in (APART, END_TO_END)
        )
        said.append(f"{texts.capitalize()} texts are moved at the last layer by {each} per unit.")
    return said


def _null_sentence(table: pd.DataFrame) -> str:
    nulls = table[table.index.str.endswith("shuffled labels")]
    each = "; ".join(f"{name} {_of(row, 'last')}" for name, row in nulls.iterrows())
    return f"Fitted on shuffled labels, at the last layer: {each}."


def _figures(frames: dict[str, pd.DataFrame], concept: str) -> dict[str, Any]:
    carried = frames["carried"]
    lines: dict[str, Any] = {"x": "layer", "y": "value", "by": "edit", "low": "low", "high": "high", "x_title": "layer"}
    arrived = carried[(carried["measure"] == "arrived") & (carried["texts"] == "heldout")]
    figures = {
        "carried": ls.figures.dose_response(
            arrived,
            **lines,
            title=f"How far edits at every layer carry {concept}",
            note="Held-out source texts: 0 stays, 1 arrives at the target's mean, above 1 overshoots. Bands: 95 %.",
            y_title="share of the way to the target",
            baseline=1.0,
            baseline_name="target",
        )
    }
    for texts in ("neutral", "foreign"):
        figures[f"moved_{texts}"] = ls.figures.dose_response(
            carried[(carried["measure"] == "moved") & (carried["texts"] == texts)],
            **lines,
            title=f"How far {texts} texts are moved",
            note="Move of the mean, root mean square over units. Bands: 95 %.",
            y_title="standard deviations per unit",
        )
    for name, edit in (("alone_layer_by_layer", APART), ("alone_end_to_end", END_TO_END)):
        one = frames["one_layer"]
        wide = one[(one["edit"] == edit) & (one["measure"] == "arrived")]
        wide = wide.assign(place=wide["edited"].str.removeprefix("layer ").astype(int))
        figures[name] = ls.figures.matrix(
            wide.pivot(index="place", columns="layer", values="value"),
            title=f"One layer's edit alone ({edit})",
            note="Share of the way to the target, held-out source texts: does an edit decay or grow on its way?",
            x_title="measured layer",
            y_title="edited layer",
            value_title="share of<br>the way",
            diverging=True,
        )
    return figures


def _captions(held: ls.ContrastSet, strange: ls.ContrastSet, folds: int, sided: bool) -> dict[str, str]:
    counts = f"{len(held.source)} source, {len(held.target)} target, {len(held.control)} neutral and "
    counts += f"{len(strange.source)} foreign texts"
    what = f"a contrast named {strange.name!r}" if sided else "texts without sides"
    return {
        "carried": "arrived: share of the way from the source's mean to the target's; removed: share of the "
        "Wasserstein distance between them; moved: root mean square over units of the move of the mean, in standard "
        f"deviations. {counts} ({what}); 95 % intervals from {folds} folds.",
        "one_layer": "The same with one layer's edit alone; left: arrived here less arrived at the edited layer.",
        "overshoot": "beyond: layers at which the whole interval of arrived lies above 1; where it is largest, and the "
        "last layer.",
    }


if __name__ == "__main__":
    ls.study_command(run)()
