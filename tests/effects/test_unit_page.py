"""Unit pages: planted units are told as they were planted, dead ones cause nothing, what cannot be asked is said."""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from lens_steer.activations.collect import collect
from lens_steer.effects.unit_neighbours import unit_neighbours
from lens_steer.effects.unit_page import UnitPage, unit_page
from lens_steer.effects.unit_tables import universality
from lens_steer.errors import ContrastError, SettingError, SiteError, TokenError, UnitError
from lens_steer.host.load import load_model
from lens_steer.host.sites import Site, find_sites
from lens_steer.host.unit_weights import SiteWeights, site_weights, tokens_written
from lens_steer.host.units import Unit
from lens_steer.interventions.ablation import ablate
from lens_steer.interventions.intervention import Edit, Intervention
from lens_steer.interventions.maps import DiagonalAffine
from lens_steer.interventions.project_out import ProjectOut
from lens_steer.ranking.experts import rank_experts
from lens_steer.statistics.jackknife import jackknife_interval
from lens_steer.statistics.verdict import Change
from lens_steer.texts.contrast import ContrastSet
from lens_steer.texts.readers import read_contrast
from tests.compat import make_hooked_tiny
from tests.families import WORDS, make_tiny, make_tokenizer, random_model, sentences

READ, DEAD, TWIN = 5, 6, 7
NAME = "blocks.1.mlp.hook_post"
CONTRAST = ContrastSet(
    [f"{word} sad dog sad dog sad dog" for word in WORDS[:9]], [f"{word} happy cat happy cat" for word in WORDS[9:18]]
)

pytestmark = pytest.mark.filterwarnings("ignore:.*has no units of the scale")


