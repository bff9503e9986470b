"""How many texts make a batch: the caller's number, checked, or one that fits the texts."""

from __future__ import annotations

from lens_steer.errors import SettingError
from lens_steer.host.tokens import Tokens, default_batch_size


def checked_batch_size(batch_size: int | None) -> int | None:
    """Return a batch size as it was given; SettingError unless it is None or a whole number from 1 on."""
    if batch_size is None:
        return None
    if isinstance(batch_size, bool) or int(batch_size) != batch_size or batch_size < 1:
        raise SettingError(
            f"batch_size must be 1 or more, not {batch_size!r}: leave it out (None) for a size that fits the texts"
        )
    return int(batch_size)


def batch_size_for(tokens: Tokens, batch_size: int | None) -> int:
    """Return the caller's batch size (SettingError below 1), or where it is None one that fits the texts."""
    return checked_batch_size(batch_size) or default_batch_size(tokens)
