"""What lint finds: nothing in random texts at the level it names, and every fault that is planted."""

from __future__ import annotations

import random
from collections.abc import Iterable

import numpy as np
import pytest

from lens_steer.errors import SettingError
from lens_steer.texts.contrast import ContrastSet
from lens_steer.texts.lint import sides
from lens_steer.texts.lint.copies import NEAR, _plain, near_copies
from lens_steer.texts.lint.finding import ContrastLint
from lens_steer.texts.lint.frames import FEWEST, shared_frames
from lens_steer.texts.lint.material import Material
from lens_steer.texts.messages import ConversationRow

WORDS = [f"{first}{second}" for first in "bcdfghklmnprstvz" for second in ("ala", "ebe", "ido", "oru", "umi", "ayne")]
_WEIGHTS = [1 / (place + 1) for place in range(len(WORDS))]


def text(rng: random.Random, words: int | None = None) -> str:
    return " ".join(rng.choices(WORDS, _WEIGHTS, k=words or rng.randint(6, 18))) + "."


def texts(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    return [text(rng) for _ in range(count)]


def random_contrast(seed: int = 0, size: int = 30) -> ContrastSet:
    rows = texts(seed, 2 * size)
    return ContrastSet(rows[:size], rows[size:])


def names(lint: ContrastLint) -> set[str]:
    return {finding.finding for finding in lint.findings}


def material_of(rows: Iterable[str], blocks: Iterable[int] | None = None) -> Material:
    listed = tuple(rows)
    numbers = np.arange(len(listed)) if blocks is None else np.array(list(blocks))
    return Material(listed, len(listed) // 2, numbers)


@pytest.mark.parametrize("seed", range(8))
def test_random_texts_have_no_fault(seed: int) -> None:
    lint = random_contrast(seed).lint()
    assert lint.ok
    assert lint.judged
    assert lint.findings == ()
    assert lint.frame.empty
    assert "30 source and 30 target texts: nothing stands out" in lint.verdict


@pytest.mark.parametrize("copies", [1, 3])
def test_random_sides_differ_at_the_level_that_is_named(monkeypatch: pytest.MonkeyPatch, copies: int) -> None:
    """Without the limits below which a difference is too small to tell, and with texts that come in groups."""
    monkeypatch.setattr(sides, "LENGTH_AREA", 0.5)
    monkeypatch.setattr(sides, "GIVEAWAY", 0.0)
    alarms = 0
    for seed in range(150):
        rng = random.Random(seed)
        rows = []
        for _ in range(24):  # the texts of a group share their words and nearly their length
            first = text(rng)
            rows += [f"{first} {text(rng, 1)}" for _ in range(copies)]
        blocks = np.repeat(np.arange(24), copies)
        alarms += bool(sides.check_sides(material_of(rows, blocks), seed).findings)
    assert 1 <= alarms <= 17  # 7.5 are expected, more than 17 in one of 2,000 runs


def test_groups_that_are_not_named_alarm() -> None:
    """What the test above would read if rows counted as independent: it can fail."""
    alarms = 0
    for seed in range(20):
        rng = random.Random(seed)
        rows = []
        for _ in range(6):
            first = text(rng)
            rows += [f"{first} {text(rng, 1)}" for _ in range(8)]
        alarms += bool(sides.check_sides(material_of(rows), seed).findings)
    assert alarms > 10


def test_few_texts_never_alarm_and_are_not_called_fine() -> None:
    lint = ContrastSet(["AAA one!"] * 1 + ["AAA two!", "AAA three!"], ["b", "c", "d"]).lint()
    assert not lint.judged
    assert names(lint) == {"few texts"}
    assert lint.severe
    assert "cannot be judged" in lint.verdict


def test_everything_differs() -> None:
    rng = random.Random(0)
    source = [f"Please, {text(rng, 20)[:-1]}!" for _ in range(25)]
    lint = ContrastSet(source, [text(rng, 5) for _ in range(25)]).lint()
    assert names(lint) == {"length", "giveaways"}
    assert not lint.ok
    assert not lint.severe
    found = {finding.finding: finding for finding in lint.findings}
    assert "AUROC 1.00" in found["length"].detail
    assert "the word 'please' in 25 source and 0 target texts" in found["giveaways"].detail
    assert "'!' at the end in 25 source and 0 target texts" in found["giveaways"].detail
    assert set(lint.frame["severity"]) == {"warning"}
    assert all(place.startswith(("source[", "target[")) for places in lint.frame["examples"] for place in places)


def test_a_longer_target_is_named_as_such() -> None:
    rng = random.Random(1)
    lint = ContrastSet([text(rng, 6) for _ in range(25)], [text(rng, 12) for _ in range(25)]).lint()
    (finding,) = lint.findings
    assert finding.detail.startswith("target texts are longer")
    assert "AUROC 0.0" in finding.detail


def test_pairs_are_judged_as_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each target is three words longer than its source, and lengths differ far more between pairs."""
    monkeypatch.setattr(sides, "LENGTH_AREA", 0.5)
    rng = random.Random(2)
    source = [text(rng, 4 + 3 * number) for number in range(20)]
    target = [text(rng, 7 + 3 * number) for number in range(20)]
    assert names(ContrastSet(source, target, paired=True).lint()) == {"length"}
    assert names(ContrastSet(source, target).lint()) == set()


def test_a_word_of_most_of_a_side_is_a_giveaway_and_of_both_is_none() -> None:
    rows = texts(3, 60)
    with_word = [f"{row[:-1]} really." for row in rows[:24]] + rows[24:30]
    found = ContrastSet(with_word, rows[30:]).lint()
    assert names(found) == {"giveaways"}
    assert "'really' in 24 source and 0 target" in found.findings[0].detail
    assert names(ContrastSet(with_word, [f"{row[:-1]} really." for row in rows[30:]]).lint()) == set()


def test_two_languages_across_sides_give_the_side_away_in_one_script_and_in_two() -> None:
    english = [f"the dog and the {word} are in the house" for word in WORDS[:20]]
    german = [f"der Hund und der {word} sind in dem Haus" for word in WORDS[20:40]]
    russian = [f"собака и дом стоят там {number}" for number in range(20)]
    assert "giveaways" in names(ContrastSet(english, german).lint())
    mixed = ContrastSet(english, russian).lint()
    assert {"giveaways", "mixed scripts"} <= names(mixed)
    scripts = next(finding for finding in mixed.findings if finding.finding == "mixed scripts")
    assert scripts.detail == "rows by script: 20 Latin, 20 Cyrillic"


def test_equal_texts_are_named_by_side() -> None:
    rows = texts(4, 60)
    lint = ContrastSet([*rows[:30], rows[0]], [*rows[30:], *rows[30:40]]).lint()
    copies = {finding.finding: finding for finding in lint.findings}
    assert copies["copies in source"].severity == "note"
    assert copies["copies in source"].examples == ("source[30]",)
    assert copies["copies in target"].severity == "warning"
    assert copies["copies in target"].count == 10
    assert lint.independent == (30, 30)
    assert "(30 and 30 independent ones)" in lint.verdict


@pytest.mark.filterwarnings("ignore::lens_steer.errors.LensSteerWarning")
def test_a_text_on_both_sides_is_severe() -> None:
    rows = texts(5, 60)
    lint = ContrastSet(rows[:30], [*rows[31:], rows[0]]).lint()
    assert lint.severe
    assert lint.findings[0].finding == "texts on both sides"
    assert lint.findings[0].examples == ("source[0]", "target[29]")


def test_near_copies_are_found_unless_something_keeps_them_together() -> None:
    rows = texts(6, 60)
    near = [f"{row[:-1].upper()}, ala!" for row in rows[:5]]
    source, target = rows[:30], near + rows[35:]
    found = ContrastSet(source, target).lint()
    finding = next(one for one in found.findings if one.finding == "near copies across sides")
    assert finding.count == 10
    assert finding.examples == ("source[0]", "target[0]", "source[1]", "target[1]", "source[2]", "target[2]")
    assert "near copies across sides" not in names(ContrastSet(source, target, paired=True).lint())
    inside = ContrastSet(rows[:30] + near, rows[30:]).lint()
    assert next(one for one in inside.findings if one.finding == "near copies").severity == "warning"


def test_near_copies_are_those_of_the_definition() -> None:
    """Against Jaccard over all pairs, one by one."""
    rng = random.Random(7)
    rows = []
    for _ in range(12):
        words = text(rng, 14).split()
        for changed in range(5):
            rows.append(" ".join([*words[changed:], *text(rng, changed).split()] if changed else words))
    runs = [{_plain(row)[start : start + 5] for start in range(len(_plain(row)) - 4)} for row in rows]
    true = {
        (one, other)
        for other in range(len(rows))
        for one in range(other)
        if len(runs[one] & runs[other]) >= NEAR * len(runs[one] | runs[other])
    }
    assert len(true) > 10
    assert set(map(tuple, near_copies(material_of(rows)).tolist())) == true


def test_templates_are_found_with_one_slot_and_with_two() -> None:
    rows = texts(8, 60)
    one = [f"my friend {word} went home early" for word in WORDS[:6]]
    two = [f"the capital of {word} is called {other}" for word, other in zip(WORDS[6:13], WORDS[30:37])]
    lint = ContrastSet(rows[:27] + one[:3] + two[:3], rows[30:57] + one[3:] + two[3:]).lint()
    assert names(lint) == {"templates"}
    finding = lint.findings[0]
    assert finding.count == 13
    assert finding.severity == "warning"
    assert "2 frames, the largest of 7 rows, 'the capital of _ is called _'" in finding.detail


def test_three_texts_or_one_block_make_no_template() -> None:
    rows = [f"my friend {word} went home early" for word in WORDS[: FEWEST - 1]]
    assert shared_frames(material_of([*rows, *rows, *texts(9, 4)])) == {}
    rows = [f"my friend {word} went home early" for word in WORDS[:6]]
    assert shared_frames(material_of(rows, [0] * 6)) == {}
    assert shared_frames(material_of(rows, [0] * 5 + [1])) == {"my friend _ went home early": [*range(6)]}


def test_odd_rows_are_named() -> None:
    rows = texts(10, 60)
    rows[1], rows[2] = "... !", text(random.Random(0), 300)
    rows[31] = "<|im_start|>user\nhello<|im_end|>"
    rows[32] = "Human: are you there?\nAssistant: yes, I am."
    rows[33] = "User: a word that stands alone"
    rows[34] = "это по-русски"
    found = {finding.finding: finding for finding in ContrastSet(rows[:30], rows[30:]).lint().findings}
    assert found["rows without words"].examples == ("source[1]",)
    assert found["long rows"].examples == ("source[2]",)
    assert found["chat markers"].examples == ("target[1]", "target[2]")
    assert found["mixed scripts"].examples == ("target[4]",)
    assert found["mixed scripts"].severity == "note"


def test_unequal_and_few_texts_are_named() -> None:
    rows = texts(11, 120)
    found = {finding.finding: finding for finding in ContrastSet(rows[:100], rows[100:112]).lint().findings}
    assert found.keys() == {"few texts", "imbalance"}
    assert "more texts of the target" in found["imbalance"].remedy
    assert found["few texts"].severity == "warning"
    assert found["few texts"].count == 12


def test_rows_of_every_kind_are_read() -> None:
    rows = texts(12, 50)
    pairs = [(f"question {number}?", row) for number, row in enumerate(rows)]
    assert "giveaways" not in names(ContrastSet(pairs[:25], pairs[25:]).lint())
    chats = [ConversationRow((("user", prompt), ("assistant", answer))) for prompt, answer in pairs]
    assert "chat markers" not in names(ContrastSet(chats[:25], chats[25:]).lint())


def test_the_order_of_rows_and_the_direction_change_nothing_that_is_found() -> None:
    rng = random.Random(13)
    source, target = [text(rng, 14) for _ in range(22)], [text(rng, 6) for _ in range(22)]
    one = ContrastSet(source, target).lint()
    assert one == ContrastSet(source, target).lint()
    assert names(one) == names(ContrastSet(source[::-1], target).lint()) == names(ContrastSet(target, source).lint())


def test_the_page_is_short_escaped_and_without_texts() -> None:
    rows = [f"{row[:-1]} <b>zebra</b>" for row in texts(14, 30)]
    lint = ContrastSet(rows, texts(15, 30), name="a <b> contrast").lint()
    page = lint._repr_html_()
    assert "a &lt;b&gt; contrast" in page
    assert "zebra" in page  # the word that gives the side away
    assert "<b>zebra" not in page
    assert not any(row[:25] in page for row in rows)
    assert repr(lint).startswith("ContrastLint(")
    assert lint.sentences[0] == lint.verdict


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(SettingError, match="seed must be 0 or more"):
        random_contrast(0, 5).lint(seed=-1)