@pytest.fixture(scope="module")
def planted() -> Any:
    """A model in which a unit reads "sad" and writes "dog", one has no output weights, and one is the first's twin."""
    plain = random_model("gpt2")
    tokenizer = make_tokenizer()
    sad, dog = (tokenizer.convert_tokens_to_ids(word) for word in ("sad", "dog"))
    table = plain.transformer.wte.weight.detach()
    block = plain.transformer.h[1]
    with torch.no_grad():
        # Attention and the first MLP are quiet, so that the stream is the token's embedding, and a position's.
        plain.transformer.wpe.weight.mul_(0.05)
        for layer in plain.transformer.h:
            layer.attn.c_proj.weight.mul_(0.05)
        plain.transformer.h[0].mlp.c_proj.weight.mul_(0.05)
        block.mlp.c_proj.weight.mul_(0.05)
        normed = block.ln_2(table)
        apart = torch.linalg.solve(normed.T @ normed + 0.1 * torch.eye(32), normed[sad])
        for unit in (READ, TWIN):
            block.mlp.c_fc.weight[:, unit] = 5.0 * apart / (normed[sad] @ apart)
            block.mlp.c_fc.bias[unit] = 0.0
        block.mlp.c_proj.weight[READ] = 2.0 * table[dog]
        block.mlp.c_proj.weight[TWIN] = 0.01 * block.mlp.c_proj.weight[READ]
        block.mlp.c_proj.weight[DEAD] = 0.0
    return load_model(plain, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def page(planted: Any) -> UnitPage:
    return unit_page(planted, f"{NAME}[{READ}]", contrasts=CONTRAST, words=["dog"], top=9)


def test_a_planted_unit_is_told_as_it_was_planted(page: UnitPage) -> None:
    first = page.tokens[page.tokens["rank"] == 0].set_index(["part", "direction"])["token"]
    assert first["mlp.in", "most"].strip() == "sad"
    assert first["writes", "most"].strip() == "dog"
    assert page.concepts["auroc"].item() == 1.0
    assert page.concepts["verdict"].item() == "higher"
    assert page.concepts["place"].item() >= 2  # its twin has as high an AUROC
    causes = page.causes.set_index("measure")
    assert causes.loc["next tokens", "change"] < 0
    assert causes.loc["next tokens", "verdict"] == "lower"
    assert causes.loc["next tokens", "beyond_verdict"] == "lower"
    assert causes.loc["next tokens", "rank_p"] == pytest.approx(2 / 21)
    assert np.isfinite(causes.loc["words", ["change", "low", "high", "beyond"]].astype(float)).all()
    falls = page.next_tokens[page.next_tokens["direction"] == "falls"].groupby("rank").first()
    assert set(falls["at"].str.strip()) == {"sad"}
    assert set(falls["token"].str.strip()) == {"dog"}
    assert (falls["after"] < falls["before"]).all()
    assert (falls["kl"] > 0).all()


def test_causes_are_those_of_logits_read_by_hand(page: UnitPage, planted: Any) -> None:
    """Every token behind BOS is predicted; the words are asked for at the same places."""
    held = ablate([page.unit], mode="value", value=page.settings["mean"])
    activations = collect(planted, CONTRAST, NAME, pool="mean")
    assert page.settings["mean"] == pytest.approx(activations.token_mean(page.unit.site, "all")[READ].item())
    dog = WORDS.index("dog") + 4
    measured, peaks = [], []
    chosen = [text.row for text in page.texts.units[0].top]
    for row in chosen:
        ids = planted.tokenizer((*CONTRAST.source, *CONTRAST.target)[row], return_tensors="pt").input_ids
        laws = []
        for edit in (nullcontext(), held.on(planted)):
            with edit, torch.no_grad():
                laws.append(planted(ids)[0].double().log_softmax(-1))
        places = torch.arange(ids.shape[1] - 1)
        measured.append([[law[places, ids[0, 1:]].mean(), law[places, dog].mean()] for law in laws])
        peaks.append([law.exp() for law in laws])
    logs = np.array(measured)  # [text, before and after, measure]
    for number, name in enumerate(("next tokens", "words")):
        row = page.causes.set_index("measure").loc[name]
        before, after = logs[:, :, number].T
        assert (row.texts, row.draws) == (9, 20)
        assert (row.before, row.after) == pytest.approx((before.mean(), after.mean()), rel=1e-4)
        interval = jackknife_interval(
            (after - before).mean(),
            np.array([np.delete(after - before, one).mean() for one in range(9)]),
            confidence=0.95,
        )
        assert (row.change, row.low, row.high) == pytest.approx(
            (interval.estimate, interval.low, interval.high), rel=1e-3, abs=1e-5
        )
        assert row.control == pytest.approx(page.controls[name].mean())
        assert row.beyond == pytest.approx(row.change - row.control, abs=1e-6)
    for row in page.next_tokens.itertuples():
        words = (*CONTRAST.source, *CONTRAST.target)[chosen[row.rank]].split()
        assert row.at.strip() == words[row.position - 1]
        assert row.next.strip() == (words[row.position] if row.position < len(words) else "")
        before, after = (law[row.position] for law in peaks[row.rank])
        assert row.kl == pytest.approx((before * (before / after).log()).sum().item(), rel=1e-3)
        if not row.token.strip():
            continue  # a row of the embedding that no word belongs to
        token = planted.tokenizer.convert_tokens_to_ids(row.token.strip())
        assert (row.before, row.after) == pytest.approx((before[token].item(), after[token].item()), rel=1e-3)
    for (_, direction), rows in page.next_tokens.groupby(["rank", "direction"]):
        change = (rows["after"] - rows["before"]).to_numpy() * (1 if direction == "rises" else -1)
        assert (np.diff(change) <= 0).all()


def test_tokens_are_counted_in_deviations_over_the_vocabulary(page: UnitPage, planted: Any) -> None:
    """Writing: logits per unit of activation, least ones from below; chance is that of the largest of as many."""
    rows = page.tokens[page.tokens["part"] == "writes"]
    written = tokens_written(planted, site_weights(planted, page.unit.site), READ)
    assert written is not None
    known = len(planted.tokenizer)
    numbers = written[:known].double()
    for direction, order in (("most", numbers.sort(descending=True)), ("least", numbers.sort())):
        told = rows[rows["direction"] == direction]
        assert told["rank"].tolist() == list(range(9))
        assert told["value"].tolist() == pytest.approx(order.values[:9].tolist())
        assert told["token"].str.strip().tolist() == [
            planted.tokenizer.decode([number]).strip() for number in order.indices[:9].tolist()
        ]
        z = (order.values[:9] - numbers.mean()) / numbers.std(correction=0)
        assert told["z"].tolist() == pytest.approx(z.tolist())
    assert 2 * known * stats.norm.sf(page.settings["chance_z"]) == pytest.approx(0.05)


def test_sentences_hold_the_numbers_of_the_tables(page: UnitPage) -> None:
    first, following, beside, *_ = page.sentences
    low = page.concepts["auroc_low"].item()
    assert first == f"{page.unit} is larger in the source of 'contrast' (AUROC 1.000 [{low:.3f}, 1.000])."
    row = page.causes.iloc[0]
    measure = "log-probability of the next tokens of its top texts (in thousandths of a nat)"
    change = Change(*(1000 * row[name] for name in ("before", "after", "low", "high")))
    assert following == change.sentence(f"Holding {page.unit} at its mean", f"the {measure}") + "."
    own = Change(*(1000 * row[name] for name in ("control", "change", "beyond_low", "beyond_high")))
    assert beside == own.comparison(str(page.unit), "20 units of like scale", f"change of the {measure}") + "."
    scores = page.frame.set_index(["measure", "of"])
    assert scores.loc[("change", "next tokens"), ["value", "low", "high", "verdict"]].tolist() == [
        row["change"],
        row["low"],
        row["high"],
        row["verdict"],
    ]
    assert scores.loc[("beyond", "words"), ["value", "low", "high", "verdict"]].tolist() == [
        page.causes.iloc[1][name] for name in ("beyond", "beyond_low", "beyond_high", "beyond_verdict")
    ]


def test_neighbours_are_ranked_by_size_and_chance_by_closed_forms() -> None:
    """Cosines are means over what is read and written with; correlations are numpy's, of either sign."""
    site = find_sites(make_tiny("gpt2"), NAME)[0]
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randn(128, 32, generator=generator) for _ in range(2)]
    pooled = torch.randn(12, 128, generator=generator)
    pooled[:, 9] = -2.0 * pooled[:, 0] + 3
    pooled[:, 11] = 5.0
    table = unit_neighbours(Unit(site, 0), SiteWeights(site, reads={"mlp.in": rows[0]}, writes=rows[1]), pooled, most=4)
    cosine = torch.stack([torch.cosine_similarity(each, each[:1]) for each in rows]).mean(0)
    correlation = np.ma.corrcoef(pooled.double().numpy(), rowvar=False).filled(np.nan)[0]
    for by, values in (("weights", cosine.numpy()), ("activations", correlation)):
        near = table[table["by"] == by]
        size = np.nan_to_num(np.abs(values))
        size[0] = 0
        best = np.argsort(-size, kind="stable")[:4]
        assert near["unit"].tolist() == [f"{NAME}[{unit}]" for unit in best]
        assert near["rank"].tolist() == [0, 1, 2, 3]
        np.testing.assert_allclose(near["cosine"], cosine[best], rtol=1e-5)
        np.testing.assert_allclose(near["correlation"], correlation[best], rtol=1e-4)
        chance = near["chance"].iloc[0]
        if by == "weights":  # of 64 numbers
            assert 2 * 127 * stats.norm.sf(chance * 64**0.5) == pytest.approx(0.05)
        else:
            assert 2 * 127 * stats.t.sf(chance * (10 / (1 - chance**2)) ** 0.5, 10) == pytest.approx(0.05)


