"""The one-pass causal fit: equal to the naive refit, every text once, and nothing left behind whatever happens."""

from __future__ import annotations

import signal
import threading
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import torch

from lens_steer.activations.collect import collect
from lens_steer.errors import ActivationError, SiteError
from lens_steer.host.sites import find_sites
from lens_steer.interventions.intervention import Edit, Intervention
from lens_steer.interventions.maps import DiagonalAffine
from lens_steer.methods.activation_transport import ActivationTransport, GaussianAcT, LinearAcT, MeanAcT
from lens_steer.methods.causal import fit_causally
from lens_steer.texts.contrast import ContrastSet
from tests.compat import make_hooked_tiny
from tests.families import sentences
from tests.handles import handles

SEVERAL_IN_A_BLOCK = ("attn.hook_z", "hook_attn_out", "mlp.hook_post", "hook_resid_post")


@pytest.fixture(scope="module")
def contrast() -> ContrastSet:
    return ContrastSet(sentences(10, seed=1, must="sad"), sentences(7, seed=2, must="happy"), name="sad")


@pytest.fixture(autouse=True)
def nothing_left(tiny: Any) -> Any:
    with torch.no_grad():
        tiny(tiny.to_tokens("the dog"))  # TransformerLens hangs some hooks of its own at the first forward
    there = handles(tiny)
    yield
    assert handles(tiny) == there
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("causal fit")]


def naive(method: ActivationTransport, model: Any, contrast: ContrastSet) -> Intervention:
    """Refit site by site: all texts once per site, under the maps of the sites before."""
    edits: list[Edit] = []
    sites = find_sites(model, method.sites, layers=method.layers)
    plain = collect(model, contrast, [site.name for site in sites], pool=method.pool, batch_size=method.batch_size)
    for site in sites:
        with ExitStack() as stack:
            if edits:
                stack.enter_context(Intervention(tuple(edits)).on(model))
            acts = collect(model, contrast, site.name, pool=method.pool, batch_size=method.batch_size)
        target = acts.target[site] if method.moves == "both" else plain.target[site]
        edits.append(Edit(site, method.map_between(acts.source[site], target)))
    return Intervention(tuple(edits))


def assert_equal(one: Intervention, other: Intervention, tolerance: float = 1e-5) -> None:
    assert one.sites == other.sites
    for mine, theirs in zip(one.edits, other.edits, strict=True):
        for name, value in mine.map.tensors().items():
            expected = theirs.map.tensors()[name]
            assert float((value - expected).abs().max() / expected.abs().max()) < tolerance, (mine.site, name)


@pytest.mark.compat
@pytest.mark.parametrize("moves", ["both", "source"])
@pytest.mark.parametrize(
    ("method", "sites", "batch_size"),
    [
        (MeanAcT(), "hook_resid_post", 4),
        (GaussianAcT(support="unbounded"), "hook_resid_post", None),
        (LinearAcT(), "hook_resid_post", 1),
        (LinearAcT(), SEVERAL_IN_A_BLOCK, None),
        (LinearAcT(), SEVERAL_IN_A_BLOCK, 4),
    ],
)
def test_one_pass_is_the_naive_refit(
    tiny: Any, contrast: ContrastSet, method: ActivationTransport, sites: Any, batch_size: int | None, moves: Any
) -> None:
    method = replace(method, sites=sites, batch_size=batch_size, moves=moves)
    assert_equal(method.fit(tiny, contrast), naive(method, tiny, contrast))


def test_every_layout(distinct_family: Any, contrast: ContrastSet) -> None:
    method = LinearAcT(sites=SEVERAL_IN_A_BLOCK, batch_size=4, moves="source")
    assert_equal(method.fit(distinct_family, contrast), naive(method, distinct_family, contrast))


@pytest.mark.real
def test_on_the_real_models(real_model: Any, shared: Any) -> None:
    from lens_steer.texts.readers import read_contrast

    contrast = read_contrast(shared / "data" / "story_concepts" / "sad.json", n=12)
    for sites in ("hook_resid_post", "paper:act"):
        method = LinearAcT(batch_size=8, sites=sites, layers=(0, 1, -1))
        assert_equal(method.fit(real_model, contrast), naive(method, real_model, contrast))


@pytest.mark.compat
def test_on_a_hooked_transformer(contrast: ContrastSet) -> None:
    model = make_hooked_tiny()
    for moves in ("both", "source"):
        method = LinearAcT(sites=SEVERAL_IN_A_BLOCK, batch_size=4, moves=moves)
        assert_equal(method.fit(model, contrast), naive(method, model, contrast))


@pytest.mark.compat
def test_every_text_passes_the_trunk_once(tiny: Any, contrast: ContrastSet) -> None:
    method = LinearAcT(sites=SEVERAL_IN_A_BLOCK, batch_size=4)
    method.fit(tiny, contrast)  # the guards' probes of these sites are behind us
    passes = []
    handle = tiny.blocks[0].register_forward_pre_hook(lambda _block, args, _kwargs: passes.append(1), with_kwargs=True)
    try:
        maps = fit_causally(
            tiny,
            contrast,
            find_sites(tiny, method.sites),
            method.map_between,
            pool="mean",
            moves="both",
            batch_size=method.batch_size,
        )
    finally:
        handle.remove()
    assert len(maps) == 8
    assert len(passes) == 5  # 17 texts in batches of 4


def test_it_differs_from_the_simultaneous_fit_behind_the_first_site(tiny: Any, contrast: ContrastSet) -> None:
    causal, both = (LinearAcT(causal=causal, support="unbounded").fit(tiny, contrast) for causal in (True, False))
    source = LinearAcT(moves="source", support="unbounded").fit(tiny, contrast)
    for other in (both, source):
        torch.testing.assert_close(causal.edits[0].map.scale, other.edits[0].map.scale)
        assert not torch.allclose(causal.edits[1].map.scale, other.edits[1].map.scale, rtol=1e-3)
    assert not torch.allclose(both.edits[1].map.scale, source.edits[1].map.scale, rtol=1e-3)


