import pickle
import warnings
from collections import Counter
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lens_steer.errors import ContrastError, LensSteerWarning, SettingError
from lens_steer.texts.contrast import ContrastSet, LabelledTexts


def numbered(source: int, target: int, control: int = 0, **settings) -> ContrastSet:
    """Texts that are all different, each its own group."""
    sizes = {"source": source, "target": target, "control": control}
    texts = {side: [f"{side} {number}" for number in range(size)] for side, size in sizes.items()}
    return ContrastSet(**{**texts, "source_groups": texts["source"], "target_groups": texts["target"], **settings})


@st.composite
def contrasts(draw):
    """Contrasts with repeated texts, also across sides."""
    paired = draw(st.booleans())
    word = st.sampled_from([f"word {number}" for number in range(30)])
    source = draw(st.lists(word, min_size=4, max_size=20))
    size = len(source) if paired else draw(st.integers(4, 20))
    target = draw(st.lists(word, min_size=size, max_size=size))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LensSteerWarning)
        return ContrastSet(source, target, control=draw(st.lists(word, max_size=8)), paired=paired)


def test_contrast_keeps_tuples_and_cannot_change():
    contrast = ContrastSet(["a", "b"], ["c"], control=["d"])
    assert (contrast.source, contrast.target, contrast.control) == (("a", "b"), ("c",), ("d",))
    assert contrast == ContrastSet(("a", "b"), ("c",), control=("d",))
    assert {contrast} == {pickle.loads(pickle.dumps(contrast))}
    assert contrast != ContrastSet(["a", "b"], ["c"])
    with pytest.raises(FrozenInstanceError):
        contrast.source = ()
    with pytest.raises(TypeError):
        ContrastSet(["a"], ["b"], ["c"])


@pytest.mark.parametrize(
    ("source", "target", "settings", "message"),
    [
        ([], ["b"], {}, "both sides need texts.*0 source, 1 target"),
        (["a", " "], ["b"], {}, r"blank.*source\[1\]"),
        (["a"], ["b", ""], {}, r"blank.*target\[1\]"),
        (["a"], ["b"], {"control": ["\n"]}, r"blank.*control\[0\]"),
        (["a", 3], ["b"], {}, r"neither a text.*source\[1\]"),
        (["a", None] * 7, ["b"], {}, r"source\[1\], source\[3\].* \(7 in all\)"),
        ([("a", "b", "c")], [("d", "e")], {}, r"neither a text.*source\[0\]"),
        ([("p", " ")], [("p", "q")], {}, r"blank.*source\[0\]"),
        ([("p", "q"), "a"], ["b"], {}, r"1 of 3 rows are \(prompt, completion\) pairs"),
        ("text", ["b"], {}, "source must be a list, not one str"),
        (["a"], 3, {}, "target must be a list, not one int"),
        (["a", "b"], ["c"], {"paired": True}, "one length.*2 source, 1 target"),
        (["a"], ["b"], {"source_groups": ["g"]}, "both sides or for neither"),
        (["a"], ["b"], {"source_groups": ["g"], "target_groups": []}, "0 names for 1 rows"),
        (["a"], ["b"], {"source_groups": ["g"], "target_groups": [1]}, r"not a string: target_groups\[0\]"),
        (["a"], ["b"], {"chat": "User:"}, "format such as 'User: {text}"),
        (["a"], ["b"], {"chat": 1}, "chat must be None, True or a format"),
    ],
)
def test_contrast_refuses(source, target, settings, message):
    with pytest.raises(ContrastError, match=message):
        ContrastSet(source, target, **settings)


def test_chat_is_recorded_and_a_prompt_may_be_empty():
    chat = "User: {text}\nBot:"
    contrast = ContrastSet([("", "a")], [("p", "b")], chat=chat)
    assert contrast.chat == chat
    assert contrast.swap().chat == contrast.labelled.chat == chat
    assert ContrastSet(["a"], ["b"], chat=True).chat is True
    assert ContrastSet(["a"], ["b"], chat=False) == ContrastSet(["a"], ["b"])


