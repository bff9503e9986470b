"""Messages of the library in the words of the command line: max_new_tokens=0 becomes --max-new-tokens 0."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any, get_type_hints

from lens_steer.errors import LensSteerError


def option(name: str) -> str:
    """Return an option by the name of its argument."""
    return f"--{name.replace('_', '-')}"


def options_of(command: Callable[..., Any]) -> dict[str, bool]:
    """Return the arguments of a command, or the fields of a group of options, and whether each is a flag.

    A group among them stands for its fields.
    """
    options: dict[str, bool] = {}
    for name, kind in get_type_hints(command).items():
        if is_dataclass(kind) and isinstance(kind, type):
            options |= options_of(kind)
        elif name != "return":
            options[name] = kind is bool
    return options


@contextmanager
def in_options(command: Callable[..., Any]) -> Iterator[None]:
    """Let errors speak of the options of a command where they speak of arguments."""
    try:
        yield
    except LensSteerError as error:
        raise type(error)(as_options(str(error), options_of(command))) from error


def as_options(message: str, options: Mapping[str, bool]) -> str:
    """Return a message with these options in place of arguments of the same name; a call of `ls` stays Python."""
    listed = "|".join(sorted(options, key=len, reverse=True))
    value = r"(\"[^\"]*\"|\([^()]*\)|-?\w+(?:\.\w+)?(?:e-?\d+)?)?"

    def given(match: re.Match[str]) -> str:
        name, value = match[1], match[2]
        if name is None:
            return match[0]
        if not value or options[name]:
            return option(name)
        if value.startswith("("):
            parts = [part.strip(" '") for part in value[1:-1].split(",") if part.strip()]
            return f"{option(name)} {','.join(parts)}"
        return f"{option(name)} {value if ' ' in value else value.strip(chr(34))}"

    message = re.sub(rf"\bls\.\w+\([^()]*\)|(?<![\w-])({listed})={value}", given, message)
    alone = "|".join(name for name in options if "_" in name)  # a word of English is no argument
    return (
        re.sub(rf"(?<![\w/.'\"-])({alone})(?![\w=.'\"])", lambda match: option(match[1]), message) if alone else message
    )
