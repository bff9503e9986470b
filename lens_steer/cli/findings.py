"""What the commands found, in sentences that follow from their tables, as studies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lens_steer.report.study import Study

if TYPE_CHECKING:
    import pandas as pd

    from lens_steer.evaluation.evaluation import Evaluation
    from lens_steer.interventions.intervention import Intervention
    from lens_steer.ranking.experts import ExpertRanking


def ranking_study(ranking: ExpertRanking, probes: pd.DataFrame) -> Study:
    """Report a ranking of one concept: the best unit, and how many units tell source from target at all."""
    frame = ranking.frame
    best = frame.iloc[0]
    held = frame["heldout_auroc"].notna().any()
    score = best["heldout_auroc"] if held else best["auroc"]
    where = "texts that did not choose it" if held else "the texts that chose it"
    separating = int((frame["q_value"] < 0.05).sum())
    return Study(
        frames={"experts": frame, "probes": probes},
        figures={"experts": ranking.plot()},
        summary=[
            f"The best expert unit of “{best['concept']}” is {best['site']}[{best['unit']}], "
            f"with AUROC {score:.3f} on {where}",
            f"{separating:,} of {len(frame):,} units differ between source and target texts (q < 0.05, "
            "Mann-Whitney test, Benjamini-Hochberg).",
        ],
        captions={
            "experts": "All units, best first: AUROC of the activation as pooled per text (1: every source text lies "
            "above every target text; 0.5: chance), and the mean activation on either side.",
            "probes": "Per site, a linear probe on all units beside the best single unit: AUROC on held-out texts.",
        },
    )


def evaluation_study(result: Evaluation, edit: Intervention) -> Study:
    """Report what an edit does to generated texts, and what it costs on neutral ones."""
    effect, cost = (result.frame.set_index("measure").loc[name] for name in ("effect", "cost"))
    kept, before, after = int(edit.support()["kept"].sum()), f"{effect['before']:.2f}", f"{effect['after']:.2f}"
    verb = "lowers" if effect["change"] < 0 else "raises"
    moved = f"{verb} {effect['unit']} from {before} to {after}"
    done = f"leaves {effect['unit']} at {before}" if before == after else moved
    return Study(
        frames={"scores": result.frame, "texts": result.texts},
        figures={"scores": result.plot()},
        summary=[
            f"Editing {kept:,} units at {len(edit.sites)} sites {done}",
            f"The 95 % interval of that change, over {effect['n']} prompts, is {effect['low']:+.2f} to "
            f"{effect['high']:+.2f}.",
            f"The {cost['unit']} of {cost['n']} neutral texts goes from {cost['before']:.2f} to {cost['after']:.2f} "
            f"(interval of the change: {cost['low']:+.2f} to {cost['high']:+.2f}).",
        ],
        interventions={str(edit.provenance.get("method", "intervention")): edit},
        captions={
            "scores": "Effect: mean score of the generated texts. Cost: perplexity of neutral texts. Low and high "
            "bound the change (after minus before).",
            "texts": "Every prompt with its continuation before and after the edit, and their scores.",
        },
    )


def texts_study(texts: pd.DataFrame, edit: Intervention | None) -> Study:
    """Report continuations."""
    how = "with and without the edit" if edit else "by the model as it is"
    return Study(
        frames={"texts": texts},
        figures={},
        summary=[f"{len(texts)} prompts continued {how}"],
        interventions={} if edit is None else {str(edit.provenance.get("method", "intervention")): edit},
    )


def sites_study(sites: pd.DataFrame) -> Study:
    """Report a list of sites, or of kinds of sites."""
    what = "sites" if "site" in sites else "kinds of sites"
    return Study(frames={"sites": sites}, figures={}, summary=[f"{len(sites)} {what}"])