def test_text_on_both_sides_is_warned_about_once():
    with pytest.warns(LensSteerWarning, match=r"^2 different text\(s\) on both sides") as caught:
        contrast = ContrastSet(["a", "a", "b", "c", "d"], ["a", "b", "e", "f", "g"])
    assert len(caught) == 1
    for derived in (contrast.swap(), contrast.subsample(5), contrast.shuffled(1), *contrast.split()):
        assert isinstance(derived, ContrastSet)


def test_repr_is_short():
    assert repr(numbered(400, 300, name="toxic")) == "ContrastSet('toxic', 400 source, 300 target)"
    assert repr(numbered(2, 2, 5, paired=True)) == "ContrastSet('contrast', 2 source, 2 target, 5 control, paired)"
    assert repr(numbered(4, 5).labelled) == "LabelledTexts('contrast', 9 texts, 1 concepts)"


def test_swap_exchanges_texts_and_groups():
    contrast = numbered(3, 2, 1)
    swapped = contrast.swap()
    assert (swapped.source, swapped.source_groups) == (contrast.target, contrast.target_groups)
    assert (swapped.target, swapped.control) == (contrast.source, contrast.control)
    assert swapped.swap() == contrast


def test_require_names_method_and_sizes():
    numbered(4, 4).require(4, "LinEAS")
    with pytest.raises(ContrastError, match=r"LinEAS needs at least 4 texts per side, got .* 3 source, 10 target"):
        numbered(3, 10).require(4, "LinEAS")


@given(contrasts(), st.sampled_from([0.25, 0.5, 0.7]), st.integers(0, 5))
def test_split_loses_nothing_and_shares_no_text(contrast, test, seed):
    try:
        parts = contrast.split(test, seed)
    except ContrastError:
        return
    for side in ("source", "target", "control"):
        assert Counter(getattr(parts[0], side) + getattr(parts[1], side)) == Counter(getattr(contrast, side))
    texts = [{*part.source, *part.target, *part.control} for part in parts]
    assert not texts[0] & texts[1]
    if contrast.paired:
        both = [pair for part in parts for pair in zip(part.source, part.target)]
        assert Counter(both) == Counter(zip(contrast.source, contrast.target))
    assert parts == contrast.split(test, seed)


@given(st.integers(4, 40), st.integers(4, 40), st.integers(0, 9), st.booleans(), st.integers(0, 5))
def test_split_of_different_texts_is_exact(source, target, control, paired, seed):
    contrast = numbered(source, source if paired else target, control, paired=paired)
    train, test = contrast.split(0.25, seed)
    for side in ("source", "target", "control"):
        size = len(getattr(contrast, side))
        assert len(getattr(test, side)) == int(size / 4 + 0.5)
        assert len(getattr(train, side)) == size - int(size / 4 + 0.5)
    for part in (train, test):
        assert (part.source, part.target) == (part.source_groups, part.target_groups)
        assert list(part.source) == sorted(part.source, key=contrast.source.index)


def test_split_depends_on_the_seed_and_on_nothing_else():
    contrast = numbered(40, 40)
    np.random.seed(0)
    first = contrast.split(seed=3)
    np.random.seed(1)
    assert contrast.split(seed=3) == first
    assert contrast.split(seed=4) != first
    assert numbered(40, 11, 7).split(seed=3)[1].source == first[1].source
    assert {text.split()[1] for text in first[1].source} != {text.split()[1] for text in first[1].target}


def test_split_follows_chains_of_identical_texts():
    source, target = ["a", "a", "b", "c", "c"], ["b", "x", "x", "c", "y"]
    with pytest.warns(LensSteerWarning):
        contrast = ContrastSet(source, target, paired=True)
    for seed in range(8):
        train, test = contrast.split(seed=seed)
        assert {frozenset(train.source), frozenset(test.source)} == {frozenset("ab"), frozenset("c")}


def test_split_is_quick_where_all_pairs_share_a_text():
    shared = ContrastSet(["same"] * 20000, [f"t{number}" for number in range(20000)], paired=True)
    with pytest.raises(
        ContrastError, match=r"20000 source.*: to hold out 50% of 20000 source texts in 1 blocks leaves 20000 and 0"
    ):
        shared.split()


@pytest.mark.parametrize(("sizes", "test"), [((1, 5), 0.5), ((5, 1), 0.5), ((4, 4), 0.1), ((4, 4), 0.9)])
def test_split_refuses_to_empty_a_side(sizes, test):
    with pytest.raises(ContrastError, match=f"to hold out {test:.0%} of .* each half needs 1 or more.*give more texts"):
        numbered(*sizes).split(test)


