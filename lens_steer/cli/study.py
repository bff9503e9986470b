"""Studies on the command line: `lens-steer study NAME`, and `python -m analyses.NAME`, made from a study's `run`.

A study is a function `run(model, contrast, *, out, seed=0, **settings) -> Study`, found through the entry-point group
`lens_steer.studies`. Its settings become options; what they mean is read off its docstring.
"""

from __future__ import annotations

import inspect
import re
import sys
import types
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

import typer
from typer.core import TyperGroup

from lens_steer.cli.options import (
    Chat,
    Device,
    Dtype,
    Label,
    Model,
    Number,
    Out,
    Prompts,
    Seed,
    Source,
    Target,
    Text,
    Words,
    chat_of,
    contrast_of,
    lines_of,
    load,
    pattern_of,
)
from lens_steer.cli.runs import require_free_place
from lens_steer.errors import LensSteerError, SettingError

if TYPE_CHECKING:
    from lens_steer.texts.contrast import ContrastSet, LabelledTexts

GROUP = "lens_steer.studies"
_EVERY = "microworld:*"
_SIMPLE = (bool, int, float, Path, str)
_GIVEN = ("out", "seed")  # of every study
_Columns = tuple[str, str, str | None, str | None, str | None]
"""Text, label, source, target, chat."""
_TextFiles = Annotated[
    list[Path] | None, typer.Option(help="csv, tsv, jsonl, parquet or concept JSON; or twice: source, target texts.")
]
_Names = Annotated[
    list[str] | None,
    typer.Option(help=f"microworld:rude, ..., or a data set's name; several to rank many concepts ({_EVERY}: all)."),
]


def find_studies() -> dict[str, EntryPoint]:
    """Return the studies that are installed, by name."""
    return {entry.name: entry for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)}


def study_command(run: Callable[..., Any]) -> Callable[[], None]:
    """Return the command line of a study, for the end of its file: `study_command(run)()`.

    Its options are the model, the texts (`--texts` or `--contrast`), `--out`, `--seed`, and every setting of `run` that
    is a number, a text or a tuple of them; a setting `scorer` is given as `--words`, `prompts` as a file.
    """
    command = _command(run)

    def main() -> None:
        try:
            command()
        except LensSteerError as error:
            typer.echo(f"{Path(sys.argv[0]).stem}: {error}", err=True)
            sys.exit(1)

    return main


