"""Beginnings of texts, to generate from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache

from lens_steer.errors import SettingError
from lens_steer.settings import require_settings
from lens_steer.texts.contrast import ContrastSet, Row
from lens_steer.texts.messages import ConversationRow
from lens_steer.texts.scripts import CHARACTERS_PER_WORD, UNSPACED, combining_marks

Groups = Sequence[str] | None
"""The group that each row comes from; None where the rows are in none."""


def prompts_in_groups(
    contrast: ContrastSet, *, words: int, most: int
) -> tuple[Sequence[str | ConversationRow], Groups]:
    """Return the beginnings of the first source texts, as prompts, and their groups."""
    groups = contrast.source_groups
    return beginnings(contrast.source, words=words, most=most), None if groups is None else groups[:most]


def neutral_in_groups(contrast: ContrastSet, *, most: int | None = None) -> tuple[Sequence[Row], Groups]:
    """Return the first texts that an edit should leave alone: the control, which has no groups, or else the target."""
    if contrast.control:
        return contrast.control[:most], None
    groups = contrast.target_groups
    return contrast.target[:most], None if groups is None else groups[:most]


def beginnings(rows: Iterable[Row], *, words: int, most: int | None = None) -> tuple[str | ConversationRow, ...]:
    """Return the first words of texts, the prompts of pairs, or what conversations ask, as prompts to generate from.

    A word is what stands between spaces. Scripts that put none between words are counted in characters: two of Chinese
    or Japanese stand for a word, five of Thai, Lao, Khmer, Burmese or Tibetan; a combining mark stays with its
    character, punctuation with the word before it. A text of fewer words is returned whole. Runs of white space become
    one space.

    Parameters
    ----------
    rows:
        Texts; (prompt, completion) pairs, whose prompts are returned as they are; or conversations, of which the
        messages before the assistant's last words are.
    words:
        How many words of each text.
    most:
        How many rows, the first ones; None for all.

    Raises
    ------
    SettingError
        `words` or `most` is below 1.

    """
    require_settings(beginnings, locals())
    for name, value in (("words", words), ("most", most)):
        if value is not None and value < 1:
            raise SettingError(f"{name} must be 1 or more, not {value}")
    listed = list(rows)[:most]
    return tuple(_beginning(row, words) for row in listed)


def _beginning(row: Row, words: int) -> str | ConversationRow:
    return _first_words(row, words) if isinstance(row, str) else prompt_of(row)


def prompt_of(row: Row) -> str | ConversationRow:
    """Return what a row is continued from: a text itself, the prompt of a pair, what a conversation asks."""
    if isinstance(row, ConversationRow):
        return row.asked
    return row if isinstance(row, str) else row[0]


def _first_words(text: str, words: int) -> str:
    end = 0
    for count, match in enumerate(_words().finditer(text), 1):
        end = match.end()
        if count == words:
            break
    return " ".join(text[:end].split())


@cache
def _words() -> re.Pattern[str]:
    """A word, or the characters that stand for one with the punctuation around them."""
    # The white space before it belongs to no word; characters of scripts without spaces end one that has them.
    marks, punctuation = combining_marks(), f"[^\\s\\w{UNSPACED}{combining_marks()}]"
    unspaced = [f"[{script}]{{1,{size}}}[{marks}]*" for script, size in CHARACTERS_PER_WORD.items()]
    return re.compile(f"{punctuation}*(?:{'|'.join(unspaced)}){punctuation}*|[^\\s{UNSPACED}]+")
