"""Run folders for tests: a made-up study on the tiny model, with hostile texts in every place that holds text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import torch

from lens_steer.host.sites import find_sites
from lens_steer.interventions.intervention import Edit, Intervention
from lens_steer.interventions.maps import DiagonalAffine
from lens_steer.report.study import Study
from lens_steer.report.token_view import TokenText, TokenView, UnitTokens
from lens_steer.texts.contrast import ContrastSet

HOSTILE = "</script><img src='http://example.invalid/x.png' onerror=alert(1)> & <b>bold</b>"
CONTRAST = ContrastSet(["the dog was sad", "a sad cat"], ["the dog was happy", "a happy cat"], name="sad")


def edit_of(model: Any) -> Intervention:
    site = find_sites(model, "mlp.hook_post")[0]
    scale = torch.ones(site.width)
    scale[:3] = 0.5
    return Intervention.fitted(
        model, [Edit(site, DiagonalAffine(scale, torch.zeros(site.width)))], method="a method", settings={"lr": 0.1}
    )


def study_of(model: Any, **changes: Any) -> Study:
    frame = pd.DataFrame({"unit": [3, 1, 2], "auroc": [0.91234, 0.5, 0.25], "text": ["a", HOSTILE, "c"]})
    figure = go.Figure(go.Bar(x=[HOSTILE, "b"], y=[1, 2]), layout_title_text="<b>A heading</b><br>and a note")
    texts = (TokenText((" the", " <b>", " dog"), (0.0, -0.5, 1.5), "source", cut_after=True),)
    parts: dict[str, Any] = {
        "frames": {"experts": frame, "empty": frame.head(0)},
        "figures": {"experts": figure, "alone": go.Figure(go.Scatter(x=[1, 2], y=[2, 1]))},
        "summary": ["Three units were found", HOSTILE],
        "interventions": {"edit": edit_of(model)},
        "captions": {"experts": "What the units tell apart, as AUROC.", "best": "Texts."},
        "tokens": {"best": TokenView((UnitTokens("blocks.0.mlp.hook_post[3]", -0.5, 1.5, texts),))},
    }
    return Study(**{**parts, **changes})


def save(study: Study, out: Path, model: Any, **about: Any) -> Path:
    given = {"name": "a_study", "contrast": CONTRAST, "seed": 7, "settings": {"k": 3, "path": {"gamma": [1.0, 0.5]}}}
    return study.save(out, model=model, **{**given, **about})
