"""Encoding: rows as strings in their chat format, and as ids of which it is known whose words they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lens_steer.errors import SettingError, TokenError
from lens_steer.texts.contrast import ChatFormat, Row
from lens_steer.texts.messages import Conversation, messages_of

_PLACE = "\u2063text\u2063"  # stands for a text where a template is tried: what is in front of it is the template's


@dataclass(frozen=True)
class Passage:
    """A row as the string that the model is given.

    text:
        Prompt and completion in one, so that the boundary gets the tokens that the model would see.
    completion:
        Where the completion begins; None for a row that is a text.
    own:
        Spans (from, to) of the row's own words; the rest is the chat format's.
    """

    text: str
    completion: int | None
    own: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Encoded:
    """A row as ids; `prompt` of them are a pair's prompt (None for a text), `own` marks the row's own words."""

    ids: list[int]
    prompt: int | None
    own: list[bool]


def passage(tokenizer: Any, row: Row | Conversation, chat: ChatFormat) -> Passage:
    """Lay the chat format around a text or the prompt of a pair, or a conversation into the tokenizer's template.

    A conversation that ends with the assistant's words is a pair, of which they are the completion. TokenError where
    the tokenizer has no template or the template fails; SettingError for what is no row.
    """
    if isinstance(row, str):
        text, own = _in_format(tokenizer, row, chat)
        return Passage(text, None, own)
    messages = messages_of(row)
    if messages is not None:
        return _conversation(tokenizer, messages, chat)
    if not isinstance(row, tuple) or len(row) != 2 or not all(isinstance(part, str) for part in row):
        raise SettingError(
            "a row is a text, a (prompt, completion) pair of texts or a conversation (a list of messages), not "
            f"{type(row).__name__}: {row!r:.60}"
        )
    asked, answer = str(row[0]), str(row[1])
    prompt, own = _in_format(tokenizer, asked, chat)
    whole = prompt + answer
    return Passage(whole, len(prompt), (*own, (len(prompt), len(whole))))


def apply_template(tokenizer: Any, messages: Sequence[dict[str, str]]) -> str:
    """Return messages in the tokenizer's chat template, ready for the model's answer."""
    if not getattr(tokenizer, "chat_template", None):
        raise TokenError('this tokenizer has no chat template: give the format, such as chat="User: {text}\\nBot:"')
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise TokenError(f"the tokenizer's chat template refuses messages of the roles {roles}: {error}") from None


def apply_chat(tokenizer: Any, text: str, chat: ChatFormat) -> str:
    """Lay the chat format around one user turn; the model's answer comes after it."""
    return _in_format(tokenizer, text, chat)[0]


def _in_format(tokenizer: Any, text: str, chat: ChatFormat) -> tuple[str, tuple[tuple[int, int], ...]]:
    if chat is None or chat is False:
        return text, ((0, len(text)),)
    if isinstance(chat, str):
        pieces = chat.split("{text}")
        spans, place = [], 0
        for piece in pieces[:-1]:
            place += len(piece)
            spans.append((place, place + len(text)))
            place += len(text)
        return text.join(pieces), tuple(spans)
    turn = [{"role": "user", "content": text}]
    laid = apply_template(tokenizer, turn)
    return laid, (_last_content(tokenizer, turn, laid),)


def _last_content(tokenizer: Any, messages: Sequence[dict[str, str]], laid: str) -> tuple[int, int]:
    """Return the span of the last message's words in the laid-out template, which may have trimmed them."""
    words = messages[-1]["content"].strip()
    tried = apply_template(tokenizer, [*messages[:-1], {**messages[-1], "content": _PLACE}])
    front = tried.find(_PLACE)
    start = laid.find(words, max(front, 0)) if laid.startswith(tried[: max(front, 0)]) else laid.rfind(words)
    return (start, start + len(words)) if start >= 0 else (0, len(laid))


def _conversation(tokenizer: Any, messages: list[dict[str, str]], chat: ChatFormat) -> Passage:
    if isinstance(chat, str):
        raise SettingError("a conversation is laid into the tokenizer's chat template: leave chat away, or set it True")
    answered = messages[-1]["role"] == "assistant"
    asked = messages[:-1] if answered else messages
    if not asked:
        raise SettingError("a conversation begins with a message that is not the assistant's")
    laid = apply_template(tokenizer, asked)
    own = _last_content(tokenizer, asked, laid)
    if not answered:
        return Passage(laid, None, (own,))
    whole = laid + messages[-1]["content"]
    return Passage(whole, len(laid), (own, (len(laid), len(whole))))