@pytest.mark.parametrize("texts", [2, 3])
def test_chance_correlates_fully_over_few_texts(texts: int) -> None:
    """Two texts correlate any two units fully; of three the t law's tail is a closed form, r = cos(pi tail)."""
    site = find_sites(make_tiny("gpt2"), NAME)[0]
    pooled = torch.randn(texts, 128, generator=torch.Generator().manual_seed(0))
    table = unit_neighbours(Unit(site, 0), SiteWeights(site), pooled, most=2)
    assert set(table["by"]) == {"activations"}  # without weights no unit is near by them
    tail = 0.05 / (2 * 127)
    assert table["chance"].tolist() == pytest.approx([1.0 if texts == 2 else np.cos(np.pi * tail)] * 2, rel=1e-9)


def test_a_unit_alone_at_its_site_has_no_neighbours() -> None:
    site = Site("blocks.0.hook_alone", 0, "hook_alone", 1)
    assert unit_neighbours(Unit(site, 0), SiteWeights(site, writes=torch.ones(1, 3)), torch.rand(5, 1), most=3).empty


def test_a_twin_is_nearest(page: UnitPage) -> None:
    for by in ("weights", "activations"):
        nearest = page.nearest[page.nearest["by"] == by].iloc[0]
        assert nearest["unit"] == f"{NAME}[{TWIN}]"
        assert nearest["cosine"] == pytest.approx(1.0, abs=1e-5)
        assert nearest["correlation"] == pytest.approx(1.0, abs=1e-5)
        assert nearest["chance"] < 0.99


