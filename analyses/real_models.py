"""Expert units, steering and the comparison of methods on small models: the tables of the README.

`python -m analyses.real_models experts`, and the same with `steering`, `microworld_methods` or `tinytalk_methods`,
write csv files into `analyses/tables/`. They need the models and data that lie in `../shared`. Edits are measured as in
the studies, see `Experiment` and `Measurements`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import lens_steer as ls
from analyses import method_comparison
from analyses.controls import random_choices
from analyses.experiment import Experiment
from analyses.measurements import PERPLEXITY, HeldOut, Measurements
from lens_steer import microworld

SHARED = Path(__file__).parents[1].parent / "shared"
TABLES = Path(__file__).with_name("tables")
SAD = ["sad", "sadly", "cried", "cry", "crying", "tears", "upset", "lonely"]  # the concept file's own keywords
SEED = 0
NULLS = 3  # draws of every control of the steering table


@dataclass(frozen=True)
class Concept:
    """A contrast and how to read it; `n` texts a side."""

    name: str
    read: Callable[[], ls.ContrastSet]


def concepts() -> tuple[Concept, ...]:
    """Return two lexical concepts, one of style and one of opinion, 125 or 400 texts a side."""
    data = SHARED / "data"
    tweets = data / "hate_offensive_tweets" / "labeled_data.csv"
    return (
        Concept("sad", lambda: ls.read_contrast(data / "story_concepts" / "sad.json", n=125)),
        Concept("dog", lambda: ls.read_contrast(data / "story_concepts" / "dog.json", n=165)),
        Concept(
            "offensive tweet",
            lambda: ls.read_contrast(tweets, text="tweet", label="class", source=["0", "1"], target="2", n=400),
        ),
        Concept(
            "positive review (sst2)",
            lambda: ls.read_contrast(data / "sst2" / "train.csv", text="sentence", label="label", n=400),
        ),
    )


def expert_table() -> pd.DataFrame:
    """Return, per model and concept: the best unit and linear probe on held-out texts, and a shuffled control.

    Unit and probe's site are both chosen on one half of the texts (the site by probes that are trained on one half of
    that half and measured on its other half) and measured on the other one.
    """
    rows = []
    for name in ("tinytalk-neo", "stories260K"):
        model = ls.load_model(SHARED / "models" / name)
        for concept in concepts():
            contrast = concept.read()
            train, _ = contrast.split(test=0.5, seed=SEED)
            ranking = ls.rank_experts(ls.collect(model, contrast), seed=SEED)
            best = ranking.top(1).iloc[0]
            probes = ranking.probes().set_index("site")["probe_auroc"]
            site = probed_site(model, train)
            null = ls.rank_experts(ls.collect(model, contrast.shuffled(SEED)), seed=SEED).top(1).iloc[0]
            rows.append(
                {
                    "model": name,
                    "concept": concept.name,
                    "texts a side": len(contrast.source),
                    "best unit": f"{best.site}[{best.unit}]",
                    "held-out AUROC": best.heldout_auroc,
                    "held-out low": best.heldout_low,
                    "held-out high": best.heldout_high,
                    "all texts, 95 % interval": f"{best.auroc:.3f} [{best.auroc_low:.3f}, {best.auroc_high:.3f}]",
                    "probe's site": site,
                    "probe": probes[site],
                    "units with q < 0.05": int((ranking.frame["q_value"] < 0.05).sum()),
                    "of units": len(ranking.frame),
                    "shuffled labels": null.heldout_auroc,
                }
            )
    return pd.DataFrame(rows)


def probed_site(model: Any, train: ls.ContrastSet) -> str:
    """Return the site whose linear probe is the best, by the selecting texts alone."""
    probes = ls.probe_sites(ls.collect(model, train), holdout=0.5, seed=SEED)
    return str(probes["site"].to_numpy()[int(probes["probe_auroc"].to_numpy().argmax())])


def edits(model: Any, train: ls.ContrastSet) -> Iterator[tuple[str, str, int, ls.Intervention]]:
    """Yield (method, control, draw, intervention): AurA, LinEAS at three supports, and their null controls."""
    small = train.subsample(32, seed=SEED)
    yield "AurA", "", 0, ls.AurA().fit(model, train)
    yield "AurA, the paper's sites", "", 0, ls.AurA(sites="paper:aura").fit(model, train)
    lineas = ls.LinEAS(sites="hook_resid_post")
    for label, share in (("dense", 0.0), ("middle", 0.1), ("sparse", 0.5)):
        edit = replace(lineas, gamma_share=share).fit(model, small)
        yield f"LinEAS {label}", "", 0, edit
    count, penalty = max(1, len(edit.units())), edit.provenance["final_gamma_share"]  # of the sparse one
    null = replace(lineas, gamma_share=0.1)
    for draw in range(NULLS):
        shuffled = train.shuffled(SEED + draw)
        yield "AurA", "shuffled labels", draw, ls.AurA().fit(model, shuffled)
        yield "LinEAS middle", "shuffled labels", draw, null.fit(model, shuffled.subsample(32, seed=SEED))
    sites = ls.find_sites(model, "hook_resid_post")
    for draw, units in enumerate(random_choices(sites, count, draws=NULLS, seed=SEED)):
        yield "LinEAS", "random units, refitted", draw, lineas.refit(model, small, units, gamma_share=penalty)


def steering_table(*, samples: int = 8) -> pd.DataFrame:
    """Return effect and cost of steering tinytalk-neo away from "sad", on texts that no fit has seen.

    Prompts are the first four words of sad sentences; a continuation counts as sad if it holds one of the keywords. The
    intervals hold at 95 % for all edits of the table together.
    """
    model = ls.load_model(SHARED / "models" / "tinytalk-neo")
    whole = ls.read_contrast(SHARED / "data" / "story_concepts" / "sad.json")
    measurement = {"scorer": ls.WordList(SAD, name="sad words"), "samples": samples, "max_new_tokens": 30}
    measurement |= {"most_prompts": len(whole.source), "most_neutral": len(whole.target)}
    given = {"model": model, "contrast": whole, "out": None, "seed": SEED, "measurement": measurement}
    experiment = Experiment.begin("steering", steering_table, given)
    heldout = experiment.heldout()
    about, parts = [], []
    for method, control, draw, edit in edits(model, experiment.train):
        strengths = (1.0,) if control or method.endswith("sites") else (0.5, 1.0, 1.5)
        for strength in strengths:
            row = {"method": method, "control": control, "strength": strength}
            parts.append(_measured(heldout, edit, row, draw))
            if draw == 0:
                support = edit.support()
                about.append(row | {"units": int(support["kept"].sum()), "of units": int(support["units"].sum())})
            print(row, "draw", draw, flush=True)
    return _steering_rows(about, Measurements.of(parts, seed=SEED))


def _label(row: dict[str, Any]) -> str:
    return f"{row['method']}, {row['control']}, {row['strength']}"


def _measured(heldout: HeldOut, edit: ls.Intervention, row: dict[str, Any], draw: int) -> pd.DataFrame:
    return heldout.measure(edit, _label(row), draw=draw, strength=row["strength"])


def _steering_rows(about: Sequence[dict[str, Any]], measurements: Measurements) -> pd.DataFrame:
    looks = sum(not row["control"] for row in about)
    rows = []
    for row in about:
        changes = {
            change["measure"]: change for change in measurements.changes(_label(row), confidence=1 - 0.05 / looks)
        }
        effect, cost = changes["concept"], changes[PERPLEXITY]
        rows.append(
            {
                **row,
                "draws": len(measurements.by_draw(_label(row), "concept")),
                "sad texts before": effect["before"],
                "after": effect["after"],
                "change": effect["change"],
                "change low": effect["low"],
                "change high": effect["high"],
                "perplexity before": cost["before"],
                "perplexity after": cost["after"],
                "perplexity low": cost["low"],
                "perplexity high": cost["high"],
            }
        )
    return pd.DataFrame(rows)


METHODS: dict[str, Any] = {"out": None, "seed": SEED, "strengths": (0.5, 1.0, 2.0), "steps": 100}


def microworld_methods() -> pd.DataFrame:
    """Return every method against "rude" on the embedded model."""
    texts = {
        register: [document.text for document in microworld.sample(200, seed=seed, register=register)]
        for seed, register in enumerate(("rude", "plain"), start=1)
    }
    # A short text may be drawn on either side.
    either = set(texts["rude"]) & set(texts["plain"])
    rude = ls.ContrastSet(
        *([text for text in side if text not in either] for side in texts.values()),
        control=[document.text for document in microworld.sample(200, seed=3)],
        name="rude",
    )
    study = method_comparison.run(
        ls.load_model("microworld"),
        rude,
        scorer=ls.OracleScorer("rude"),
        prompts=microworld.open_prompts(160, seed=1),
        max_new_tokens=40,
        given={"register": "plain"},
        **METHODS,
    )
    print(*study.summary, sep="\n")
    return study.frames["methods"]


def tinytalk_methods() -> pd.DataFrame:
    """Return every method against "sad" on tinytalk-neo."""
    stories = (SHARED / "data" / "tinystories_sample" / "sample.txt").read_text("utf-8").splitlines()
    sad = ls.read_contrast(SHARED / "data" / "story_concepts" / "sad.json")
    study = method_comparison.run(
        ls.load_model(SHARED / "models" / "tinytalk-neo"),
        replace(sad, control=tuple(text for text in stories if 4 < len(text.split()) < 40)[:200]),
        scorer=ls.WordList(SAD, name="sad words"),
        samples=4,
        max_new_tokens=30,
        **METHODS,
    )
    print(*study.summary, sep="\n")
    return study.frames["methods"]


TABLE: dict[str, Callable[[], pd.DataFrame]] = {
    "experts": expert_table,
    "steering": steering_table,
    "microworld_methods": microworld_methods,
    "tinytalk_methods": tinytalk_methods,
}


def main() -> None:
    """Write one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", choices=list(TABLE))
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    try:
        table = TABLE[chosen.table]()
    except ls.LensSteerError as error:
        parser.error(str(error))
    TABLES.mkdir(exist_ok=True)
    table.round(4).to_csv(TABLES / f"{chosen.table}.csv", index=False)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
