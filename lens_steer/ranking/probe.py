"""Linear probes: is a concept in a site at all, and does a single unit hold what the whole site knows?"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lens_steer.activations.activations import Activations
from lens_steer.ranking.experts import split_rows
from lens_steer.statistics.scores import auroc

if TYPE_CHECKING:
    import pandas as pd

_PENALTIES = (1e-3, 1e-2, 1e-1)  # inverse strengths; sites have more units than texts, so only strong ones matter


def probe_sites(activations: Activations, *, holdout: float = 0.5, seed: int = 0) -> pd.DataFrame:
    """Fit one logistic regression per concept and site on all its units; both columns are measured on held-out texts.

    Returns a frame: concept, site, layer, probe_auroc, best_unit (chosen on the other half), best_unit_auroc.
    The penalty is chosen by cross-validation inside the training half; units are standardised there.
    """
    import pandas as pd

    rows = []
    for concept in activations.concepts:
        one = activations.concept(concept)
        label = one.labels[:, 0]
        kept, held = split_rows(label, holdout, seed)
        for site in one.sites:
            values = one.values[site]
            selection = auroc(values[kept & (label == 1)], values[kept & (label == 0)])
            best = int(selection.argmax())
            source, target = values[held & (label == 1)], values[held & (label == 0)]
            score = _probe(values[kept], label[kept] == 1, torch.cat([source, target]), seed)
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


def _probe(train: Tensor, is_source: Tensor, test: Tensor, seed: int) -> Tensor:
    """Return the probe's scores of the test rows, as one column."""
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folds = StratifiedKFold(min(3, int(is_source.sum()), int((~is_source).sum())), shuffle=True, random_state=seed)
    probe = make_pipeline(
        StandardScaler(), LogisticRegressionCV(Cs=list(_PENALTIES), cv=folds, scoring="roc_auc", max_iter=500)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fit that stops early is a slightly stronger penalty, nothing to act on
        probe.fit(train.numpy(), is_source.numpy())
    return torch.as_tensor(probe.decision_function(test.numpy()))[:, None]