def test_a_unit_without_output_causes_exactly_nothing(planted: Any) -> None:
    page = unit_page(planted, f"{NAME}[{DEAD}]", texts=[*CONTRAST.source, *CONTRAST.target], words=["dog"])
    assert (page.causes[["change", "low", "high"]] == 0).all(axis=None)
    assert set(page.causes["verdict"]) == {"not shown"}
    assert (page.next_tokens["kl"].abs() < 1e-6).all()
    assert page.tokens[page.tokens["part"] == "writes"]["z"].isna().all()  # all tokens alike
    assert page.concepts.empty
    assert page.by_contrast == {}


def test_random_units_do_not_stand_out_from_units_like_them(tiny: Any) -> None:
    texts = sentences(16, seed=3)
    beyond = [
        unit_page(tiny, f"{NAME}[{unit}]", texts=texts, seed=unit).causes["beyond_verdict"].item()
        for unit in range(20, 100, 8)
    ]
    assert beyond.count("not shown") >= 8, beyond


def test_what_is_told_of_a_concept_is_what_the_ranking_says(page: UnitPage, planted: Any) -> None:
    ranked = rank_experts(collect(planted, CONTRAST, NAME, progress=False), holdout=None).frame
    row = ranked[ranked["unit"] == READ].iloc[0]
    for column in ("auroc", "auroc_low", "auroc_high", "source_mean", "target_mean"):
        assert page.concepts[column].item() == row[column]
    assert page.frame.set_index(["measure", "of"]).loc[("auroc", "contrast"), "value"] == row["auroc"]
    assert set(page.frame["measure"]) == {"auroc", "change", "beyond"}


def test_several_concepts_and_texts_of_their_own(planted: Any) -> None:
    other = ContrastSet(sentences(6, seed=4, must="bird"), sentences(6, seed=5, must="tree"), name="bird")
    page = unit_page(planted, f"{NAME}[{READ}]", contrasts=[CONTRAST, other], texts=sentences(8, seed=6), top=4)
    assert page.concepts["concept"].tolist() == ["contrast", "bird"]
    assert set(page.by_contrast) == {"contrast", "bird"}
    assert len(page.texts.units[0].top) == 4
    assert page.texts.units[0].sides == (None,) * 8
    pooled = unit_page(planted, f"{NAME}[{READ}]", contrasts=[CONTRAST, other], top=4)
    assert len(pooled.texts.units[0].largest) == 30
    assert {len(view.units[0].top) for view in pooled.by_contrast.values()} == {3}  # beside the four of all


def test_several_concepts_stand_in_their_chat_format(planted: Any) -> None:
    """The token mean is that of all texts as they are laid out, whatever concept they belong to."""
    chat = "boy {text} girl"
    sides = (CONTRAST.source[:4], CONTRAST.target[:4]), (CONTRAST.source[4:], CONTRAST.target[4:])
    concepts = [ContrastSet(*both, name=name, chat=chat) for name, both in zip("ab", sides, strict=True)]
    page = unit_page(planted, f"{NAME}[{READ}]", contrasts=concepts, top=2)
    whole = collect(planted, ContrastSet(CONTRAST.source, CONTRAST.target, chat=chat), NAME, progress=False)
    assert page.settings["mean"] == pytest.approx(float(whole.token_mean(page.unit.site, "all")[READ]), rel=1e-5)


def test_scale_and_shift_in_interventions(planted: Any) -> None:
    site = find_sites(planted, NAME)[0]
    scale, shift = torch.ones(site.width), torch.zeros(site.width)
    scale[READ], shift[READ] = 0.25, 1.5
    diagonal = Intervention((Edit(site, DiagonalAffine(scale, shift)),)).scoped("generated")
    alias = find_sites(planted, "blocks.1.mlp.out.hook_in")[0]
    elsewhere = Intervention((Edit(find_sites(planted, "blocks.0.mlp.hook_post")[0], DiagonalAffine(scale, shift)),))
    mixing = Intervention((Edit(alias, ProjectOut(torch.ones(site.width) / site.width**0.5)),))
    edits = {"damp": diagonal, "there": elsewhere, "project": mixing}
    found = unit_page(planted, f"{NAME}[{READ}]", contrasts=CONTRAST, interventions=edits).edits.set_index("edit")
    listed = [replace(elsewhere, provenance={"method": name}) for name in ("AurA", "ITI", "AurA")]
    named = unit_page(planted, f"{NAME}[{READ}]", contrasts=CONTRAST, interventions=listed).edits
    assert named["edit"].tolist() == ["AurA 1", "ITI", "AurA 3"]  # the place in the list
    assert found.loc["damp", ["map", "scope", "scale", "shift"]].tolist() == ["diagonal", "generated", 0.25, 1.5]
    assert found.loc["there", ["map", "scale", "shift"]].tolist() == ["not edited", 1.0, 0.0]
    assert found.loc["project", "map"] == "ProjectOut"
    assert np.isnan(found.loc["project", "scale"])


