"""LinEAS's descents side by side: the default one, and the paper's SGD at several rates, by the gradients they take.

`python -m analyses.lineas_descents --model smollm2 --sites paper:lineas --rates 0.1 --out rows.csv` fits LinEAS
without a penalty (so that both lower the same number) and writes the smallest loss after so many gradients. A thousand
steps on a model of 135M parameters take an hour of one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import lens_steer as ls
from analyses.real_models import SHARED

GRADIENTS = (1, 10, 25, 60, 100, 200, 500, 1000)
DEFAULT = "default"


def run(
    model: Any, contrast: ls.ContrastSet, *, sites: str, rates: Sequence[float] = (0.01, 0.03, 0.1), steps: int = 1000
) -> pd.DataFrame:
    """Fit by every descent; columns: descent, gradients, loss (the smallest so far), taken_back (steps so far)."""
    fits = {DEFAULT: ls.LinEAS(sites=sites, gamma=0.0, shifts="activation", progress=False)}
    fits |= {f"SGD {rate:g}": ls.LinEAS.paper(sites=sites, lr=rate, steps=steps, progress=False) for rate in rates}
    rows = [row for name, lineas in fits.items() for row in course(name, lineas.fit(model, contrast).history)]
    return pd.DataFrame(rows)


def course(name: str, history: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Yield a descent's smallest loss after so many gradients, the last of them included."""
    losses = history["loss"].fillna(np.inf).cummin()
    taken_back = (history["event"] != "").cumsum()
    for gradients in sorted({*(count for count in GRADIENTS if count < len(history)), len(history)}):
        place = gradients - 1
        yield {
            "descent": name,
            "gradients": gradients,
            "loss": float(losses.iloc[place]),
            "taken_back": int(taken_back.iloc[place]),
        }


def main() -> None:
    """Run what the arguments name and write its rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--sites", default="paper:lineas")
    parser.add_argument("--rates", nargs="*", type=float, default=[0.01, 0.03, 0.1])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--texts", type=Path, default=SHARED / "data" / "story_concepts" / "sad.json")
    parser.add_argument("--n", type=int, default=32)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    try:
        contrast = ls.read_contrast(given.texts, n=given.n)
        frame = run(ls.load_model(given.model), contrast, sites=given.sites, rates=given.rates, steps=given.steps)
    except ls.LensSteerError as error:
        parser.error(str(error))
    frame.assign(model=given.model, sites=given.sites).to_csv(given.out, index=False)


if __name__ == "__main__":
    main()