def test_threads_are_bounded_whatever_the_batch_size(
    tiny: Any, contrast: ContrastSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each batch runs on a thread of its own: 2,000 texts one by one must not be 2,000 threads."""
    monkeypatch.setattr("lens_steer.methods.causal._MOST_THREADS", 3)
    most = [0]

    def fit_map(source: torch.Tensor, target: torch.Tensor) -> DiagonalAffine:
        most[0] = max(most[0], sum(thread.name.startswith("causal fit") for thread in threading.enumerate()))
        return MeanAcT().map_between(source, target)

    sites = find_sites(tiny, "hook_resid_post")
    fit_causally(tiny, contrast, sites, fit_map, pool="mean", moves="both", batch_size=1)
    assert 0 < most[0] <= 3


def test_the_batch_size_changes_nothing(tiny: Any, contrast: ContrastSet) -> None:
    whole = LinearAcT().fit(tiny, contrast)
    for batch_size in (1, 3, 16):
        assert_equal(LinearAcT(batch_size=batch_size).fit(tiny, contrast), whole)


def test_an_edit_on_the_model_takes_part(tiny: Any, contrast: ContrastSet) -> None:
    first = MeanAcT(sites="hook_attn_out", support="unbounded").fit(tiny, contrast)
    method = LinearAcT(batch_size=4)
    with first.on(tiny):
        within, expected = method.fit(tiny, contrast), naive(method, tiny, contrast)
    assert_equal(within, expected)
    assert within != method.fit(tiny, contrast)


class TestTrouble:
    """Whatever happens on the way is one error, and every pass ends; the fixture counts threads and hooks."""

    def test_an_error_in_a_forward_pass(self, tiny: Any, contrast: ContrastSet) -> None:
        calls = []

        def fail(_module: Any, _args: Any) -> None:
            calls.append(1)
            if len(calls) == 3:
                raise RuntimeError("out of memory, say")

        LinearAcT().fit(tiny, contrast)
        handle = tiny.blocks[1].register_forward_pre_hook(fail)
        try:
            with pytest.raises(RuntimeError, match="out of memory, say"):
                LinearAcT(batch_size=4).fit(tiny, contrast)
        finally:
            handle.remove()
        assert len(calls) == 3

    @pytest.mark.parametrize("error", [KeyboardInterrupt, ActivationError])
    def test_an_error_or_an_interrupt_between_sites(
        self, tiny: Any, contrast: ContrastSet, error: type[BaseException]
    ) -> None:
        fitted = []

        def fit_map(source: torch.Tensor, target: torch.Tensor) -> DiagonalAffine:
            if fitted:
                raise error("now")
            fitted.append(DiagonalAffine.identity(source.shape[1]))
            return fitted[0]

        sites = find_sites(tiny, "hook_resid_post")
        with pytest.raises(error, match="now"):
            fit_causally(tiny, contrast, sites, fit_map, pool="mean", moves="both", batch_size=4)

    def test_an_interrupt_while_a_batch_is_on_its_way(self, tiny: Any, contrast: ContrastSet) -> None:
        LinearAcT().fit(tiny, contrast)
        calls = []

        def interrupt(_module: Any, _args: Any) -> None:
            calls.append(1)
            if len(calls) == 3:
                signal.raise_signal(signal.SIGINT)

        handle = tiny.blocks[1].register_forward_pre_hook(interrupt)
        # A shell starts what runs in the background with SIGINT ignored.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                LinearAcT(batch_size=4).fit(tiny, contrast)
        finally:
            signal.signal(signal.SIGINT, before)
            handle.remove()

    def test_maps_that_overflow(self, tiny: Any, contrast: ContrastSet) -> None:
        def explode(source: torch.Tensor, target: torch.Tensor) -> DiagonalAffine:
            width = source.shape[1]
            return DiagonalAffine(torch.full((width,), 3e38), torch.zeros(width))

        sites = find_sites(tiny, "hook_resid_post")
        with pytest.raises(ActivationError, match=r"blocks\.1\.hook_resid_post is not finite behind the maps of the 1"):
            fit_causally(tiny, contrast, sites, explode, pool="mean", moves="both")

    def test_sites_out_of_order(self, tiny: Any, contrast: ContrastSet) -> None:
        sites = find_sites(tiny, "hook_resid_post")[::-1]
        with pytest.raises(SiteError, match="did not fire"):
            fit_causally(tiny, contrast, sites, LinearAcT().map_between, pool="mean", moves="both")

    def test_gradients_stay_off(self, tiny: Any, contrast: ContrastSet) -> None:
        parameter = next(tiny.parameters())
        parameter.requires_grad_(True)
        try:
            edit = LinearAcT(batch_size=4).fit(tiny, contrast)
            assert not any(value.requires_grad for e in edit.edits for value in e.map.tensors().values())
        finally:
            parameter.requires_grad_(False)


@pytest.mark.parametrize("moves", ["both", "source"])
def test_a_scoped_edit_on_the_model_takes_part(tiny: Any, contrast: ContrastSet, moves: Any) -> None:
    first = MeanAcT(support="unbounded").fit(tiny, contrast).scoped("last")
    method = LinearAcT(sites=("hook_attn_out", "hook_resid_post"), batch_size=4, moves=moves)
    with first.on(tiny):
        within, expected = method.fit(tiny, contrast), naive(method, tiny, contrast)
    assert_equal(within, expected)