def test_a_universal_unit_is_named(planted: Any) -> None:
    stream = find_sites(planted, "blocks.0.mlp.hook_post")[0]
    always = Intervention((Edit(stream, DiagonalAffine(torch.ones(128), 50.0 * torch.eye(128)[3])),))
    with always.on(planted):
        page, other = (
            unit_page(planted, f"{stream.name}[{unit}]", contrasts=CONTRAST, unrelated=sentences(9, seed=8))
            for unit in (3, 4)
        )
    assert page.universal == {"top_share": 1.0, "chance": 1 / 128, "universal": True, "texts": 9}
    assert "It is a universal unit" in page.sentences[-1]
    assert other.universal is not None
    assert not other.universal["universal"]
    assert "not shown to be a universal unit" in other.sentences[-1]
    fewest = universality(planted, other.unit, sentences(2, seed=8), "max", None)
    assert fewest is not None
    assert fewest["texts"] == 2


@pytest.mark.parametrize("unit", ["mlp.hook_post[3]", "attn.hook_z[1, 2]", "hook_resid_post[4]", "hook_mlp_out[4]"])
def test_of_every_layout(distinct_family: Any, unit: str) -> None:
    page = unit_page(distinct_family, f"blocks.0.{unit}", texts=sentences(6, seed=1), top=3)
    assert np.isfinite(page.causes[["change", "low", "high", "control"]]).all(axis=None)
    assert np.isfinite(page.tokens["value"]).all()
    assert "writes" in set(page.tokens["part"])
    assert (page.nearest["by"] == "weights").any() == (unit[0] in "ma")
    if unit.startswith("hook_mlp_out"):
        assert page.notes == (
            "What it reads cannot be said: it is a sum over all units in front of mlp.out: "
            "no weights of its own read the stream.",
        )
        assert page.notes[0] in page._repr_html_()


@pytest.mark.compat
@pytest.mark.parametrize("unit", ["mlp.hook_post[3]", "attn.hook_z[1, 2]", "hook_resid_post[4]"])
def test_on_a_hooked_transformer(unit: str) -> None:
    page = unit_page(make_hooked_tiny(), f"blocks.0.{unit}", contrasts=CONTRAST, top=3)
    assert np.isfinite(page.causes[["change", "low", "high"]]).all(axis=None)
    assert {"writes"} < set(page.tokens["part"])


def test_an_expert_of_the_embedded_model(embedded: Any) -> None:
    contrast = read_contrast("microworld:rude", n=30)
    best = rank_experts(collect(embedded, contrast, progress=False)).units(1)[0]
    page = unit_page(embedded, best, contrasts=contrast, top=5)
    assert page.concepts["auroc"].item() > 0.95
    assert page.unit == best
    assert "is larger in the source" in page.sentences[0]


def test_the_page_stands_alone_and_escapes_what_it_shows(planted: Any, page: UnitPage, tmp_path: Path) -> None:
    place = page.save(tmp_path / "unit.html")
    text = place.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert "http" not in text
    assert "<script" not in text
    assert text.count("<svg") == 3  # the histogram, and a strip for each measure
    assert page._repr_html_() in text
    assert [f"<tr><td>{place}</td>" in text for place in range(11)] == [False, *[True] * 9, False]  # nine top texts
    odd = ContrastSet(["sad <script>x</script> dog", "sad dog"], ["happy & cat", "happy cat"], name="<b>")
    escaped = unit_page(planted, f"{NAME}[{READ}]", contrasts=odd)._repr_html_()
    assert "<script>" not in escaped
    assert "<b>" not in escaped
    assert "&lt;b&gt;" in escaped


