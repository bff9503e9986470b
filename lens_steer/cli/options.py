"""The options that commands share, as groups; the range of each is checked as it is read, before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import CoercionError, Parameter, Token, validators

from lens_steer.cli.hub import look_in_cache_where_offline
from lens_steer.cli.inputs import require_same_model
from lens_steer.cli.option_values import chat_of, lines_of, words_of
from lens_steer.errors import SettingError

if TYPE_CHECKING:
    from lens_steer.evaluation.scorers import Scorer
    from lens_steer.host.prompts import Prompt
    from lens_steer.texts.contrast import ContrastSet

FILE = validators.Path(exists=True, dir_okay=False)
DIRECTORY = validators.Path(exists=True, file_okay=False)
FINITE = validators.Number(gt=-math.inf, lt=math.inf)
POSITIVE = validators.Number(gt=0, lt=math.inf)
NOT_NEGATIVE = validators.Number(gte=0, lt=math.inf)
FROM_ZERO = validators.Number(gte=0, lt=2**31)
FROM_ONE = validators.Number(gte=1, lt=2**31)


def whole(_: Any, tokens: Sequence[Token]) -> int:
    """Read a whole number; cyclopts itself would take 2.5 for 2."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise CoercionError(msg=f"{tokens[0].value!r} is no whole number", token=tokens[0]) from None


def each_finite(kind: Any, values: Sequence[float] | None) -> None:
    """Refuse numbers that are not finite, one by one."""
    for value in values or ():
        FINITE(kind, value)


Count = Annotated[int, Parameter(converter=whole, validator=FROM_ONE)]
CountOrNone = Annotated[int | None, Parameter(converter=whole, validator=FROM_ONE)]
Seed = Annotated[
    int,
    Parameter(
        converter=whole,
        validator=validators.Number(gte=0, lt=2**32),
        help="Seed of every split, draw and fit.",
    ),
]
Out = Annotated[Path, Parameter(help="New directory for the results.")]
PlanOnly = Annotated[
    bool, Parameter(name="--plan", help="Say what the run would take, from two batches; write nothing.")
]
FittedEdit = Annotated[Path, Parameter(validator=DIRECTORY, help="A directory that `fit` wrote.")]

