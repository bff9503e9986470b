"""How few units keep the effect of a dense edit, per kind of site, and at what cost?

At every kind of site LinEAS is fitted dense and with so many units (`LinEAS(units=)`, arXiv 2503.10679's sparse group
lasso followed by a fit on the support). Beside each number of units stand as many units with shuffled labels, and as
many random ones, fitted at the same share of their largest penalty. What is kept is the change of the mean score in
generated texts, as a share of the dense edit's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import lens_steer as ls
from analyses.experiment import Experiment, measured
from analyses.levels import Cases, ratio_over_fits
from analyses.measurements import PERPLEXITY, HeldOut, Measurements, change_of
from analyses.sentences import PLURAL, interval, sentence

CONCEPT, DENSE = "concept", "dense"
LINEAS, SHUFFLED, RANDOM = "LinEAS", "shuffled labels", "random units"
AGAINST = "against_controls"
_GROUPS = 20  # of prompts, left out one after the other


@measured()
def run(
    model: Any,
    contrast: ls.ContrastSet,
    *,
    out: str | Path | None,
    seed: int = 0,
    kinds: Sequence[str] = ("mlp.hook_post", "hook_resid_post", "paper:lineas"),
    shares: tuple[float, ...] = (0.01, 0.04, 0.16),
    keep: float = 0.8,
    fit_texts: int = 32,
    draws: int = 4,
    steps: int | None = None,
    scale_weight: float = 1.0,
    **measurement: Any,
) -> ls.Study:
    """Fit with fewer and fewer units at every kind of site, and measure what is left of the dense edit's effect.

    Frames: `kept` (kind of site, choice, units asked, units and layers kept, the share of the dense effect with its
    interval), `effects` (change of score and perplexity of every edit), `against_controls` (both under LinEAS's
    units, `after`, less those under a control's, `before`), `texts`. Intervals are over draws of fit texts and over
    prompts; of shares they hold for all numbers of units at once, against controls for all numbers and controls.

    Parameters
    ----------
    model:
        A TransformerLens model.
    contrast:
        One half of the texts is for the fits, the other one for generation.
    out:
        The new run folder; None writes nothing.
    seed:
        Of the halves, the draws and the random choices.
    kinds:
        Kinds of sites (see `find_sites`), each edited alone.
    shares:
        Numbers of units, as shares of all units at those sites.
    keep:
        The share of the dense effect that is asked for.
    fit_texts:
        Texts a side of every fit, fewer where the half does not suffice: no two draws share a text.
    draws:
        Draws of texts, each with fits of its own.
    steps:
        Gradients of every LinEAS fit, at most; None: its own.
    scale_weight:
        How dear a change of scale is to LinEAS beside a shift.
    **measurement:
        See `Measurement`.

    """
    experiment = Experiment.begin("sparsity", run, locals())
    if not all(0 < share < 1 for share in shares):
        raise ls.LensSteerError(f"shares={shares} lie between 0 and 1: they are of all units")
    fits, heldout = experiment.fit_texts(fit_texts, draws), experiment.heldout()
    kept, effects, against = [], [], []
    examples: dict[str, ls.Intervention] = {}
    for kind in kinds:
        lineas = ls.LinEAS(sites=kind, steps=steps, scale_weight=scale_weight, seed=seed, progress=False)
        edits = dict(_edits(lineas, model, fits, shares, seed))
        examples |= {
            f"{kind} {name[1]}": edit for (name, draw), edit in edits.items() if name[0] == LINEAS and not draw
        }
        at_kind = _Measured.of(heldout, kind, edits, seed)
        kept += at_kind.kept(len(shares))
        effects += at_kind.effects()
        against += at_kind.against_controls()
    frames = {"kept": pd.DataFrame(kept), "effects": pd.DataFrame(effects), AGAINST: pd.DataFrame(against)}
    frames["texts"] = heldout.texts
    return experiment.keep(
        ls.Study(
            frames=frames,
            figures=_figures(frames["kept"], keep),
            summary=summary(experiment.concept, frames, keep, heldout.neutral_name),
            interventions={name.replace(":", " "): edit for name, edit in examples.items()},
            captions={"kept": f"{heldout.about}; {draws} draws of {len(fits[0].source)} fit texts a side"}
            | {AGAINST: "under LinEAS's units (after) less under the control's (before)"},
        )
    )


_Name = tuple[str, int]
"""Choice of units, and how many were asked for (all: 0)."""


def _edits(
    lineas: ls.LinEAS, model: Any, fits: Sequence[ls.ContrastSet], shares: Sequence[float], seed: int
) -> Iterator[tuple[tuple[_Name, int], ls.Intervention]]:
    """Yield (choice and number of units, draw of texts) and the edit."""
    sites = ls.find_sites(model, lineas.sites)
    total = sum(site.width for site in sites)
    counts = sorted({max(1, round(share * total)) for share in shares})
    for draw, texts in enumerate(fits):
        yield ((DENSE, 0), draw), replace(lineas, gamma_share=0.0).fit(model, texts)
        fitted = {}
        for choice, of in ((LINEAS, texts), (SHUFFLED, texts.shuffled(seed + draw))):
            for units, edit in zip(counts, lineas.path(model, of, units=counts).interventions, strict=True):
                fitted[choice, units] = edit
                yield ((choice, units), draw), edit
        for units in counts:
            drawn = ls.random_units(sites, units, seed=seed + draw * len(shares) + units)
            penalty = fitted[LINEAS, units].provenance["final_gamma_share"]
            yield ((RANDOM, units), draw), lineas.refit(model, texts, drawn, gamma_share=penalty)


class _Measured:
    """The edits at one kind of site, and what they do to the texts that the model writes."""

    def __init__(self, kind: str, edits: Mapping[tuple[_Name, int], ls.Intervention], measurements: Measurements):
        self.kind, self.edits, self.measurements = kind, edits, measurements
        self.names = list(dict.fromkeys(name for name, _ in edits))

    @classmethod
    def of(
        cls, heldout: HeldOut, kind: str, edits: Mapping[tuple[_Name, int], ls.Intervention], seed: int
    ) -> _Measured:
        parts = [
            heldout.measure(edit, _called(kind, name), draw=draw, keep=name[0] in (DENSE, LINEAS))
            for (name, draw), edit in edits.items()
        ]
        return cls(kind, edits, Measurements.of(parts, seed=seed))

    def kept(self, numbers: int) -> list[dict[str, Any]]:
        """Return what every choice keeps of the dense effect; intervals hold for all `numbers` of units at once."""
        whole = self._changes((DENSE, 0))
        rows = []
        for name in self.names:
            share = ratio_over_fits(self._changes(name), whole, confidence=1 - 0.05 / numbers)
            about = {"value": share.estimate, "low": share.low, "high": share.high, "confidence": share.confidence}
            rows.append({**self._about(name), **about})
        return rows

    def effects(self) -> list[dict[str, Any]]:
        """Return the change of every measure under every choice."""
        return [
            {**self._about(name), **row}
            for name in self.names
            for row in self.measurements.changes(_called(self.kind, name))
        ]

    def against_controls(self) -> list[dict[str, Any]]:
        """Return every measure under a control (before) and LinEAS's units (after); for all controls at once."""
        controls = [name for name in self.names if name[0] in (SHUFFLED, RANDOM)]
        return [
            {"sites": self.kind, "asked": units, "control": control, **row}
            for control, units in controls
            for row in self.measurements.between(
                _called(self.kind, (control, units)),
                _called(self.kind, (LINEAS, units)),
                confidence=ls.confidence_of_each(0.95, len(controls)),
            )
        ]

    def _changes(self, name: _Name) -> Cases:
        """Return the change of the mean score in every draw: over all prompts, then without each group of them."""
        called = _called(self.kind, name)
        (before, _), (after, of) = (self.measurements.values(called, CONCEPT, when) for when in ("before", "after"))
        group = np.arange(of.shape[1]) % min(_GROUPS, of.shape[1])
        taken = [np.ones_like(group, dtype=bool), *(group != left for left in range(group.max() + 1))]
        return np.stack([((after - before)[:, rows]).sum(1) / of[:, rows].sum(1) for rows in taken], axis=1)

    def _about(self, name: _Name) -> dict[str, Any]:
        supports = [edit.support() for (other, _), edit in self.edits.items() if other == name]
        layers = [int((support.groupby("layer")["kept"].sum() > 0).sum()) for support in supports]
        return {
            "sites": self.kind,
            "choice": name[0],
            "asked": name[1] or int(supports[0]["units"].sum()),
            "units": float(np.mean([support["kept"].sum() for support in supports])),
            "of": int(supports[0]["units"].sum()),
            "layers": float(np.mean(layers)),
        }


def _called(kind: str, name: _Name) -> str:
    return f"{kind}, {name[0]}" if name[0] == DENSE else f"{kind}, {name[0]}, {name[1]} units"


def summary(concept: str, frames: Mapping[str, pd.DataFrame], keep: float, neutral: str) -> list[str]:
    """Return, per kind of site, how few units are shown to keep the share, what controls keep, and the cost.

    And for every number whether LinEAS's units do more than random ones.
    """
    sentences = []
    score = f"the mean score of {concept}"
    for kind, kept in frames["kept"].groupby("sites", sort=False):
        effects, against = (frames[name][frames[name]["sites"] == kind] for name in ("effects", AGAINST))
        dense = change_of(_row(effects, DENSE, CONCEPT))
        sentences.append(sentence(dense.sentence(f"the dense edit at {kind}", score)))
        unmeasured = kept.loc[kept["choice"] != DENSE, "low"].isna().all()
        if unmeasured or dense.verdict in (ls.Verdict.NOT_SHOWN, ls.Verdict.CANNOT_JUDGE):
            sentences.append("So what fewer keep of it is not known.")
            fewer = effects[(effects["choice"] == LINEAS) & (effects["measure"] == CONCEPT)].to_dict("records")
            sentences += [sentence(change_of(row).sentence(f"LinEAS asked for {row['asked']}", score)) for row in fewer]
        else:
            sentences += _kept_sentences(kept, effects, keep, neutral)
        beside_random = against[(against["control"] == RANDOM) & (against["measure"] == CONCEPT)]
        for row in beside_random.to_dict("records"):
            chosen = f"LinEAS asked for {row['asked']}, in place of as many random units,"
            sentences.append(sentence(change_of(row).sentence(chosen, score)))
    return sentences


def _kept_sentences(kept: pd.DataFrame, effects: pd.DataFrame, keep: float, neutral: str) -> list[str]:
    ours = kept[kept["choice"] == LINEAS].sort_values("asked")
    enough = ours[ours["low"] >= keep]
    if enough.empty:
        named = "; ".join(f"{row['units']:.0f} units {interval(row)}" for row in ours.to_dict("records"))
        return [f"No number of units is shown to keep {keep:.0%} of the dense effect: {named}."]
    row = enough.iloc[0]
    controls = kept[(kept["asked"] == row["asked"]) & ~kept["choice"].isin([LINEAS, DENSE])]
    beside = "; ".join(
        f"{control['choice']} ({control['units']:.0f} units) {interval(control)}"
        for control in controls.to_dict("records")
    )
    cost = change_of(_row(effects[effects["asked"] == row["asked"]], LINEAS, PERPLEXITY))
    return [
        f"The fewest units shown to keep {keep:.0%} of the dense effect: {row['units']:.0f} of {row['of']:,} "
        f"({row['units'] / row['of']:.1%}), in {row['layers']:.0f} layers; they keep {interval(row)}; asked for as "
        f"many, {beside}.",
        sentence(cost.sentence("they", f"the perplexity of {neutral}", **PLURAL)),
    ]


def _row(effects: pd.DataFrame, choice: str, measure: str) -> Any:
    return effects[(effects["choice"] == choice) & (effects["measure"] == measure)].iloc[0]


def _figures(kept: pd.DataFrame, keep: float) -> dict[str, Any]:
    shown = kept[kept["choice"] != DENSE]
    shown = shown.assign(line=shown["sites"] + ", " + shown["choice"], share=shown["units"] / shown["of"])
    if shown["low"].isna().all():
        return {}
    return {
        "kept": ls.figures.dose_response(
            shown[shown["choice"] == LINEAS], x="share", y="value", by="sites", low="low", high="high",
            title="What fewer units keep of the dense edit's effect",
            note="Bands: over draws of fit texts and prompts, for all numbers of units at once.",
            x_title="share of units that are edited (log scale)", y_title="share of the dense effect", log_x=True,
            percent=True, baseline=keep, baseline_name="asked",
        ),
        "controls": ls.figures.dose_response(
            shown, x="share", y="value", by="line", title="The same beside shuffled labels and random units",
            x_title="share of units that are edited (log scale)", y_title="share of the dense effect", log_x=True,
            percent=True, baseline=0.0, baseline_name="nothing kept",
        ),
    }  # fmt: skip


if __name__ == "__main__":
    ls.study_command(run)()
