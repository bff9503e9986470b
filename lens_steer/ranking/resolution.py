"""Resolution: how small p- and q-values can become at all, with so many texts, units and permutations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lens_steer.activations.activations import Activations
from lens_steer.ranking.label_test import design_of, label_test
from lens_steer.statistics.comparison import compare_sides
from lens_steer.statistics.significance import normal_p

if TYPE_CHECKING:
    import pandas as pd


_LEVEL = 0.05


def resolution(frame: pd.DataFrame, activations: Activations, permutations: int) -> pd.DataFrame:
    """Return, per concept of a ranking's frame, how small its p- and q-values can become.

    Columns: concept, test, units, source_texts, target_texts, smallest_p (of a unit that tells the sides perfectly),
    smallest_q (of such a unit that stands alone: units times smallest_p, 1 at most), permutations,
    smallest_family_wise_p (1 / (permutations + 1); nan without). nan where there are no p-values.
    """
    import pandas as pd

    rows = []
    for concept, part in frame.groupby("concept", sort=False):
        one, test = activations.concept(str(concept)), part["test"].iloc[0]
        least = float("nan") if test == "none" else _smallest_p(one)
        label = one.labels[:, 0]
        rows.append(
            {
                "concept": concept,
                "test": test,
                "units": len(part),
                "source_texts": int((label == 1).sum()),
                "target_texts": int((label == 0).sum()),
                "smallest_p": least,
                "smallest_q": min(1.0, least * len(part)) if test != "none" else least,
                "permutations": permutations,
                "smallest_family_wise_p": 1 / (permutations + 1) if permutations else float("nan"),
            }
        )
    return pd.DataFrame(rows)


def _smallest_p(one: Activations) -> float:
    """Return the p-value of a perfect unit: with all texts of a side tied, or without ties, whichever is less."""
    is_source = (one.labels[:, 0] == 1).double()
    # At random, so that the differences within pairs do not tie either.
    ranked = is_source * 2 + torch.rand(len(is_source), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = torch.stack([is_source, ranked], dim=1)
    deviation = compare_sides(values, one.labels[:, 0].numpy()).deviation
    if one.values[one.sites[0]].is_meta:  # a sketch's p-values are the normal ones, however few the texts
        return float(normal_p(deviation).min())
    return float(label_test(one, values, deviation, design_of(one))[1].min())


def resolution_sentence(table: pd.DataFrame) -> str:
    """Say what can be shown at all, of the concept of `resolution` in which the least can be."""
    row = table.iloc[int(table["smallest_q"].fillna(1).to_numpy().argmax())]
    concept = f" of {row['concept']}" if len(table) > 1 else ""
    texts = f"{row['units']:,} units and {row['source_texts']:,} + {row['target_texts']:,} texts{concept}"
    values = "there are no p-values"
    if row["test"] != "none":
        values = (
            f"the smallest p_value is {row['smallest_p']:.1e}, and the smallest q_value of a unit that stands alone "
            f"{row['smallest_q']:.1e}"
        )
    if row["smallest_q"] > _LEVEL:
        values += f" (no single unit can be shown at q <= {_LEVEL}: give more texts or fewer units)"
    permuted = "nothing was permuted, so there is no family_wise_p"
    if row["permutations"]:
        least = row["smallest_family_wise_p"]
        permuted = f"with {row['permutations']:,} permutations the smallest family_wise_p is {least:.1e}"
    return f"With {texts} {values}; {permuted}."