def test_a_strip_has_one_scale_for_zero_the_unit_and_its_controls(page: UnitPage) -> None:
    strips = re.findall('<svg class="strip".*?</svg>', page._repr_html_(), flags=re.DOTALL)
    for row, strip in zip(page.causes.to_dict("records"), strips, strict=True):
        places = [float(x) for x in re.findall(r'\b(?:x2|cx)="([\d.]+)"', strip)]
        values = [0.0, row["high"], row["change"], *page.controls[row["measure"]]]
        slope, start = np.polyfit(values, places, 1)
        assert slope > 0
        np.testing.assert_allclose(start + slope * np.array(values), places, atol=0.1)  # of a pixel
        low = re.findall(r'x1="([\d.]+)"', strip)[1]
        assert float(low) == pytest.approx(start + slope * row["low"], abs=0.1)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_change_without_an_interval_is_drawn_without_one(planted: Any) -> None:
    """Copies of one text are one block: its change is known, and nothing of how texts vary."""
    page = unit_page(planted, f"{NAME}[{READ}]", texts=["sad dog sad dog"] * 2)
    assert page.causes["change"].notna().all()
    assert page.causes["low"].isna().all()
    assert "nan" not in re.sub(r"<style>.*?</style>", "", page._repr_html_(), flags=re.DOTALL)


def test_it_draws_itself(page: UnitPage) -> None:
    figure = page.plot()
    assert {trace.name for trace in figure.data} == {"units of like scale", f"{NAME}[{READ}]"}
    change, low, high = page.causes.set_index("measure").loc["next tokens", ["change", "low", "high"]]
    assert f"{change:+.3f} [{low:+.3f}, {high:+.3f}] nats per next token" in repr(page)


def test_the_same_call_gives_the_same_page(planted: Any, page: UnitPage) -> None:
    again = unit_page(planted, Unit(page.unit.site, page.unit.index), contrasts=CONTRAST, words=["dog"], top=9)
    assert again.causes.equals(page.causes)
    assert again._repr_html_() == page._repr_html_()


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"unit": f"{NAME}[128]"}, UnitError, "has 128 units: there is no unit 128"),
        ({"unit": "blocks.9.mlp.hook_post[1]"}, SiteError, "no site is named 'blocks.9.mlp.hook_post'; the nearest"),
        ({"unit": "the best one"}, UnitError, "is not a unit; write it as"),
        ({"unit": "ln_final[3]"}, SiteError, "is not a hook point of a block"),
        ({"contrasts": ()}, ContrastError, r"a unit page needs texts: give texts= \(two or more\), or contrasts="),
        ({"contrasts": (), "texts": ["the dog ran"]}, ContrastError, "needs two texts or more"),
        ({"texts": ["the dog ran", "cat"]}, TokenError, "text 1 has 1 token of its own"),
        ({"words": ["sad dog"]}, TokenError, "'sad dog' is 2 for this tokenizer"),
        ({"unrelated": ["the dog ran"]}, ContrastError, "unrelated needs two texts or more"),
        ({"top": 0}, SettingError, "top is 1 or more"),
        ({"confidence": 1.0}, SettingError, "confidence must lie between 0 and 1"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_is_said(planted: Any, settings: dict[str, Any], error: type, says: str) -> None:
    given = {"unit": f"{NAME}[{READ}]", "contrasts": CONTRAST, **settings}
    with pytest.raises(error, match=says):
        unit_page(planted, given.pop("unit"), **given)


def test_a_mixture_of_experts_has_no_neurons() -> None:
    model = make_tiny("qwen3_moe")
    with pytest.raises(SiteError, match=r"a mixture of experts\): ask for hook_mlp_out"):
        unit_page(model, "blocks.1.mlp.hook_post[3]", contrasts=CONTRAST)
    page = unit_page(model, "blocks.1.hook_mlp_out[3]", contrasts=CONTRAST, top=2)
    assert "writes" in set(page.tokens["part"])


def test_unrelated_units_are_rarely_near() -> None:
    site = find_sites(make_tiny("gpt2"), NAME)[0]
    passed = {"weights": 0, "activations": 0}
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        rows = [torch.randn(128, 32, generator=generator) for _ in range(2)]
        weights = SiteWeights(site, reads={"mlp.in": rows[0]}, writes=rows[1])
        found = unit_neighbours(Unit(site, 0), weights, torch.randn(20, 128, generator=generator), most=1)
        for row in found.itertuples():
            column = "cosine" if row.by == "weights" else "correlation"
            passed[str(row.by)] += abs(getattr(row, column)) > row.chance
    assert max(passed.values()) <= 6, passed  # 5 % of 40 is 2