@given(contrasts(), st.integers(1, 4), st.integers(0, 3), st.integers(0, 5))
def test_subsample_nests_and_keeps_pairs(contrast, small, more, seed):
    large = min(small + more, len(contrast.source), len(contrast.target))
    few, many = contrast.subsample(small, seed), contrast.subsample(large, seed)
    ends = np.cumsum([len(contrast.source), len(contrast.target)])
    largest = max(max(Counter(side.tolist()).values()) for side in np.split(contrast.blocks, ends)[:2])
    for side in ("source", "target"):
        assert len(getattr(few, side)) == small
        assert Counter(getattr(many, side)) <= Counter(getattr(contrast, side))
        if largest <= small:
            assert Counter(getattr(few, side)) <= Counter(getattr(many, side))
    assert few.control == contrast.control
    if contrast.paired:
        assert Counter(zip(few.source, few.target)) <= Counter(zip(contrast.source, contrast.target))
    assert contrast.subsample(small, seed) == few


def test_subsample_draws_by_seed_in_the_order_of_the_contrast():
    contrast = numbered(50, 50)
    drawn = contrast.subsample(10, seed=1)
    assert drawn != contrast.subsample(10, seed=2)
    assert list(drawn.target) == sorted(drawn.target, key=contrast.target.index)
    assert (drawn.source, drawn.target) == (drawn.source_groups, drawn.target_groups)
    assert [text.split()[1] for text in drawn.source] != [text.split()[1] for text in drawn.target]
    assert contrast.subsample(50) == contrast


def test_subsample_refuses_too_many_and_none():
    with pytest.raises(ContrastError, match=r"subsample\(5\) needs at least 5 .* 9 source, 4 target"):
        numbered(9, 4).subsample(5)


