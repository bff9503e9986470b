"""Words in every script: which characters are written without spaces between words, and what stands for a word there.

Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan, Javanese and their kin put no spaces between words. Nothing here
looks words up in a dictionary: in these scripts a word of a list counts wherever its characters stand, and n-grams of
characters stand for words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import pairwise

# Of regular expressions, to be put in brackets. Han with its radicals and numerals, kana, bopomofo: a character is
# about half a word.
IDEOGRAPHS = (
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3038-\u303b\u3041-\u3096\u3099-\u309a\u309d-\u309f\u30a1-\u30fa"
    "\u30fc-\u30ff\u3105-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"
    "\U0001aff0-\U0001b16f\U00020000-\U0003ffff"
)
# Thai, Lao, Tibetan, Burmese, Khmer, Tai Le, New Tai Lue, Tai Tham, Balinese, Javanese, Tai Viet: about a fifth.
SOUTH_EAST_ASIAN = (
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ece\u0edc-\u0edf\u0f00\u0f18-\u0f19\u0f35\u0f37\u0f39\u0f3e-\u0f84\u0f86-\u0fbc"
    "\u1000-\u103f\u104e-\u109f\u1780-\u17d3\u17d7\u17dc-\u17dd\u1950-\u19cf\u1a20-\u1a7c\u1aa7\u1b00-\u1b4b\u1b6b-\u1b73"
    "\ua980-\ua9c0\ua9e0-\ua9ef\ua9fa-\ua9fe\uaa60-\uaa7f\uaa80-\uaadd"
)
UNSPACED = IDEOGRAPHS + SOUTH_EAST_ASIAN
CHARACTERS_PER_WORD = {IDEOGRAPHS: 2, SOUTH_EAST_ASIAN: 5}
LONGEST_NGRAM = 3

_UNSPACED_CHARACTER = re.compile(f"[{UNSPACED}]")


def composed(text: str) -> str:
    """Return the text in Unicode's normal form C: "e" with a combining accent is the letter with the accent."""
    return unicodedata.normalize("NFC", text)


@cache
def combining_marks() -> str:
    """Return all combining marks, as the inside of a regular expression's brackets."""
    # Beyond these planes there are variation selectors only.
    codes = (*range(0x20000), *range(0xE0000, 0xE0200))
    marks = [code for code in codes if unicodedata.category(chr(code)).startswith("M")]
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in _runs(marks))


def _runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield (first, last) of every run of consecutive numbers."""
    first = last = -2
    for number in numbers:
        if number != last + 1:
            if last >= 0:
                yield first, last
            first = number
        last = number
    if last >= 0:
        yield first, last


@cache
def _word_pattern() -> re.Pattern[str]:
    """Two or more letters, digits or marks of a script with spaces, or a run of characters of one without."""
    letter = f"(?:(?![{UNSPACED}])[\\w{combining_marks()}])"
    return re.compile(f"(?P<unspaced>[{UNSPACED}]+)|(?P<word>{letter}{{2,}})")


def word_features(text: str) -> list[str]:
    """Return what a bag of words holds: words and pairs of neighbours; in scripts without spaces, n-grams.

    A word has two characters or more, in lower case, as scikit-learn's vectorizers count words. A run of characters of
    a script without spaces gives its n-grams of one to three characters.
    """
    words: list[str] = []
    ngrams: list[str] = []
    for match in _word_pattern().finditer(composed(text).lower()):
        run = match["unspaced"]
        if run is None:
            words.append(match["word"])
        else:
            sizes = range(1, LONGEST_NGRAM + 1)
            ngrams += [run[start : start + size] for size in sizes for start in range(len(run) - size + 1)]
    return [*words, *(f"{one} {two}" for one, two in pairwise(words)), *ngrams]


def whole_word(entry: str) -> str:
    """Return the regular expression that finds an entry of a word list where it stands as a word.

    In scripts with spaces no letter, digit or combining mark may stand next to it. Characters of a script without
    spaces part words as a space does, and an edge of the entry that is such a character may stand next to anything but
    a combining mark that changes it.
    """
    entry = composed(entry).strip()
    marks, letter = combining_marks(), f"[^\\W{UNSPACED}]"
    spaced_mark = f"(?![{UNSPACED}])[{marks}]"
    before = "" if _UNSPACED_CHARACTER.match(entry[0]) else f"(?<!{letter})(?<!{spaced_mark})"
    after = f"(?![{marks}])" + ("" if _UNSPACED_CHARACTER.match(entry[-1]) else f"(?!{letter})")
    return f"{before}{re.escape(entry)}{after}"
