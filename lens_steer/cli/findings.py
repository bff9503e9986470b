"""The results of commands as studies, in sentences that follow from their tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lens_steer.report.study import Study
from lens_steer.statistics.verdict import Change, NumberStyle, Verdict, verdict_of

_READ_FIRST = ("selection_auroc", "heldout_auroc", "heldout_low", "heldout_high", "q_value", "tied", "universal")

if TYPE_CHECKING:
    import pandas as pd

    from lens_steer.evaluation.evaluation import Evaluation
    from lens_steer.interventions.intervention import Intervention
    from lens_steer.ranking.experts import ExpertRanking


def ranking_study(ranking: ExpertRanking, probes: pd.DataFrame | None, *, unrelated: int = 0) -> Study:
    """Report a ranking of one concept: the best unit, and how many units tell source from target at all.

    Of a sketch there are no `probes`. `unrelated` counts the texts that universal units were told by.
    """
    frames = {"experts": in_reading_order(ranking.frame)}
    captions = {
        "experts": "All units, best first: AUROC of the activation as pooled per text (1: every source text lies "
        "above every target text; 0.5: chance), and the mean activation on either side.",
    }
    if probes is not None:
        frames["probes"] = probes
        captions["probes"] = (
            "Per site, a linear probe on all units beside the best single unit: AUROC on held-out texts."
        )
    universal = [universal_sentence(ranking.frame, unrelated)] if unrelated else []
    return Study(
        frames=frames,
        figures={"experts": ranking.plot()},
        summary=[best_unit_sentence(ranking.frame), separating_sentence(ranking.frame), *universal],
        captions=captions,
    )


def in_reading_order(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a ranking with the columns first by which it is sorted and judged."""
    first = [column for column in ("concept", "site", "unit", *_READ_FIRST) if column in frame]
    return frame[[*first, *(column for column in frame if column not in first)]]


def best_unit_sentence(frame: pd.DataFrame) -> str:
    """Name the first unit of a ranking, with its AUROC on texts that did not choose it."""
    best = frame.iloc[0]
    unit = f"{best['site']}[{best['unit']}]"
    if not frame["heldout_auroc"].notna().any():
        return (
            f"The unit of the highest AUROC for “{best['concept']}” is {unit}, with {best['auroc']:.3f} on the very "
            "texts that chose it; nothing was held out"
        )
    low, high = best["heldout_low"], best["heldout_high"]
    value = f"AUROC {best['heldout_auroc']:.3f} [{low:.3f}, {high:.3f}] on texts that did not choose it"
    named = f"The best expert unit of “{best['concept']}” is {unit}"
    match verdict_of(low, high, reference=0.5):
        case Verdict.HIGHER:
            return f"{named}, with {value}"
        case Verdict.LOWER:
            return f"{named}, which tells the texts that did not choose it the wrong way round: {value}"
        case Verdict.NOT_SHOWN:
            return f"{named}, which was not shown to tell source from target: {value}"
    return f"The unit chosen for “{best['concept']}” is {unit}; whether it tells source from target cannot be judged"


def separating_sentence(frame: pd.DataFrame) -> str:
    """Say how many units differ between the sides."""
    separating = int((frame["q_value"] < 0.05).sum())
    return (
        f"{separating:,} of {len(frame):,} units differ between source and target texts (q < 0.05, Mann-Whitney test, "
        "Benjamini-Hochberg)."
    )


def universal_sentence(frame: pd.DataFrame, texts: int) -> str:
    """Say how many units stand out whatever the text, and whether the best one does."""
    count, best = int(frame["universal"].sum()), frame.iloc[0]
    sentence = f"{count:,} of {len(frame):,} units are universal: shown, by {texts} unrelated texts, to be among their "
    sentence += "site's largest 0.1 % in most such texts."
    if best["universal"]:
        sentence += f" The best unit, {best['site']}[{best['unit']}], is one of them."
    return sentence


def evaluation_study(result: Evaluation, edit: Intervention) -> Study:
    """Report what an edit does to generated texts, and what it costs on neutral ones."""
    rows = result.frame.to_dict("records")
    effect, cost = (next(row for row in rows if row["measure"] == name) for name in ("effect", "cost"))
    shares = [row for row in rows if row["measure"] not in ("effect", "cost")]
    return Study(
        frames={"scores": result.frame, "texts": result.texts},
        figures={"scores": result.plot()},
        summary=[
            change_sentence(edited_units(edit), f"the {effect['unit']}", effect, over="prompts"),
            change_sentence("The edit", f"the {cost['unit']} of neutral texts", cost, over="texts") + ".",
            *(
                change_sentence(
                    "The edit", f"{row['measure']} texts ({row['unit']})", row, over="prompts", style="share"
                )
                for row in shares
            ),
        ],
        interventions={edit_name(edit): edit},
        captions={
            "scores": "Effect: mean score of the generated texts. Cost: perplexity of neutral texts. Low and high "
            "bound the change (after minus before).",
            "texts": "Every prompt with its continuation before and after the edit, and their scores.",
        },
    )


def edited_units(edit: Intervention) -> str:
    """Name an edit by its units, at the sites where it moves one."""
    support = edit.support()
    moved = support[support["kept"] > 0]
    count, sites = int(moved["kept"].sum()), moved["site"].nunique()
    return f"Editing {count:,} unit{'s' * (count != 1)} at {sites} site{'s' * (sites != 1)}"


def change_sentence(
    subject: str, measure: str, row: Mapping[Any, Any], *, over: str, style: NumberStyle = "number"
) -> str:
    """Say what became of a measure, with the verb that the interval of the change allows.

    `row` has before, after, low, high and n, the number of prompts or texts (`over`) that were drawn again.
    """
    return f"{Change.of(row).sentence(subject, measure, style=style)}, over {row['n']} {over}"


def texts_study(texts: pd.DataFrame, edit: Intervention | None) -> Study:
    """Report continuations."""
    how = "with and without the edit" if edit else "by the model as it is"
    return Study(
        frames={"texts": texts},
        figures={},
        summary=[f"{len(texts)} prompts continued {how}"],
        interventions={} if edit is None else {edit_name(edit): edit},
    )


def sites_study(sites: pd.DataFrame) -> Study:
    """Report a list of sites, or of kinds of sites."""
    what = "sites" if "site" in sites else "kinds of sites"
    return Study(frames={"sites": sites}, figures={}, summary=[f"{len(sites)} {what}"])


def edit_name(edit: Intervention) -> str:
    """Return the method of an edit, as the name of its folder in a run."""
    return str(edit.provenance.get("method", "intervention"))