@pytest.mark.parametrize("settings", [{"test": share} for share in (0.0, 1.0, -0.5, float("nan"))] + [{"seed": -1}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(SettingError, match=r"lies between 0 and 1|seed must be 0 or more"):
        numbered(4, 4).split(**settings)
    with pytest.raises(SettingError, match="n must be 1 or more"):
        numbered(9, 4).subsample(0)


@given(contrasts(), st.integers(0, 5))
def test_shuffled_keeps_texts_and_counts(contrast, seed):
    null = contrast.shuffled(seed)
    if len(set(contrast.source + contrast.target)) == len(contrast.source + contrast.target):
        assert len(null.source) == len(contrast.source)
    assert Counter(null.source + null.target) == Counter(contrast.source + contrast.target)
    assert (null.control, null.name) == (contrast.control, "contrast (shuffled)")
    if contrast.paired:
        assert list(map(sorted, zip(null.source, null.target))) == list(
            map(sorted, zip(contrast.source, contrast.target))
        )
    assert null == contrast.shuffled(seed)


@pytest.mark.parametrize("paired", [False, True])
def test_shuffled_moves_about_half_the_texts_with_their_groups(paired):
    null = numbered(100, 100, paired=paired).shuffled(0)
    assert 30 < sum(text.startswith("source") for text in null.source) < 70
    assert (null.source, null.target) == (null.source_groups, null.target_groups)


def test_data_hash_follows_content_not_name():
    contrast = ContrastSet(["a", "b"], ["c"])
    assert contrast.data_hash == ContrastSet(("a", "b"), ["c"], name="other").data_hash
    assert contrast.data_hash == pickle.loads(pickle.dumps(contrast)).data_hash == contrast.swap().swap().data_hash
    assert len(bytes.fromhex(contrast.data_hash)) == 32
    others = [
        ContrastSet(["b", "a"], ["c"]),
        ContrastSet(["a"], ["b", "c"]),
        ContrastSet(["a", "b"], ["c"], control=["d"]),
        ContrastSet(["a", "b"], ["c"], chat=True),
        ContrastSet(["a", "b"], ["c"], source_groups=["g", "g"], target_groups=["g"]),
        ContrastSet([("", "a"), ("", "b")], [("", "c")]),
        contrast.swap(),
    ]
    assert len({contrast.data_hash, *(other.data_hash for other in others)}) == 8
    assert ContrastSet(["\ud800"], ["b"]).data_hash


def test_labelled_and_back():
    contrast = numbered(3, 2, name="toxic", chat=True)
    table = contrast.labelled
    assert table.texts == contrast.source + contrast.target
    assert table.labels.tolist() == [[1], [1], [1], [0], [0]]
    assert table.contrast("toxic") == contrast


def test_labelled_texts_give_the_contrast_of_each_concept():
    labels = [[1, 0], [0, -1], [-1, 1], [0, 0]]
    table = LabelledTexts(["a", "b", "c", "d"], labels, ["x", "y"], groups=["g", "h", "i", "j"], name="table")
    assert (table.labels.dtype, table.labels.shape) == (np.int8, (4, 2))
    x, y = table.contrast("x"), table.contrast("y")
    assert (x.source, x.target, x.source_groups, x.target_groups) == (("a",), ("b", "d"), ("g",), ("h", "j"))
    assert (y.source, y.target, y.name) == (("c",), ("a", "d"), "y")
    with pytest.raises(ContrastError, match=r"no concept 'z' .* there is 'x', 'y'"):
        table.contrast("z")


def test_labelled_texts_equal_by_value_and_read_only():
    given_labels = np.array([[True], [False]])
    table = LabelledTexts(("a", "b"), given_labels, ("x",))
    given_labels[0] = False
    assert table == LabelledTexts(["a", "b"], [True, False], ["x"]) == LabelledTexts(["a", "b"], [1.0, 0.0], ["x"])
    assert hash(table) == hash(LabelledTexts(["a", "b"], [True, False], ["x"]))
    assert table != LabelledTexts(["a", "b"], [False, True], ["x"])
    renamed = LabelledTexts(["a", "b"], [True, False], ["x"], name="other")
    assert table != renamed
    assert table.data_hash == renamed.data_hash != LabelledTexts(["a", "b"], [False, True], ["x"]).data_hash
    with pytest.raises(ValueError, match="read-only"):
        table.labels[0] = 0


@pytest.mark.parametrize(
    ("labels", "concepts", "message"),
    [
        ([1, 0], ["x"], r"\(3, 1\), not \(2, 1\)"),
        ([1, 0, 1], ["x", "y"], r"\(3, 2\), not \(3,\)"),
        ([[1], [0], [1, 0]], ["x"], r"labels\[0\], labels\[1\], labels\[2\]"),
        ([1, 0, 2], ["x"], r"1 \(source\), 0 \(target\) or -1.*labels\[2\]"),
        ([1, 0, float("nan")], ["x"], r"labels\[2\]"),
        (["1", "0", "1"], ["x"], r"labels\[0\]"),
        ([1, 1, -1], ["x"], "concept 'x' has no target text"),
        ([-1, -1, -1], ["x"], "has no source and no target text"),
        ([[1, 1], [0, 0], [1, 1]], ["x", "x"], "different names"),
        ([[], [], []], [], "different names, one or more"),
    ],
)
def test_labelled_texts_refuse(labels, concepts, message):
    with pytest.raises(ContrastError, match=message):
        LabelledTexts(["a", "b", "c"], labels, concepts)


def test_several_contrasts_make_one_table():
    first = ContrastSet(["a", "b"], ["c"], name="first")
    second = ContrastSet(["c", "d"], ["a"], name="second")
    table = LabelledTexts.of([first, second], name="both")
    assert table.texts == ("a", "b", "c", "d")
    assert table.labels.tolist() == [[1, 0], [1, -1], [0, 1], [-1, 1]]
    for contrast in (first, second):
        back = table.contrast(contrast.name)
        assert (set(back.source), set(back.target)) == (set(contrast.source), set(contrast.target))
    with pytest.raises(ContrastError, match="different names"):
        LabelledTexts.of([first, first])
    with pytest.raises(ContrastError, match="one chat format, not 2"):
        LabelledTexts.of([first, ContrastSet(["a"], ["b"], chat=True)])
    with pytest.warns(LensSteerWarning, match="on both sides"):
        both = ContrastSet(["a", "b"], ["b"])
    with pytest.raises(ContrastError, match=r"1 text\(s\) on both sides"):
        LabelledTexts.of([both])
