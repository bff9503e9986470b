"""Numbers that are asked of the microworld: how many texts, which seed, how large a batch."""

from __future__ import annotations

import operator

from lens_steer.errors import MicroworldError

LARGEST_SEED = 2**32 - 1


def checked_count(value: object, what: str, *, least: int = 1) -> int:
    """Return a whole number of `what`; MicroworldError where it is none, or fewer than `least`."""
    number = _whole(value)
    if number is None or number < least:
        raise MicroworldError(f"The number of {what} is a whole number, {least} or more, not {value!r}.")
    return number


def checked_seed(value: object) -> int:
    """Return a seed; MicroworldError unless it is a whole number from 0 to 2**32 - 1, beyond which streams repeat."""
    number = _whole(value)
    if number is None or not 0 <= number <= LARGEST_SEED:
        raise MicroworldError(f"A seed is a whole number from 0 to {LARGEST_SEED}, not {value!r}.")
    return number


def _whole(value: object) -> int | None:
    """The number of an int, also numpy's; None for everything else."""
    try:
        return None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None
