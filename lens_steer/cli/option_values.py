"""What the words of an option stand for: the lines of a file, a list with commas, a chat format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cyclopts import CoercionError, Token

from lens_steer.errors import ContrastError, SettingError


def several(tokens: Sequence[Token]) -> list[str]:
    """Return the values of an option that takes several: with commas, the option again, or both."""
    parts = [part.strip() for token in tokens for part in token.value.split(",") if part.strip()]
    if not parts:
        raise CoercionError(msg="nothing was given; several values are written with commas", token=tokens[0])
    return parts


def lines_of(path: Path) -> list[str]:
    """Read prompts, one a line; ContrastError for a file without any, or that is no UTF-8 text."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ContrastError(f"{path} cannot be read as UTF-8 text, one prompt a line: {error}") from error
    if not lines:
        raise ContrastError(f"{path} holds no line of text")
    return lines


def words_of(words: str) -> list[str]:
    """Split --words at its commas; SettingError where none is left."""
    return _parts(words, "--words", "words")


def sites_of(sites: str) -> list[str]:
    """Split --sites at its commas; SettingError where none is left."""
    return _parts(sites, "--sites", "sites")


def _parts(value: str, option: str, what: str) -> list[str]:
    parts = [part.strip() for part in value.split(",") if part.strip()]
    if not parts:
        raise SettingError(f"{option} is empty: give {what}, several with commas")
    return parts


def chat_of(chat: str | None) -> bool | str | None:
    """Read --chat: None, the template, or a format with \\n for a line break; SettingError for one without {text}."""
    if chat is None or chat == "template":
        return True if chat else None
    if "{text}" not in chat:
        raise SettingError(f'--chat {chat!r}: give "template", or a format such as "User: {{text}}\\nBot:"')
    return chat.replace("\\n", "\n")