def encode(
    tokenizer: Any, passages: Sequence[Passage], what: str = "text", numbers: Sequence[int] | None = None
) -> list[Encoded]:
    """Return the ids of passages, without what the tokenizer itself puts around a text (see `opening`).

    A token that spans the boundary of a pair counts as completion. TokenError for a text that cannot be encoded, such
    as one with a lone surrogate.
    """
    cut = any(one.completion is not None or one.own != ((0, len(one.text)),) for one in passages)
    settings: dict[str, Any] = {"add_special_tokens": False}
    if cut and tokenizer.is_fast:
        settings["return_offsets_mapping"] = True
    try:
        encoding = tokenizer([one.text for one in passages], **settings)
    except (TypeError, UnicodeError):
        named = range(len(passages)) if numbers is None else numbers
        raise _unreadable(tokenizer, passages, what, named) from None
    if not cut:
        return [Encoded(list(ids), None, [True] * len(ids)) for ids in encoding.input_ids]
    if tokenizer.is_fast:
        offsets = encoding.offset_mapping
    else:
        offsets = [_offsets(tokenizer, one.text, ids) for one, ids in zip(passages, encoding.input_ids, strict=True)]
    return [
        _encoded(one, list(ids), ends) for one, ids, ends in zip(passages, encoding.input_ids, offsets, strict=True)
    ]


def _encoded(one: Passage, ids: list[int], offsets: Sequence[tuple[int, int]]) -> Encoded:
    prompt = None if one.completion is None else sum(end <= one.completion for _, end in offsets)
    own = [any(start < stop and end > begin for begin, stop in one.own) for start, end in offsets]
    return Encoded(ids, prompt, own)


def _offsets(tokenizer: Any, text: str, ids: Sequence[int]) -> list[tuple[int, int]]:
    """Return the characters of each token for a tokenizer that does not tell them.

    A token ends at the shortest beginning of the text whose own ids it is part of, unchanged.
    """
    spans: list[tuple[int, int]] = []
    for stop in range(1, len(text) + 1):
        front = tokenizer(text[:stop], add_special_tokens=False).input_ids
        shared = next((place for place, pair in enumerate(zip(front, ids, strict=False)) if pair[0] != pair[1]), None)
        shared = min(len(front), len(ids)) if shared is None else shared
        # What a longer beginning takes back had not ended yet; tokens that end together are of one character.
        del spans[shared:]
        spans += [(spans[-1][1] if spans else 0, stop)] * (shared - len(spans))
    return spans + [(spans[-1][1] if spans else 0, len(text))] * (len(ids) - len(spans))


def _unreadable(tokenizer: Any, passages: Sequence[Passage], what: str, numbers: Sequence[int]) -> TokenError:
    for number, one in zip(numbers, passages, strict=True):
        try:
            tokenizer(one.text, add_special_tokens=False)
        except (TypeError, UnicodeError) as error:
            why = "it holds half of a surrogate pair" if _has_surrogate(one.text) else str(error)
            return TokenError(f"{what} {number} cannot be encoded: {why}: {one.text!r:.60}")
    return TokenError("the tokenizer takes each text by itself, and not all in one call")


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def opening(tokenizer: Any, *, bos: bool) -> list[int]:
    """Return the ids in front of every text: what the tokenizer itself puts there, and one BOS or none.

    Some tokenizers have an opening of their own, as GLM's `[gMASK] <sop>`; it then stands in place of BOS.
    """
    bare = list(tokenizer("a", add_special_tokens=False).input_ids)
    full = list(tokenizer("a").input_ids)
    begins = (place for place in range(len(full) - len(bare) + 1) if full[place : place + len(bare)] == bare)
    own = full[: next(begins, 0)]
    if not bos:  # a single token in front of a text is a BOS by whatever name
        return own[1:] if len(own) == 1 or own[:1] == [tokenizer.bos_token_id] else own
    return own or [tokenizer.bos_token_id]
