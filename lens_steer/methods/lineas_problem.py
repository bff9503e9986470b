"""LinEAS on one contrast and one model: its losses, its penalty and metric, and how parameters become an edit."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lens_steer.activations.whole_texts import Pooled
from lens_steer.errors import LensSteerWarning, SiteError
from lens_steer.host.adapter import host_of
from lens_steer.host.sites import Site
from lens_steer.host.stream_writes import is_stream
from lens_steer.interventions.edit import Edit
from lens_steer.interventions.intervention import Intervention
from lens_steer.interventions.maps import DiagonalAffine
from lens_steer.methods.descent_run import Outcome
from lens_steer.methods.end_to_end import EndToEndLoss
from lens_steer.methods.fitting import method_provenance
from lens_steer.methods.sparse_group_lasso import SparseGroupLasso
from lens_steer.statistics.jackknife import leave_groups_out
from lens_steer.texts.contrast import ContrastSet

if TYPE_CHECKING:
    import pandas as pd

_FLOOR = 0.1  # of a group's mean curvature: below it an estimate of few draws says little
_MOST_OF_LOSS = 0.5
_SMALLEST_SPREAD = 0.01  # of a site's mean spread: what a shift is measured in where a unit hardly varies


class Problem:
    """The losses of one fit on training and held-out texts, the penalty, the metric, and the way to an intervention."""

    def __init__(
        self,
        model: nn.Module,
        contrast: ContrastSet,
        loss: EndToEndLoss,
        *,
        heldout: tuple[ContrastSet, EndToEndLoss] | None,
        l1: float,
        group: float,
    ) -> None:
        self._model, self._contrast = model, contrast
        self.loss, self._heldout = loss, heldout
        self.layout = loss.layout
        self.counts = (len(contrast.source), len(contrast.target))
        device = host_of(model).device
        self.penalty = SparseGroupLasso(self.layout.group.to(device), l1, group)
        self.identity = torch.zeros(len(self.layout), device=device)

    def warn_if_about_one_unit(self, name: str) -> None:
        """Warn (LensSteerWarning) where one unit has most of the loss: what is learned is then about little else.

        A unit of the residual stream is one over all of its loss sites: massive activations keep their place.
        """
        of_units = self.loss.of_units()
        stream = [site for site in of_units if is_stream(host_of(self._model), site)]
        parts = {site.name: values for site, values in of_units.items() if site not in stream}
        if stream:
            parts["the residual stream"] = torch.stack([of_units[site] for site in stream]).sum(0)
        total = float(sum(values.sum() for values in parts.values()))
        where, values = max(parts.items(), key=lambda part: float(part[1].max()))
        if total > 0 and float(values.max()) > _MOST_OF_LOSS * total:
            share = float(values.max()) / total
            warnings.warn(
                f"{name}: unit {int(values.argmax())} of {where} alone has {share:.0%} of the loss (a massive "
                'activation?), so the fit is about this unit: loss="normalised" counts all units alike, and so do '
                'sites behind a norm, such as sites="paper:lineas"',
                LensSteerWarning,
                3,
            )

    def heldout_loss(self, parameters: Tensor) -> float:
        """Return the loss on the held-out contrast; nan where there is none."""
        return float("nan") if self._heldout is None else self._heldout[1](parameters)

    def heldout_cases(self, parameters: Tensor) -> Float[np.ndarray, " case"]:
        """Return the held-out loss of all texts, then of all but one group of blocks each time, for a jackknife.

        Empty where there are no held-out texts; that of all texts alone where a group is the whole of a side.
        """
        if self._heldout is None:
            return np.zeros(0)
        contrast, loss = self._heldout
        source, target = len(contrast.source), len(contrast.target)
        sides = np.split(contrast.blocks[: source + target], [source])
        kept = [[np.flatnonzero(case).tolist() for case in side] for side in leave_groups_out(*sides)]
        cases = list(zip(*kept, strict=True))
        return np.array(loss.on_subsets(parameters, cases if all(map(all, cases)) else cases[:1]))

    @cached_property
    def gamma_max(self) -> float:
        """The penalty's weight at which the identity is a fixed point of this loss."""
        return self.penalty.gamma_max(self._at_identity[1])

    def gamma_max_of(self, free: Bool[Tensor, " parameter"]) -> float:
        """The same where the `free` parameters alone may move."""
        return self.penalty.gamma_max(self._at_identity[1] * free)

    @cached_property
    def metric(self) -> Float[Tensor, " parameter"]:
        """The loss's Gauss-Newton diagonal at the identity, estimated, and nowhere far below its group's mean.

        Times a number where a step of size 1 would promise more than the whole loss: parameters act together, which a
        diagonal does not see.
        """
        curvature, group = self.loss.curvature(), self.penalty.group
        sums = torch.zeros(int(group[-1]) + 1, device=curvature.device).index_add_(0, group, curvature)
        means = sums / torch.bincount(group)
        # A group that the loss does not see at all must not divide by 0.
        smallest = float(means.max()) * 1e-9 or 1.0
        diagonal = torch.maximum(curvature, (_FLOOR * means)[group]).clamp_min(smallest)
        value, slope = self._at_identity
        promised = float((slope.square() / diagonal).sum())
        return diagonal * (promised / value if promised > value > 0 else 1.0)

    @cached_property
    def _at_identity(self) -> tuple[float, Float[Tensor, " parameter"]]:
        """The loss of no edit, and its gradient."""
        return self.loss.with_gradient(self.identity)

    def sensitivity(self) -> pd.DataFrame:
        """Return the gradient at the identity, by unit."""
        import pandas as pd

        frames = []
        for site, (scale, shift) in self.layout.parts(self._at_identity[1].cpu()).items():
            about = {"site": site.name, "layer": site.layer, "unit": range(site.width), "width": site.width}
            values = {"scale": scale, "shift": shift, "norm": torch.hypot(scale, shift)}
            frames.append(pd.DataFrame({**about, **{name: value.numpy() for name, value in values.items()}}))
        return pd.concat(frames, ignore_index=True)

    def intervention(self, method: Any, outcome: Outcome, gamma: float, **more: Any) -> Intervention:
        """Return the maps of an outcome with their provenance, to which `more` is added.

        `final_gamma_share` is the penalty at which the maps were learned in the end, in shares of `gamma_max`.
        """
        maps = self.layout.maps(outcome.parameters.cpu())
        edits = [Edit(site, DiagonalAffine(*pair)) for site, pair in maps.items()]
        about: dict[str, Any] = method_provenance(method, self._contrast)
        final = more.get("relaxed_gamma", gamma)
        about |= {"gamma": gamma, "final_gamma_share": final / self.gamma_max if final else 0.0}
        about["loss"] = {**outcome.losses, "identity": self.loss(self.identity)}
        return Intervention.fitted(self._model, edits, **{**outcome.course, **about, **more})


def spreads_of(pooled: Pooled, sites: Sequence[Site]) -> Mapping[Site, Float[Tensor, " unit"]]:
    """Return each unit's standard deviation over texts, not below a hundredth of its site's mean one; 1 at dead sites.

    `pooled` are values [text, unit] of the untouched model.
    """
    spreads = {}
    for site in sites:
        deviations = pooled[site].double().std(0, correction=0)
        smallest = _SMALLEST_SPREAD * float(deviations.mean())
        spreads[site] = deviations.clamp_min(smallest if smallest > 0 else 1.0).float()
    return spreads


def require_reach(model: nn.Module, edit_sites: Sequence[Site], loss_sites: Sequence[Site]) -> None:
    """Refuse edits behind the last loss site: nothing would ever teach them."""
    order = host_of(model).firing_order
    last = max(loss_sites, key=lambda site: order(site.name))
    blind = [site for site in edit_sites if order(site.name) > order(last.name)]
    if blind:
        raise SiteError(
            f"{blind[0]} lies behind the last loss site {last}, so no loss reaches it: add a later loss site"
        )
