"""The settings of a study as options: a dataclass made from the signature and the docstring of its `run`.

What an option reads follows from the setting's type: numbers, texts, choices and paths as they are; tuples with commas;
a scorer as words (`--words`); prompts as a file; a second contrast as its files or name, with columns of its own;
a mapping as NAME=VALUE pairs. A setting of another type has a default and stays at it.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from cyclopts import CoercionError, Parameter, Token
from docstring_parser import DocstringStyle, parse

from lens_steer.cli.option_values import lines_of, several, words_of
from lens_steer.cli.options import FILE, FINITE, FROM_ZERO, CountOrNone, read_texts, whole
from lens_steer.errors import SettingError

_OF_EVERY_STUDY = ("model", "contrast", "out", "seed")
_COLUMNS = ("text", "label", "source", "target")
_SIMPLE = (bool, int, float, str, Path)
_Read = Callable[[dict[str, Any], int], Any]
"""From the options that were given, and the seed, to the value of a setting."""


@dataclass(frozen=True)
class _Option:
    """One option: its type as cyclopts reads it, and its default (MISSING: it must be given)."""

    name: str
    type: Any
    default: Any = None


@dataclass(frozen=True)
class _Setting:
    """A setting of a study, the options that carry it, and how its value is read from them (None: as it is)."""

    name: str
    options: tuple[_Option, ...]
    read: _Read | None = None


def options_of(study: Callable[..., Any], shared: type[Any]) -> type[Any]:
    """Return a dataclass that adds the options of a study to `shared`; its `settings()` are the study's arguments.

    Raises
    ------
    SettingError
        The types of the study's settings cannot be looked up, or two settings make one option.

    """
    try:
        signature = inspect.signature(study, eval_str=True)
    except NameError as error:
        raise SettingError(f"{study.__module__}.run: its types must be importable at run time ({error})") from error
    about = documented(study)
    settings = [
        setting
        for parameter in signature.parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in _OF_EVERY_STUDY
        if (setting := _setting(parameter, about.get(parameter.name, ""))) is not None
    ]
    options = [option for setting in settings for option in setting.options]
    names = [option.name for option in options]
    taken = {part.name for part in fields(shared)} | set(_COLUMNS)
    if twice := sorted({name for name in names if names.count(name) > 1 or name in taken}):
        raise SettingError(f"{study.__module__}.run: --{twice[0]} would be two options: rename the setting")

    def arguments(self: Any) -> dict[str, Any]:
        given = {name: getattr(self, name) for name in names}
        return {
            setting.name: given[setting.name] if setting.read is None else setting.read(given, self.seed)
            for setting in settings
        }

    return make_dataclass(
        "Options",
        [(option.name, option.type, field(default=option.default)) for option in options],
        bases=(shared,),
        namespace={"settings": arguments, "__module__": __name__},
        kw_only=True,
        frozen=True,
    )


def _setting(parameter: inspect.Parameter, about: str) -> _Setting | None:
    """Return how a command line carries a setting; None where it cannot, and the setting stays at its default."""
    name, members = parameter.name, members_of(parameter.annotation)
    kinds = types_in(parameter.annotation)
    if "ContrastSet" in kinds:
        return _contrast(name, _default(parameter), about)
    if "Scorer" in kinds:
        option = _words_option(name)
        kind = _annotated(str | None, "Score by these words (commas). " + about)
        return _Setting(name, (_Option(option, kind),), partial(_scorer, option, parameter.default))
    if name == "prompts" and any(get_origin(member) is not None for member in members):
        kind = _annotated(Path | None, "Prompts, one a line. " + about, validator=FILE)
        return _Setting(name, (_Option(name, kind),), partial(_prompts, name))
    kind = _option_type(parameter, members, about)
    if kind is None:
        return None
    return _Setting(name, (_Option(name, kind, _default(parameter)),))


def _default(parameter: inspect.Parameter) -> Any:
    return MISSING if parameter.default is parameter.empty else parameter.default


def _option_type(parameter: inspect.Parameter, members: tuple[Any, ...], about: str) -> Any:
    """Return the type of an option that carries the value of a setting itself, or None where there is none."""
    optional = type(None) in members
    if literal := next((member for member in members if get_origin(member) is Literal), None):
        return _annotated(literal | None if optional else literal, about)
    if sequence := next((member for member in members if get_origin(member) in (tuple, list, Sequence)), None):
        element = next((kind for kind in get_args(sequence) if kind in _SIMPLE), str)
        listed: Any = tuple[element, ...]  # type: ignore[valid-type]
        if isinstance(parameter.default, str):  # one site as a text: the default is of this type too
            listed = listed | str
        converter = partial(_commas, element)
        about = f"{about} Several with commas."
        return _annotated(
            listed | None if optional else listed, about, element=element, converter=converter, n_tokens=1
        )
    if any(get_origin(member) in (dict, Mapping) for member in members):
        about = f"{about} Written as NAME=VALUE, several with commas."
        return _annotated(dict[str, str] | None, about, converter=_pairs, n_tokens=1, accepts_keys=False)
    simple = next((kind for kind in _SIMPLE if kind in members), None)
    if simple is None:
        return None
    settings = {"converter": whole} if simple is int else {}
    negative = isinstance(parameter.default, int | float) and parameter.default < 0
    return _annotated(simple | None if optional else simple, about, element=simple, negative=negative, **settings)


def _annotated(kind: Any, about: str, *, element: Any = None, negative: bool = False, **settings: Any) -> Any:
    """Attach help and a range to a type: whole numbers count something, and no number is infinite or nan."""
    if element is int and not negative:
        settings["validator"] = FROM_ZERO
    elif element in (int, float):
        settings["validator"] = FINITE
    return Annotated[kind, Parameter(help=about, **settings)]


def _commas(element: Any, _: Any, tokens: Sequence[Token]) -> tuple[Any, ...]:
    return tuple(element(part) for part in several(tokens))  # int("2.5") is refused


def _pairs(_: Any, tokens: Sequence[Token]) -> dict[str, str]:
    parts = [part.partition("=") for part in several(tokens)]
    if not all(name.strip() and mark for name, mark, _ in parts):
        raise CoercionError(msg="it is written as NAME=VALUE, several with commas", token=tokens[0])
    return {name.strip(): value.strip() for name, _, value in parts}


def _words_option(name: str) -> str:
    """Return the option that gives a scorer: scorer as --words, second_scorer as --second-words."""
    return name.replace("scorer", "words")


def _scorer(option: str, default: Any, given: dict[str, Any], seed: int) -> Any:
    from lens_steer.evaluation.scorers import WordList

    return default if given[option] is None else WordList(words_of(given[option]))


def _prompts(option: str, given: dict[str, Any], seed: int) -> list[str] | None:
    return None if given[option] is None else lines_of(given[option])


def _contrast(name: str, default: Any, about: str) -> _Setting:
    """A contrast beside the study's own: --NAME, once or twice, --NAME-n, --NAME-text and so on."""
    names = list[str] if default is MISSING else list[str] | None
    named = _annotated(names, f"Files or a name, as for --texts and --contrast. {about}")
    count = Annotated[CountOrNone, Parameter(help=f"Texts a side of --{name}.")]
    columns = [
        _Option(f"{name}_{column}", _annotated(str | None, f"As --{column}, of --{name}.")) for column in _COLUMNS
    ]
    first = _Option(name, named, MISSING if default is MISSING else None)
    return _Setting(name, (first, _Option(f"{name}_n", count), *columns), partial(_read_contrast, name, default))


