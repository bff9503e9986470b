"""DSAS, dynamically scaled activation steering: a gate per site decides how strongly to steer (arXiv 2512.03661)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lens_steer.activations.activations import Activations
from lens_steer.activations.pooling import Pool
from lens_steer.activations.whole_texts import Pooled, pool_texts
from lens_steer.errors import ActivationError, ContrastError, SettingError
from lens_steer.host.guards import require_eval
from lens_steer.host.sites import Site, SitePattern
from lens_steer.host.tokens import tokenize
from lens_steer.interventions.gated_map import Gated, LogisticGate
from lens_steer.interventions.intervention import Intervention
from lens_steer.methods.fitting import Method, method_provenance, narrowed, require_base
from lens_steer.methods.transport_maps import without_spread
from lens_steer.ranking.halves import block_folds
from lens_steer.settings import require_settings
from lens_steer.texts.contrast import ContrastSet, Row, require_contrast
from lens_steer.texts.seen import known_forms, pack, seen_forms

_FEWEST_TEXTS = 4
_FOLDS = 5


@dataclass(frozen=True, kw_only=True)
class DSAS:
    """Fit any method, and let its maps act at a token only as far as that token looks like the source.

    At every site that the base method edits, a logistic regression tells source texts from neutral ones, the
    contrast's `control`. At run time its probability at each token multiplies the strength of the map there. It is
    fitted to pooled activations of the untouched model and read at single tokens, which spread wider, and behind
    whatever the edits of earlier sites have changed.

    Attributes
    ----------
    base:
        The method that says what to do; its scope and settings stay.
    layers:
        Keep only these layers of the base's sites, whatever it keeps itself; None leaves the choice to it.
    components:
        Most principal components of the pooled activations that the regression sees, brought to equal variance. They
        and the regression are folded into one vector over the units.
    pool:
        How a text's tokens become one value.
    seed:
        Of the folds in which the gates are measured.
    batch_size:
        Texts per batch.

    """

    base: Method
    layers: tuple[int, ...] | None = None
    components: int = 16
    pool: Pool = "mean"
    seed: int = 0
    batch_size: int | None = None

    def __post_init__(self) -> None:
        require_settings(type(self), vars(self))
        require_base("DSAS", self.base, self.layers)
        if self.components < 1:
            raise SettingError(f"DSAS: components={self.components} is out of range: 1 or more")

    @property
    def sites(self) -> SitePattern:
        """Where the base method edits."""
        return self.base.sites

    def fit(self, model: nn.Module, contrast: ContrastSet, *, activations: Activations | None = None) -> Intervention:
        """Return the base method's intervention with every map behind its site's gate.

        The provenance says under `gates` how well each tells source from control: the mean AUROC of texts that a
        regression like its own has not seen, in five folds or fewer that keep blocks whole. `activations` are the base
        method's.

        Raises
        ------
        ContrastError
            The contrast has no control texts, or fewer than four of them or of source texts, or all of a side are of
            one block.
        ActivationError
            Source and control are alike at a site, on every text.

        """
        require_contrast(contrast)
        if not contrast.control:
            raise ContrastError(
                f"DSAS tells source texts from neutral ones, and {contrast!r} has none: make it with "
                "ContrastSet(source, target, control=neutral_texts)"
            )
        fewest = min(len(contrast.source), len(contrast.control))
        if fewest < _FEWEST_TEXTS:
            raise ContrastError(f"DSAS needs at least {_FEWEST_TEXTS} source and control texts, got {contrast!r}")
        require_eval(model)
        base = narrowed(self.base, self.layers).fit(model, contrast, activations=activations)
        source, control = (
            self._pooled(model, rows, base.sites, contrast) for rows in (contrast.source, contrast.control)
        )
        gates: dict[Site, LogisticGate] = {}
        measured: list[dict[str, Any]] = []
        neutral = contrast.take(np.arange(len(contrast.source)), np.arange(0))
        blocks = neutral.blocks
        for site in base.sites:
            gates[site] = gate_between(source[site], control[site], components=self.components, name=site.name)
            measured.append({"site": site.name, "auroc": self._held_out_auroc(source[site], control[site], blocks)})
        edits = [replace(edit, map=Gated(edit.map, gates[edit.site])) for edit in base.edits]
        about = {**method_provenance(self, contrast), "gates": measured, "base": dict(base.provenance)}
        about["control"] = {"seen": pack(seen_forms(known_forms(contrast.control)))}
        return Intervention.fitted(model, edits, strengths=base.strengths, **about)

    def _pooled(self, model: nn.Module, rows: Sequence[Row], sites: Sequence[Site], contrast: ContrastSet) -> Pooled:
        tokens = tokenize(model, rows, chat=contrast.chat)
        return pool_texts(model, tokens, sites, self.pool, self.batch_size)

    def _held_out_auroc(self, source: Tensor, control: Tensor, blocks: Int[np.ndarray, " text"]) -> float:
        from sklearn.metrics import roc_auc_score

        values = torch.cat([source, control]).cpu()
        is_source = np.arange(len(values)) < len(source)
        areas = []
        for seen, held in block_folds(is_source, blocks, _FOLDS, self.seed, what="DSAS"):
            first = torch.from_numpy(is_source[seen])
            gate = gate_between(values[seen][first], values[seen][~first], components=self.components)
            if len(np.unique(is_source[held])) == 2:
                areas.append(roc_auc_score(is_source[held], gate(values[held]).numpy()))
        return float(np.mean(areas)) if areas else float("nan")


def gate_between(
    source: Float[Tensor, "n unit"], control: Float[Tensor, "m unit"], *, components: int, name: str = "the site"
) -> LogisticGate:
    """Return the gate that is open where an activation looks like the source: both sides count equally.

    `components` is lowered to as many as the texts span. ActivationError where no text differs from another.
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression

    if bool(without_spread(torch.cat([source, control])).all()):
        raise ActivationError(f"source and control texts are all alike at {name}: leave it out, or set another pool")
    values = torch.cat([source, control]).double().cpu().numpy()
    is_source = np.arange(len(values)) < len(source)
    pca = PCA(min(components, *values.shape), svd_solver="full").fit(values)
    # Of a direction along which the texts differ by rounding errors alone, equal variance would make a signal.
    live = pca.explained_variance_ > 1e-10 * pca.explained_variance_[0]
    projection = pca.components_[live] / np.sqrt(pca.explained_variance_[live])[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fit that stops early is a slightly stronger penalty, nothing to act on
        regression = LogisticRegression(class_weight="balanced", max_iter=1000)
        regression.fit((values - pca.mean_) @ projection.T, is_source)
    weights, along = torch.from_numpy(regression.coef_[0]), torch.from_numpy(projection)
    bias = float(regression.intercept_[0]) - float(weights @ (along @ torch.from_numpy(pca.mean_)))
    return LogisticGate(weights, bias, projection=along)
