"""Conversations: lists of chat messages, as chat templates and data files have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lens_steer.errors import SettingError

Message = Mapping[str, str]
"""{"role": "user", "content": "..."}"""

_FORM = '[{"role": "user", "content": "..."}, ...]'


class ConversationRow(tuple[tuple[str, str], ...]):
    """A conversation as a row of a contrast: (role, content) of every message; it cannot change, and is hashable.

    One that ends with the assistant's words is a pair, of which they are the completion. Of another the last message
    is what pools cover.
    """

    __slots__ = ()

    @classmethod
    def of(cls, item: object) -> ConversationRow | None:
        """Return the row of what `messages_of` knows as a conversation, else None."""
        messages = messages_of(item)
        return None if messages is None else cls((one["role"], one["content"]) for one in messages)

    @property
    def answered(self) -> bool:
        """Whether the last words are the assistant's."""
        return self[-1][0] == "assistant"

    @property
    def asked(self) -> ConversationRow:
        """The messages before the answer."""
        return ConversationRow(self[:-1]) if self.answered else self

    @property
    def parts(self) -> tuple[str, ...]:
        """The prompt and the answer, or all as one text: a single message by its content, several with their roles."""
        asked = self.asked
        prompt = asked[0][1] if len(asked) == 1 else "\n".join(f"{role}: {content}" for role, content in asked)
        return (prompt, self[-1][1]) if self.answered else (prompt,)


Conversation = Sequence[Message] | Mapping[str, Sequence[Message]] | ConversationRow
"""Messages in their order, a record {"messages": [...]} that holds them, or a row of a contrast."""


def messages_of(item: object) -> list[dict[str, str]] | None:
    """Return the messages of a conversation; None for what is none; SettingError for one that is malformed."""
    if isinstance(item, ConversationRow):
        return [{"role": role, "content": content} for role, content in item]
    if isinstance(item, Mapping):
        if "messages" not in item:
            raise SettingError(f"a conversation is a list of messages, {_FORM}: write a single message as [message]")
        item = item["messages"]
    elif not isinstance(item, Sequence) or isinstance(item, str) or not any(isinstance(one, Mapping) for one in item):
        return None
    if not isinstance(item, Sequence) or isinstance(item, str) or not item:
        raise SettingError(f"a conversation is a list of at least one message, {_FORM}")
    return [_message(one) for one in item]


def _message(item: Any) -> dict[str, str]:
    if not isinstance(item, Mapping) or not all(isinstance(item.get(key), str) for key in ("role", "content")):
        raise SettingError(f"a message has a role and a text as its content, {_FORM}, unlike {item!r:.60}")
    return {"role": item["role"], "content": item["content"]}