EVERY_CONTRAST = "microworld:*"
MICROWORLD = "microworld:"
_PROMPT_WORDS = 4
_MOST_PROMPTS = 100


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The model and how it is held.

    Attributes
    ----------
    model:
        Hub name, directory or GGUF file of the model, microworld for the embedded one, or what `get` fetched.
    device:
        cpu, cuda, ...; the library's choice when left out.
    dtype:
        Precision of the weights.

    """

    model: str
    device: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    def check(self) -> None:
        """Raise SettingError for an empty name or a device that is not there, before anything is read."""
        if not self.model.strip():
            raise SettingError("--model is empty: give a hub name, a directory, or microworld")
        if self.device is not None:
            _require_device(self.device)

    def load(self) -> Any:
        """Load the model."""
        import torch

        from lens_steer.host.known_models import KNOWN_MODELS
        from lens_steer.host.load import load_model
        from lens_steer.processes import own_device

        self.check()
        if self.model not in ("microworld", *KNOWN_MODELS):
            look_in_cache_where_offline(self.model)
        name = Path(self.model) if Path(self.model).is_dir() else self.model
        loaded = load_model(name, device=self.device or own_device(), dtype=getattr(torch, self.dtype))
        require_same_model(loaded)
        return loaded


def _require_device(name: str) -> None:
    import torch

    try:
        usable = torch.empty(1, device=name).device.type != "meta"
    # What torch raises depends on how it was built: AssertionError without CUDA, NotImplementedError elsewhere.
    except (RuntimeError, AssertionError, NotImplementedError, ValueError):
        usable = False
    if not usable:
        present = ["cpu", *(kind for kind in ("cuda", "mps") if getattr(torch, kind).is_available())]
        raise SettingError(f"--device {name}: this machine has {' and '.join(present)}")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """The texts: --texts or --contrast, one of the two.

    Attributes
    ----------
    texts:
        csv, tsv, jsonl, parquet or concept JSON; or two files of one text a line: source texts, target texts. These or
        --contrast are needed.
    contrast:
        microworld:rude, ..., or a data set's name; microworld alone are texts that are labelled for all its concepts.
    text:
        Column of the texts; "text" when left out.
    label:
        Column of the labels; "label" when left out.
    source:
        Label of the source: what to move away from.
    target:
        Label of the target; every other label when left out.
    threshold:
        The label is a score: at least this is the source, less the target. With two, low and high: from the high one
        on the source, up to the low one the target, and what lies between is left out.
    prompt:
        Column of the prompts that the texts complete.
    source_text:
        Column of the source texts, of a table that holds both sides in a row.
    target_text:
        Column of the target texts of such a table.
    groups:
        Column of what a text comes from, such as template, author or document: no split parts the rows of one.
    labels:
        Columns of labels, one a concept, of a table that is labelled for many.
    paired:
        The two files, or the sides of a concept file, belong together line by line.
    config:
        Configuration of a data set that has several, such as sst2 of nyu-mll/glue.
    chat:
        "template", or a format such as "User: {text}\\nBot:".

    """

    texts: Annotated[list[Path] | None, Parameter(consume_multiple=True)] = None
    contrast: list[str] | None = None
    text: str | None = None
    label: str | None = None
    source: str | None = None
    target: str | None = None
    threshold: Annotated[list[float] | None, Parameter(consume_multiple=True, validator=each_finite)] = None
    prompt: str | None = None
    source_text: str | None = None
    target_text: str | None = None
    groups: str | None = None
    labels: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None
    paired: bool = False
    config: str | None = None
    chat: str | None = None

    @property
    def reading(self) -> dict[str, Any]:
        """The options that say how a contrast is read, as far as they were given, by their names in `read_contrast`."""
        named = ("text", "label", "source", "target", "prompt", "source_text", "target_text", "groups", "config")
        given: dict[str, Any] = {name: getattr(self, name) for name in named}
        if self.threshold is not None:
            if len(self.threshold) > 2:
                raise SettingError(f"--threshold takes one score, or a low and a high one, not {len(self.threshold)}")
            given["threshold"] = self.threshold[0] if len(self.threshold) == 1 else tuple(self.threshold)
        given["paired"] = True if self.paired else None
        return {name: value for name, value in given.items() if value is not None}

    @property
    def names(self) -> list[str]:
        """The contrasts that were named; SettingError unless texts are given in one of the two ways."""
        if bool(self.texts) == bool(self.contrast):
            given = "both were given" if self.texts else "neither was given"
            raise SettingError(f"say what to study by --texts FILE (once or twice) or by --contrast NAME; {given}")
        if EVERY_CONTRAST in (self.contrast or []):
            from lens_steer.microworld import contrast_names

            return [f"{MICROWORLD}{name}" for name in contrast_names()]
        return self.contrast or []

    def read(self, *, n: int | None, seed: int) -> ContrastSet:
        """Read one contrast."""
        names = self.names
        if len(names) > 1 or self.for_many:
            given = "a table of many" if self.for_many else len(names)
            raise SettingError(f"this takes one concept, not {given}: give one --contrast, or --label of a table")
        files = [str(path) for path in self.texts or []]
        return read_texts(names or files, self.reading, chat_of(self.chat), n=n, seed=seed)

    def read_all(self, *, n: int | None, seed: int) -> list[ContrastSet]:
        """Read every contrast that is named."""
        if len(self.names) < 2:
            return [self.read(n=n, seed=seed)]
        chat = chat_of(self.chat)
        return [read_texts([name], self.reading, chat, n=n, seed=seed) for name in self.names]

    @property
    def for_many(self) -> bool:
        """Whether one table holds the labels of many concepts."""
        return bool(self.labels) or self.contrast == [MICROWORLD.rstrip(":")]


def read_texts(
    files: Sequence[str],
    reading: dict[str, Any],
    chat: bool | str | None,
    *,
    n: int | None,
    seed: int,
    option: str = "--texts",
) -> ContrastSet:
    """Read a contrast from one file or name, or from two files of texts; `option` is what gave them.

    `reading`: settings of `read_contrast`.
    """
    from lens_steer.texts.readers import FILE_SUFFIXES, read_contrast

    if len(files) > 2 or not all(files):
        raise SettingError(
            f"give {option} once (a table, concept JSON or a name) or twice (source texts, target texts)"
        )
    plain = len(files) == 2 or files[0].startswith(MICROWORLD)
    columns = [name for name in reading if not (name == "paired" and len(files) == 2)]
    if plain and columns:
        what = "two text files" if len(files) == 2 else files[0]
        named = ", ".join(f"--{name.replace('_', '-')}" for name in columns)
        swap = "; for the other direction give the two files the other way round" if len(files) == 2 else ""
        raise SettingError(f"{named}: {what} have no columns or labels to choose from{swap}")
    if not plain and Path(files[0]).suffix.lower() not in FILE_SUFFIXES:
        look_in_cache_where_offline(files[0])
    where = (files[0], files[1]) if len(files) == 2 else files[0]
    return read_contrast(where, chat=chat, n=n, seed=seed, **reading)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class HalfOptions:
    """How the texts are halved: `rank` and `fit` see one half, `evaluate` and `ablate` measure on the other.

    Attributes
    ----------
    n:
        Texts a side of each half, drawn by the seed; all when left out.
    holdout:
        Share of the texts that is held out: rank, fit, evaluate and ablate of one contrast need the same share and
        seed.

    """

    n: CountOrNone = None
    holdout: Annotated[float, Parameter(validator=validators.Number(gt=0, lt=1))] = 0.5

    def split(self, contrast: ContrastSet, seed: int) -> tuple[ContrastSet, ContrastSet]:
        """Return the texts to fit on and the held-out ones; SettingError where a half has fewer than --n a side."""
        train, held = contrast.split(test=self.holdout, seed=seed)
        if self.n is None:
            return train, held
        fewest = min(len(train.source), len(train.target))
        if self.n > fewest:
            kept = "half is" if self.holdout == 0.5 else f"{self.holdout:.0%} of them are"
            raise SettingError(
                f"--n {self.n} of {len(contrast.source)} source and {len(contrast.target)} target texts: {kept} held "
                f"out, here {len(train.source)} source and {len(train.target)} target texts are left to fit on: give "
                f"--n {fewest} or less, a smaller --holdout, or more texts"
            )
        rows = min(self.n, len(held.source), len(held.target))
        return train.subsample(self.n, seed=seed), held.subsample(rows, seed=seed)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How texts are continued.

    Attributes
    ----------
    max_new_tokens:
        Tokens per continuation.
    temperature:
        0 is greedy.

    """

    max_new_tokens: Count = 30
    temperature: Annotated[float, Parameter(validator=NOT_NEGATIVE)] = 1.0


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ScoringOptions(SamplingOptions):
    """What is continued, how, and how it is scored.

    Attributes
    ----------
    prompts:
        Prompts, one a line; else the first four words of up to 100 held-out source texts.
    words:
        Score by these words (commas) instead of a classifier trained on the half that is fitted on.
    unproven:
        Score by the classifier even where it was not shown to tell source from target.
    samples:
        Continuations per prompt.
    strength:
        0 changes nothing, 1 is the edit as fitted.

    """

    prompts: Annotated[Path | None, Parameter(validator=FILE)] = None
    words: str | None = None
    unproven: bool = False
    samples: Count = 1
    strength: Annotated[float, Parameter(validator=FINITE)] = 1.0

    def check(self, held: ContrastSet) -> None:
        """Read what can be wrong in prompts and words, before the model is loaded."""
        self.read_prompts(held)
        if self.words is not None:
            words_of(self.words)

    def read_prompts(self, held: ContrastSet) -> tuple[Sequence[Prompt], Sequence[str] | None]:
        """Return the prompts of the file, or the beginnings of held-out source texts, and their groups if any."""
        if self.prompts is not None:
            return lines_of(self.prompts), None
        from lens_steer.texts.beginnings import prompts_in_groups

        return prompts_in_groups(held, words=_PROMPT_WORDS, most=_MOST_PROMPTS)

    def scorer(self, train: ContrastSet, seed: int) -> Scorer:
        """Return the word list, the oracle of a microworld contrast, or a classifier trained on `train`."""
        from lens_steer.evaluation.oracle_scorer import OracleScorer
        from lens_steer.evaluation.scorers import ConceptClassifier, WordList

        if self.words is not None:
            return WordList(words_of(self.words))
        if train.name.startswith(MICROWORLD):
            return OracleScorer(train.name.removeprefix(MICROWORLD))
        return ConceptClassifier.fit(train, seed=seed, unproven="warn" if self.unproven else "refuse")


BatchSize = Annotated[
    int | None,
    Parameter(converter=whole, validator=FROM_ONE, help="Texts per batch; chosen by length when left out."),
]


def settings_of(*groups: Any, **values: Any) -> dict[str, Any]:
    """Return the options of a command by name, those of groups beside its own, for the run folder."""
    settings: dict[str, Any] = {}
    for group in groups:
        settings |= asdict(group) if is_dataclass(group) and not isinstance(group, type) else {}
    return settings | values
