# ruff: noqa: RUF001
"""Words of every script: word lists, features of classifiers and beginnings of texts."""

from __future__ import annotations

import re
import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer

import lens_steer as ls
from lens_steer.errors import SettingError
from lens_steer.evaluation.scorers import ConceptClassifier, WordList
from lens_steer.texts.beginnings import beginnings
from lens_steer.texts.contrast import ContrastSet
from lens_steer.texts.scripts import UNSPACED, combining_marks, word_features

CHINESE = "他说：“你好，世界”。今天天气很好"
THAI = "ฉันเห็นแมวตัวใหญ่"
# Of I with a dot, the lower case is an i with a combining one, which scikit-learn takes for the end of a word.
spaced_texts = st.text(st.characters(max_codepoint=0x24F, exclude_characters="\u0130"), max_size=60)


@pytest.mark.parametrize(
    ("word", "text", "held"),
    [
        ("坏人", "他是一个坏人。", True),
        ("坏人", "他是一个好人。", False),
        ("ばか", "おまえはばかだ！", True),
        ("แมว", THAI, True),
        ("หมา", THAI, False),
        ("shit", "这个shit真烦", True),
        ("shit", "这个shitty真烦", False),
        ("坏人", "abc坏人abc", True),
        ("caf\u00e9", "un cafe\u0301 noir", True),
        ("cafe\u0301", "un CAF\u00c9 noir", True),
        ("cafe", "un cafe\u0301 noir", False),
        ("क", "का", False),  # a vowel sign makes another syllable
        ("ल", "काल", False),  # and is no space
        ("काल", "यह काल है", True),
        ("กา", "กาแฟ", True),  # documented: no dictionary tells a crow from coffee
        ("เก", "เก่", False),  # but a tone mark makes another word
        ("나쁜", "나쁜 놈", True),
        ("나쁜", "나쁜놈", False),  # Korean is written with spaces
        ("坏 shit", "这坏 shit真烦", True),
        ("c++", "我写c++代码", True),
        ("cat", "concatenate", False),
        ("cat", "snake_cat", False),
        ("cat", "Cat!", True),
    ],
)
def test_a_word_of_a_list_is_found_in_its_script(word: str, text: str, held: bool) -> None:
    assert WordList([word])([text]).tolist() == [float(held)]
    assert WordList(["zebra", word])([unicodedata.normalize("NFD", text)]).tolist() == [float(held)]


def test_the_scripts_without_spaces_are_those_that_unicode_names() -> None:
    names = ("CJK UNIFIED", "CJK COMPATIBILITY IDEOGRAPH", "HIRAGANA LETTER", "KATAKANA LETTER", "THAI CHARACTER",
             "LAO LETTER", "LAO VOWEL", "KHMER LETTER", "KHMER VOWEL", "MYANMAR LETTER", "MYANMAR VOWEL",
             "TIBETAN LETTER", "JAVANESE LETTER")  # fmt: skip
    others = ("LATIN", "GREEK", "CYRILLIC", "HANGUL", "ARABIC", "HEBREW", "DEVANAGARI", "TAMIL", "FULLWIDTH LATIN")
    unspaced = re.compile(f"[{UNSPACED}]")
    counts = dict.fromkeys((*names, *others), 0)
    for code in range(sys.maxunicode + 1):
        name = unicodedata.name(chr(code), "")
        if kind := next((start for start in counts if name.startswith(start)), None):
            letter = unicodedata.category(chr(code))[0] in "LM"
            counts[kind] += letter
            if letter:
                assert bool(unspaced.match(chr(code))) == (kind in names), name
    assert min(counts.values()) > 5


def test_every_combining_mark_is_known() -> None:
    marks = re.compile(f"[{combining_marks()}]")
    for code in range(sys.maxunicode + 1):
        assert bool(marks.match(chr(code))) == unicodedata.category(chr(code)).startswith("M")


@settings(deadline=None)
@given(spaced_texts)
def test_features_of_spaced_text_are_those_of_scikit_learn(text: str) -> None:
    text = unicodedata.normalize("NFC", text)
    assert word_features(text) == TfidfVectorizer(ngram_range=(1, 2)).build_analyzer()(text)


def test_features_without_spaces_are_ngrams_of_characters() -> None:
    assert word_features("坏人 bad men来") == ["bad", "men", "bad men", "坏", "人", "坏人", "来"]
    assert word_features("今天好")[-1] == "今天好"
    assert word_features("a") == []


def test_a_classifier_reads_chinese() -> None:
    source, target = ([f"第{n}个{who}来了。" for n in "一二三四五六七八九十"] for who in ("坏人", "老师"))
    classifier = ConceptClassifier.fit(ContrastSet(source, target))
    assert classifier.heldout_auroc == 1.0
    assert classifier(["他是坏人", "他是老师"]).round().tolist() == [1, 0]


@settings(deadline=None)
@given(spaced_texts, st.integers(1, 6))
def test_a_beginning_of_spaced_text_is_its_first_words(text: str, words: int) -> None:
    assert beginnings([text], words=words) == (" ".join(text.split()[:words]),)


@settings(deadline=None)
@given(st.text(st.sampled_from("他好世界カバ、。 ab\u0301ฉันเ็ม"), max_size=40), st.integers(1, 6))
def test_a_beginning_is_a_beginning_and_grows_with_its_words(text: str, words: int) -> None:
    text = " ".join(text.split())
    short, long = (beginnings([text], words=count)[0] for count in (words, words + 1))
    assert text.startswith(long)
    assert long.startswith(short)
    assert (short == long) == (short == text.rstrip())
    assert beginnings([text], words=len(text) + 1)[0] == text


@pytest.mark.parametrize(
    ("text", "words", "beginning"),
    [
        (CHINESE, 1, "他说：“"),
        (CHINESE, 3, "他说：“你好，世界”。"),
        (THAI, 2, "ฉันเห็นแมวตั"),
        ("the shit真烦人 is here", 3, "the shit真烦"),
        ("これはペンです。", 2, "これはペ"),
        ("한국어 문장 입니다", 2, "한국어 문장"),
        ("two\n  words here", 2, "two words"),
        ("short", 4, "short"),
    ],
)
def test_beginnings_of_every_script(text: str, words: int, beginning: str) -> None:
    assert beginnings([text], words=words) == (beginning,)


def test_prompts_of_pairs_are_their_beginnings() -> None:
    rows = [("a long prompt it is", "done"), ("", "b")]
    assert ls.beginnings(rows, words=2) == ("a long prompt it is", "")
    assert ls.beginnings(rows, words=2, most=1) == ("a long prompt it is",)
    for bad in ({"words": 0}, {"words": 2, "most": 0}):
        with pytest.raises(SettingError, match="must be 1 or more, not 0"):
            ls.beginnings(rows, **bad)
