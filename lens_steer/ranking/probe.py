"""Linear probes: is a concept in a site at all, and does a single unit hold what the whole site knows?"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lens_steer.activations.activations import Activations
from lens_steer.ranking.halves import block_folds, halves
from lens_steer.ranking.measured import matching_holdout, require_finite
from lens_steer.settings import require_settings
from lens_steer.statistics.scores import auroc

if TYPE_CHECKING:
    import pandas as pd

_PENALTIES = (1e-3, 1e-2, 1e-1)  # inverse strengths; sites have more units than texts, so only strong ones matter
_FOLDS = 3


def probe_sites(activations: Activations, *, holdout: float | Activations = 0.5, seed: int = 0) -> pd.DataFrame:
    """Fit one logistic regression per concept and site on all its units; both columns are measured on held-out texts.

    Returns a frame: concept, site, layer, probe_auroc, best_unit (chosen on the other half), best_unit_auroc.
    The penalty is chosen by cross-validation inside the training half; units are standardised there. Halves and folds
    keep blocks whole; `holdout` and the errors are those of `rank_experts`, but for None.
    """
    require_settings(probe_sites, locals())
    import pandas as pd

    require_finite(activations)
    other = matching_holdout(activations, holdout) if isinstance(holdout, Activations) else None
    rows = []
    for concept in activations.concepts:
        one = activations.concept(concept)
        if isinstance(holdout, Activations):
            train, test = one, holdout if other is None else other.concept(concept)
        else:
            train, test = (one.rows(half) for half in halves(one, holdout, seed))
        for site in one.sites:
            best = int(auroc(train.source[site], train.target[site]).argmax())
            source, target = test.source[site], test.target[site]
            score = probe_scores(train, train.values[site], torch.cat([source, target]), seed)
            rows.append(
                {
                    "concept": concept,
                    "site": site.name,
                    "layer": site.layer,
                    "probe_auroc": float(auroc(score[: len(source)], score[len(source) :])),
                    "best_unit": best,
                    "best_unit_auroc": float(auroc(source[:, [best]], target[:, [best]])),
                }
            )
    return pd.DataFrame(rows)


def probe_scores(train: Activations, values: Tensor, test: Tensor, seed: int) -> Tensor:
    """Return the scores of test rows, as one column, by a probe that is fitted on `values`, the rows of `train`."""
    from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    is_source, blocks = train.labels[:, 0].numpy() == 1, train.blocks.numpy()
    folds = _scored_folds(is_source, blocks, seed)
    regression = (
        LogisticRegressionCV(Cs=list(_PENALTIES), cv=folds, scoring="roc_auc", max_iter=500)
        if folds
        else LogisticRegression(C=_PENALTIES[1], max_iter=500)
    )
    probe = make_pipeline(StandardScaler(), regression)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fit that stops early is a slightly stronger penalty, nothing to act on
        probe.fit(values.numpy(), is_source)
    return torch.as_tensor(probe.decision_function(test.numpy()))[:, None]


def _scored_folds(is_source: np.ndarray, blocks: np.ndarray, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the folds in which both sides are left out; none where a side has one block: then nothing is chosen."""
    if min(len(np.unique(blocks[side])) for side in (is_source, ~is_source)) < 2:
        return []
    folds = block_folds(is_source, blocks, _FOLDS, seed, what="the probe")
    return [(train, test) for train, test in folds if len(np.unique(is_source[test])) == 2]
