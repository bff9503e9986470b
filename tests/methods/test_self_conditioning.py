"""Self-conditioning: which units, and the value at which they are held."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from lens_steer.activations.activations import Activations
from lens_steer.activations.collect import collect
from lens_steer.errors import ActivationError, SettingError
from lens_steer.host.tokens import tokenize
from lens_steer.interventions.ablation import ablate
from lens_steer.methods.self_conditioning import SelfCond
from lens_steer.texts.contrast import ContrastSet
from tests.families import sentences


@pytest.fixture(scope="module")
def contrast() -> ContrastSet:
    return ContrastSet(sentences(9, seed=1, must="sad"), sentences(11, seed=2, must="happy"))


@pytest.fixture(scope="module")
def acts(tiny: Any, contrast: ContrastSet) -> Activations:
    return collect(tiny, contrast)


def token_values(model: Any, texts: Any, site: Any) -> np.ndarray:
    rows = tokenize(model, texts)
    values = []
    for row in range(len(rows)):
        with torch.no_grad():
            _, cache = model.run_with_cache(rows.batch([row]).ids)
        values.append(cache[site.name][0][torch.tensor(rows.pooled[row])])
    return torch.cat(values).numpy()


@pytest.mark.compat
def test_the_units_are_the_best_for_the_target(tiny: Any, contrast: ContrastSet, acts: Activations) -> None:
    edit = SelfCond(k=6).fit(tiny, contrast, activations=acts)
    labels = [0] * 9 + [1] * 11
    scores = []
    for site in acts.sites:
        values = torch.cat([acts.source[site], acts.target[site]]).numpy()
        scores += [average_precision_score(labels, values[:, unit]) for unit in range(site.width)]
    best = sorted(range(len(scores)), key=lambda place: -scores[place])[:6]
    first = {site.name: sum(s.width for s in acts.sites[:number]) for number, site in enumerate(acts.sites)}
    held = [first[e.site.name] + unit for e in edit.edits for unit in (e.map.scale == 0).nonzero()[:, 0].tolist()]
    assert sorted(held) == sorted(best)
    assert SelfCond(k=6).fit(tiny, contrast) == edit


@pytest.mark.compat
@pytest.mark.parametrize("statistic", ["max", "token"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [("median", np.median), ("mean", np.mean), ("p90", lambda v, axis: np.quantile(v, 0.9, axis=axis))],
)
def test_the_value_is_the_targets(
    tiny: Any, contrast: ContrastSet, acts: Activations, statistic: Any, value: Any, expected: Any
) -> None:
    edit = SelfCond(k=200, value=value, statistic=statistic).fit(tiny, contrast, activations=acts)
    for e in edit.edits:
        held = e.map.scale == 0
        values = acts.target[e.site].numpy() if statistic == "max" else token_values(tiny, contrast.target, e.site)
        np.testing.assert_allclose(e.map.shift[held], expected(values, axis=0)[held], rtol=1e-4, atol=1e-5)
        assert not e.map.shift[~held].any()


def test_zero_is_ablation_and_all_units_may_be_held(tiny: Any, contrast: ContrastSet, acts: Activations) -> None:
    units = sum(site.width for site in acts.sites)
    for statistic in ("max", "token"):
        everything = SelfCond(k=units, value="zero", statistic=statistic).fit(tiny, contrast, activations=acts)
        assert everything == ablate([(s.name, u) for s in acts.sites for u in range(s.width)], activations=acts)
    assert len(SelfCond(k=units).fit(tiny, contrast).edits) == len(acts.sites)


def test_token_means_are_ablation_at_the_targets_mean(tiny: Any, contrast: ContrastSet, acts: Activations) -> None:
    edit = SelfCond(k=5, value="mean", statistic="token").fit(tiny, contrast, activations=acts)
    assert edit == ablate(edit.units(), mode="target_mean", activations=acts)


def test_refusals(tiny: Any, contrast: ContrastSet, acts: Activations) -> None:
    with pytest.raises(SettingError, match="1 or more"):
        SelfCond(k=0)
    with pytest.raises(SettingError, match="more than the"):
        SelfCond(k=10_000).fit(tiny, contrast, activations=acts)
    with pytest.raises(SettingError, match='set pool="max"'):
        SelfCond(k=1, pool="mean")
    with pytest.raises((SettingError, TypeError)):
        SelfCond(k=1, value="mode")  # type: ignore[arg-type]
    assert SelfCond(k=1, pool="mean", statistic="token").fit(tiny, contrast).edits
    arrays = Activations.from_arrays(
        source={s.name: acts.source[s] for s in acts.sites}, target={s.name: acts.target[s] for s in acts.sites}
    )
    with pytest.raises(ActivationError, match="token means come from"):
        SelfCond(k=1, value="mean", statistic="token").fit(tiny, contrast, activations=arrays)
