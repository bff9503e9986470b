"""LinEAS's descents side by side: the default one, and the paper's SGD at several rates, by the gradients they take.

`python -m analyses.lineas_descents --model smollm2 --sites paper:lineas --rates 0.1 --share 0.1 --out rows.csv` fits
LinEAS at one share of gamma_max, with shifts in the activations' own scale (so that both lower the same number), and
writes the smallest objective after so many gradients. A thousand steps on a model of 135M parameters take an hour of
one core. With `--held-out` it writes instead what every descent's edit leaves of the loss on other texts, and for
several kinds of sites and concepts (`--sites`, `--texts`) how the default fits stand beside the best of the others,
over concepts (OUT_beside.csv).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

import lens_steer as ls
from analyses.real_models import SHARED

GRADIENTS = (1, 10, 25, 60, 100, 200, 500, 1000)
SHARES = (0.0, 0.1)  # of gamma_max, at which every descent is made
DEFAULT = "default"
WEIGHTED = "default, scale_weight=4"


def run(
    model: Any,
    contrast: ls.ContrastSet,
    *,
    sites: str,
    rates: Sequence[float] = (0.01, 0.03, 0.1),
    steps: int = 1000,
    share: float = 0.0,
) -> pd.DataFrame:
    """Fit by every descent, at `share` of gamma_max.

    Columns: descent, gradients, objective (loss and penalty, the smallest so far), support (units of the last point),
    taken_back (steps so far).
    """
    alike: dict[str, Any] = {"sites": sites, "gamma_share": share, "relax": False, "progress": False}
    fits = {DEFAULT: ls.LinEAS(shifts="activation", **alike)}
    fits |= {f"SGD {rate:g}": ls.LinEAS.paper(lr=rate, steps=steps, **alike) for rate in rates}
    rows = [row for name, lineas in fits.items() for row in course(name, lineas.fit(model, contrast).history)]
    return pd.DataFrame(rows)


def course(name: str, history: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Yield a descent's smallest objective after so many gradients, the last of them included."""
    objectives = history["objective"].fillna(np.inf).cummin()
    taken_back = (history["event"] != "").cumsum()
    for gradients in sorted({*(count for count in GRADIENTS if count < len(history)), len(history)}):
        place = gradients - 1
        yield {
            "descent": name,
            "gradients": gradients,
            "objective": float(objectives.iloc[place]),
            "support": int(history["support"].iloc[place]),
            "taken_back": int(taken_back.iloc[place]),
        }


def held_out(
    model: Any,
    contrast: ls.ContrastSet,
    others: ls.ContrastSet,
    *,
    sites: str,
    rates: Sequence[float] = (0.01, 0.03, 0.1),
    steps: int = 1000,
) -> pd.DataFrame:
    """Fit on `contrast` by every descent and at the default settings, and take the loss on `others`.

    Columns: fit, share (of gamma_max; nan where the fit chose it), gradients (nan where a path was walked), seconds,
    units, loss, heldout_loss, and both without an edit (identity_loss, heldout_identity).
    """
    alike: dict[str, Any] = {"sites": sites, "progress": False}
    fits = {(DEFAULT, np.nan): ls.LinEAS(**alike)}
    fits[WEIGHTED, np.nan] = ls.LinEAS(scale_weight=4.0, **alike)
    for share in SHARES:
        fits[DEFAULT, share] = ls.LinEAS(gamma_share=share, **alike)
        fits["Adam", share] = ls.LinEAS(gamma_share=share, optimizer="adam", **alike)
        for rate in rates:
            fits[f"SGD {rate:g}", share] = ls.LinEAS.paper(gamma_share=share, lr=rate, steps=steps, **alike)
    measure = ls.LinEAS(**alike)
    identity = {"identity_loss": measure.loss_of(model, contrast), "heldout_identity": measure.loss_of(model, others)}
    rows = []
    for (name, share), lineas in fits.items():
        begun = time.perf_counter()
        edit = lineas.fit(model, contrast)
        about = {"seconds": time.perf_counter() - begun, "units": int(edit.support()["kept"].sum())}
        about["gradients"] = np.nan if np.isnan(share) else len(edit.history)
        losses = {"loss": measure.loss_of(model, contrast, edit), "heldout_loss": measure.loss_of(model, others, edit)}
        rows.append({"fit": name, "share": share, **about, **losses, **identity})
    return pd.DataFrame(rows)


def beside_others(frame: pd.DataFrame, *, confidence: float = 0.95) -> pd.DataFrame:
    """Compare the default fits with the best of Adam and SGD, by the loss of other texts.

    `frame` has the rows of `held_out`, with the columns sites and concept. The best one, of every rate and share, is
    chosen in hindsight, for each concept anew. Columns: sites, fit, concepts, above (of them, in how many the fit
    leaves more), ratio (of the losses, its geometric mean over concepts), low, high (Student's t on its logarithm, for
    all rows at once: nan with one concept) and confidence (of each).
    """
    keys = ["sites", "concept"]
    others = frame[~frame["fit"].isin([DEFAULT, WEIGHTED])].groupby(keys)["heldout_loss"].min()
    chosen = frame[frame["share"].isna()]
    of_each = ls.confidence_of_each(confidence, len(chosen[["sites", "fit"]].drop_duplicates()))
    rows = []
    for (sites, fit), of_fit in chosen.groupby(["sites", "fit"], sort=False):
        logs = np.log((of_fit.set_index(keys)["heldout_loss"] / others).dropna())
        known = len(logs) > 1
        ends = stats.ttest_1samp(logs, 0).confidence_interval(of_each) if known else (np.nan, np.nan)
        ratios = {"ratio": np.exp(logs.mean()), "low": np.exp(ends[0]), "high": np.exp(ends[1])}
        about = {"sites": sites, "fit": fit, "concepts": len(logs), "above": int((logs > 0).sum())}
        rows.append({**about, **ratios, "confidence": of_each})
    return pd.DataFrame(rows)


def main() -> None:
    """Run what the arguments name and write its rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--sites", nargs="+", default=["paper:lineas"])
    parser.add_argument("--rates", nargs="*", type=float, default=[0.01, 0.03, 0.1])
    parser.add_argument("--steps", type=int, default=1000)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--share", type=float, default=0.0, help="of gamma_max")
    what.add_argument("--held-out", action="store_true", help="losses on as many other texts, at shares 0 and 0.1")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--texts", nargs="+", type=Path, default=[SHARED / "data" / "story_concepts" / "sad.json"])
    parser.add_argument("--n", type=int, default=32)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    rows = pd.DataFrame()
    try:
        model = ls.load_model(given.model, dtype=given.dtype)
        for texts, sites in product(given.texts, given.sites):
            asked = {"sites": sites, "rates": given.rates, "steps": given.steps}
            if given.held_out:
                fitted, others = ls.read_contrast(texts, n=2 * given.n).split(test=0.5, seed=0)
                frame = held_out(model, fitted, others, **asked)
            else:
                frame = run(model, ls.read_contrast(texts, n=given.n), share=given.share, **asked)
                frame = frame.assign(share=given.share)
            about = {"model": given.model, "dtype": given.dtype, "sites": sites, "concept": texts.stem}
            rows = pd.concat([rows, frame.assign(**about)])
            rows.to_csv(given.out, index=False)  # what is there stays where a long run is broken off
    except ls.LensSteerError as error:
        parser.error(str(error))
    if given.held_out:
        beside_others(rows).to_csv(given.out.with_stem(f"{given.out.stem}_beside"), index=False)


if __name__ == "__main__":
    main()
