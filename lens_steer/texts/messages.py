"""Conversations: lists of chat messages, as chat templates and data files have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lens_steer.errors import SettingError

Message = Mapping[str, str]
"""{"role": "user", "content": "..."}"""

Conversation = Sequence[Message] | Mapping[str, Sequence[Message]]
"""Messages in their order, or a record {"messages": [...]} that holds them."""

_FORM = '[{"role": "user", "content": "..."}, ...]'


def messages_of(item: object) -> list[dict[str, str]] | None:
    """Return the messages of a conversation; None for what is none; SettingError for one that is malformed."""
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