class StudyGroup(TyperGroup):
    """The installed studies as subcommands, loaded when they are used."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """List the studies where none is named."""
        if not args:
            for name, entry in find_studies().items():
                typer.echo(f"{name:<18} {_first_sentence(entry.load())}")
            ctx.exit()
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names, for help."""
        return list(find_studies())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command line of one study; SettingError for an unknown name."""
        studies = find_studies()
        if cmd_name not in studies:
            known = ", ".join(studies) or "none: install lens_steer, or a package with entry points in " + GROUP
            raise SettingError(f"no study is named {cmd_name!r}; there are {known}")
        return _command(studies[cmd_name].load(), cmd_name)


study_app = typer.Typer(cls=StudyGroup)


@study_app.callback()
def study() -> None:
    """Run a study and write its run folder; without a name, list the studies."""


def _command(run: Callable[..., Any], name: str | None = None) -> Any:
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(name=name, help=_first_sentence(run))(_with_options(run))
    return typer.main.get_command(app)


def _with_options(run: Callable[..., Any]) -> Callable[..., None]:
    """Return a function whose parameters are the options of a study."""
    settings = {parameter.name: parameter for parameter in _options_of(run)}

    def call(
        model: Model,
        out: Out,
        texts: _TextFiles = None,
        contrast: _Names = None,
        text: Text = "text",
        label: Label = "label",
        source: Source = None,
        target: Target = None,
        chat: Chat = None,
        n: Number = None,
        device: Device = None,
        dtype: Dtype = "float32",
        seed: Seed = 0,
        **given: Any,
    ) -> None:
        require_free_place(out)
        columns = (text, label, source, target, chat)
        rows = _read(run, texts or [], contrast or [], columns, n, seed)
        values = dict(_parsed(given, inspect.signature(run).parameters))
        result = run(load(model, device, dtype), rows, out=out, seed=seed, **values)
        for line in result.summary:
            typer.echo(line)
        typer.echo(f"written to {out}")

    own = inspect.signature(call, eval_str=True)
    shared = [
        each for each in own.parameters.values() if each.kind is not each.VAR_KEYWORD and each.name not in settings
    ]
    parameters = [*shared, *settings.values()]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {each.name: each.annotation for each in parameters}
    return call


def _options_of(run: Callable[..., Any]) -> Iterator[inspect.Parameter]:
    """Yield the settings that a command line can carry, as parameters of a typer command."""
    try:
        signature = inspect.signature(run, eval_str=True)
    except NameError as error:
        raise SettingError(f"{run.__module__}.run: its types must be importable at run time ({error})") from error
    told = _documented(run)
    for each in signature.parameters.values():
        if each.kind is not each.KEYWORD_ONLY or each.name in _GIVEN:
            continue
        if each.name == "scorer":
            yield each.replace(name="words", default=None, annotation=Words)
        elif each.name == "prompts":
            yield each.replace(default=None, annotation=Prompts)
        elif (kind := _option_type(each.annotation, each.default)) is not None:
            default = ",".join(map(str, each.default)) if isinstance(each.default, tuple) else each.default
            kind = kind | None if default is None else kind
            yield each.replace(default=default, annotation=Annotated[kind, typer.Option(help=told.get(each.name, ""))])


def _option_type(annotation: Any, default: Any) -> Any:
    """Return the type of an option (a tuple is written with commas), or None where a command line cannot carry it."""
    if isinstance(default, tuple):
        return str
    if type(default) in _SIMPLE:
        return type(default)
    members = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return next((simple for simple in _SIMPLE if simple in members), None)


def _parsed(given: dict[str, Any], parameters: Any) -> Iterator[tuple[str, Any]]:
    """Yield the settings as `run` takes them."""
    for name, value in given.items():
        if name == "words":
            if value is not None:
                from lens_steer.evaluation.scorers import WordList

                yield "scorer", WordList(value.split(","))
        elif name == "prompts":
            yield name, None if value is None else lines_of(value)
        elif name.endswith("sites") and isinstance(value, str):
            yield name, pattern_of(value)
        elif isinstance(parameters[name].default, tuple):
            kind = type(parameters[name].default[0])
            yield name, tuple(_number(kind, part, name) for part in pattern_of(value))
        else:
            yield name, value


def _number(kind: type, part: str, name: str) -> Any:
    try:
        return kind(part)
    except ValueError:
        raise SettingError(f"--{name}: {part!r} is not of type {kind.__name__}") from None


def _read(
    run: Callable[..., Any], texts: list[Path], names: list[str], columns: _Columns, n: int | None, seed: int
) -> ContrastSet | LabelledTexts:
    """Read one contrast, or several as one table for the studies that take them."""
    from lens_steer.microworld import contrast_names
    from lens_steer.texts.contrast import LabelledTexts
    from lens_steer.texts.readers import read_contrast

    if bool(texts) == bool(names):
        raise SettingError("say what to study by --texts FILE (once or twice) or by --contrast NAME, not both")
    if texts:
        return contrast_of(texts, *columns, n, seed)
    every = [f"microworld:{name}" for name in contrast_names()]
    listed = [each for name in names for each in (every if name == _EVERY else [name])]
    text, label, source, target, chat = columns
    table: dict[str, Any] = {"text": text, "label": label, "source": source, "target": target}
    contrasts = [read_contrast(name, chat=chat_of(chat), n=n, seed=seed, **table) for name in listed]
    if len(contrasts) == 1:
        return contrasts[0]
    if "LabelledTexts" not in str(inspect.signature(run).parameters["contrast"].annotation):
        raise SettingError(f"this study takes one concept, not {len(contrasts)}: give one --contrast")
    return LabelledTexts.of(contrasts)


def _first_sentence(run: Callable[..., Any]) -> str:
    return (inspect.getdoc(run) or "").partition("\n\n")[0].replace("\n", " ")


def _documented(run: Callable[..., Any]) -> dict[str, str]:
    """Read what each parameter means off a docstring in numpy's layout."""
    section = (inspect.getdoc(run) or "").partition("Parameters\n----------\n")[2]
    told: dict[str, str] = {}
    for names, text in re.findall(r"^(\w[\w, ]*):\n((?:    .*\n?)+)", section, re.MULTILINE):
        told |= dict.fromkeys(re.split(r",\s*", names), " ".join(text.split()))
    return told