def _read_contrast(name: str, default: Any, given: dict[str, Any], seed: int) -> Any:
    columns = {column: given[f"{name}_{column}"] for column in _COLUMNS if given[f"{name}_{column}"] is not None}
    if not given[name]:
        if columns or given[f"{name}_n"] is not None:
            raise SettingError(f"options of --{name} were given, and no --{name}")
        return default
    return read_texts(given[name], columns, None, n=given[f"{name}_n"], seed=seed, option=f"--{name}")


def members_of(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the one type."""
    if get_origin(annotation) is Annotated:
        return members_of(get_args(annotation)[0])
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def types_in(annotation: Any) -> set[str]:
    """Return the names of the types of an annotation, whether it was looked up or is still a text."""
    if isinstance(annotation, str):
        return {part.strip().rpartition(".")[2] for part in annotation.split("|")}
    return {getattr(member, "__name__", str(member)) for member in members_of(annotation)}


def documented(study: Callable[..., Any]) -> dict[str, str]:
    """Return what each parameter means, by a docstring in numpy's layout; parameters of one entry share its text."""
    about: dict[str, str] = {}
    for entry in parse(inspect.getdoc(study) or "", style=DocstringStyle.NUMPYDOC).params:
        names = [name.strip() for name in entry.arg_name.split(",")]
        text = " ".join((entry.description or "").split())
        about[names[0]] = text
        about |= dict.fromkeys(names[1:], f"See --{_words_option(names[0]).replace('_', '-')}.")
    return about
