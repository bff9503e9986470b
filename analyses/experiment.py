"""What every study shares: its place is checked first, its texts are halved, its edits measured alike, its run kept.

A study says `experiment = Experiment.begin("name", run, locals())` and then only asks its question.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

import lens_steer as ls
from analyses.measurements import HeldOut

MICROWORLD = "microworld:"
_NOT_SETTINGS = ("model", "contrast", "out", "seed")
_MEASURED = "_measurement"  # the attribute of a study's `run` that holds its defaults
_SEE = "**measurement:\n    See `Measurement`."  # in the docstring of `run`, where the settings of `Measurement` appear
_Run = TypeVar("_Run", bound=Callable[..., ls.Study])


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """How the edits of a study are measured, all alike.

    Parameters
    ----------
    scorer:
        How much of the concept a text shows; by default a `ConceptClassifier` fitted on the training half, or the
        oracle of a microworld contrast.
    prompts:
        What is continued; by default the first words of held-out source texts.
    prompt_words, most_prompts:
        How many words of a source text are a prompt, and how many prompts there are at most.
    neutral, most_neutral:
        Texts, or (prompt, completion) pairs, whose perplexity is the cost, and how many at most; by default the
        contrast's control texts, or without any its held-out target texts.
    samples, max_new_tokens:
        Continuations per prompt, and their length in tokens.
    temperature, top_p:
        Of the sampling, as in `ls.generate`.

    """

    scorer: ls.Scorer | None = None
    prompts: Sequence[str] | None = None
    prompt_words: int = 4
    most_prompts: int = 60
    neutral: Sequence[Any] | None = None
    most_neutral: int = 60
    samples: int = 1
    max_new_tokens: int = 24
    temperature: float = 1.0
    top_p: float = 1.0


def measured(**defaults: Any) -> Callable[[_Run], _Run]:
    """Show the settings of `Measurement` as those of a study that takes `**measurement`; `defaults` replace some.

    They appear in the study's signature, and in its docstring in place of `**measurement`, so that `help` and the
    command line know them.
    """
    measurement = Measurement(**defaults)

    def shown(run: _Run) -> _Run:
        signature, types = inspect.signature(run, eval_str=True), get_type_hints(Measurement)
        own = [parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
        added = [
            inspect.Parameter(
                parameter.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=getattr(measurement, parameter.name),
                annotation=types[parameter.name],
            )
            for parameter in fields(Measurement)
        ]
        run.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
        about = inspect.getdoc(Measurement) or ""
        run.__doc__ = (inspect.getdoc(run) or "").replace(_SEE, about.partition("----------\n")[2].strip())
        setattr(run, _MEASURED, measurement)
        return as_study(run)

    return shown


def as_study(run: _Run) -> _Run:
    """Let Ctrl-C end a study, in a notebook too, where a fit alone would return the best map so far.

    With a run folder to write, the same call goes on from the fits and evaluations of one that was broken off.
    """

    @wraps(run)
    def whole(*given: Any, **settings: Any) -> ls.Study:
        called = inspect.signature(run).bind(*given, **settings).arguments
        with ExitStack() as around:
            around.enter_context(ls.on_interrupt("raise"))
            if called.get("out") is not None:
                ls.require_free_place(called["out"])
                plan = {name: _identity(value) for name, value in called.items() if name not in ("model", "out")}
                plan = {"study": run.__module__, **plan}
                around.enter_context(ls.resumable(called["out"], model=called["model"], plan=plan))
            return run(*given, **settings)

    return cast("_Run", whole)


def _identity(value: Any) -> str:
    """Return what tells a setting from another one: of texts their hash."""
    return f"{getattr(value, 'name', '')} {value.data_hash}" if hasattr(value, "data_hash") else repr(value)


@dataclass(frozen=True, eq=False)
class Experiment:
    """One run of a study: what it was called with, its halves of the texts, and where it is kept.

    Attributes
    ----------
    name, model, contrast, out, seed:
        Of the study; `out` is a new run folder, or None.
    settings:
        Everything else that it was called with.
    measurement:
        How edits are measured.

    """

    name: str
    model: Any
    contrast: ls.ContrastSet
    out: Path | None
    seed: int
    settings: Mapping[str, Any]
    measurement: Measurement

    @classmethod
    def begin(cls, name: str, run: Callable[..., Any], arguments: Mapping[str, Any]) -> Experiment:
        """Check a study's arguments and its place before any work is done.

        `arguments` are the `locals()` of `run` at its start.

        Raises
        ------
        LensSteerError
            A setting is none of its choices, or `out` cannot be written or holds something.
        TypeError
            A setting is unknown.

        """
        given = dict(arguments)
        measurement = replace(getattr(run, _MEASURED, Measurement()), **given.pop("measurement", {}))
        _check_choices(run, given)
        if given["out"] is not None:
            ls.require_free_place(given["out"])
        shared = {setting.name: getattr(measurement, setting.name) for setting in fields(Measurement)}
        settings = {key: value for key, value in given.items() if key not in _NOT_SETTINGS}
        settings |= shared if hasattr(run, _MEASURED) else {}
        experiment = cls(
            name,
            given["model"],
            given["contrast"],
            None if given["out"] is None else Path(given["out"]),
            given["seed"],
            settings,
            measurement,
        )
        if hasattr(run, _MEASURED):
            _ = experiment.scorer  # a classifier that cannot judge is refused before anything is fitted
        return experiment

    @cached_property
    def scorer(self) -> ls.Scorer:
        """How much of the concept a text shows; a classifier has seen the training half alone."""
        return self.measurement.scorer or default_scorer(self.train, self.seed)

    @cached_property
    def halves(self) -> tuple[ls.ContrastSet, ls.ContrastSet]:
        """The texts that fits and choices see, and those on which they are measured."""
        return self.contrast.split(test=0.5, seed=self.seed)

    @property
    def train(self) -> ls.ContrastSet:
        """The half that fits and choices see."""
        return self.halves[0]

    @property
    def held(self) -> ls.ContrastSet:
        """The half that nothing was fitted on."""
        return self.halves[1]

    @property
    def concept(self) -> str:
        """What sentences and figures call the concept."""
        return concept_name(self.contrast)

    def fit_texts(self, most: int, draws: int = 1) -> tuple[ls.ContrastSet, ...]:
        """Return draws of the training half that share no text, `most` texts a side or as many as that allows."""
        return disjoint(self.train, most, draws, seed=self.seed)

    def heldout(
        self,
        *,
        half: Literal[0, 1] | None = None,
        scorers: Mapping[str, ls.Scorer] | None = None,
        continued: bool = False,
    ) -> HeldOut:
        """Return what edits are measured on; `half` keeps every second prompt and neutral text, to choose or report.

        `continued` cuts neutral texts into a beginning and the rest, on which the cost is then measured: some methods
        edit prompts alone, or decide on them, and plain texts have none.
        """
        m, step = self.measurement, slice(None) if half is None else slice(half, None, 2)
        prompts: Sequence[Any] | None = m.prompts
        if prompts is None:
            prompts = ls.beginnings(self.held.source, words=m.prompt_words, most=m.most_prompts)
        neutral, neutral_name = neutral_texts(self.held, m.most_neutral)
        if m.neutral is not None:
            neutral, neutral_name = tuple(m.neutral)[: m.most_neutral], "neutral texts"
        if continued:
            neutral = as_pairs(neutral, m.prompt_words)
        if half is not None and min(len(prompts), len(neutral)) < 4:
            raise ls.LensSteerError(
                f"{len(prompts)} prompts and {len(neutral)} {neutral_name}: one half of them chooses, the other half "
                "is reported on, so give four or more of each"
            )
        return HeldOut(
            self.model,
            prompts=tuple(prompts)[step],
            scorers=scorers or {"concept": self.scorer},
            neutral=tuple(neutral)[step],
            neutral_name=neutral_name,
            samples=m.samples,
            max_new_tokens=m.max_new_tokens,
            temperature=m.temperature,
            top_p=m.top_p,
            chat=self.contrast.chat,
            seed=self.seed,
        )

    def keep(self, study: ls.Study) -> ls.Study:
        """Write the run folder, if one was asked for, and return the study."""
        if self.out is not None:
            study.save(
                self.out,
                name=self.name,
                model=self.model,
                contrast=self.contrast,
                seed=self.seed,
                settings=dict(self.settings),
            )
        return study


def as_pairs(rows: Iterable[Any], words: int) -> tuple[Any, ...]:
    """Return texts as pairs of their beginning and the rest, on which alone a cost is measured; pairs as they are.

    A gate decides for prompts, so it needs one. Texts without a rest are left out.

    Raises
    ------
    LensSteerError
        Fewer than two texts are left.

    """
    pairs = []
    for row in rows:
        if not isinstance(row, str):
            pairs.append(row)
            continue
        (start,) = ls.beginnings([row], words=words)
        if rest := " ".join(row.split())[len(start) :]:
            pairs.append((start, rest))
    if len(pairs) < 2:
        raise ls.LensSteerError(f"{len(pairs)} neutral texts have more than {words} words: lower prompt_words")
    return tuple(pairs)


def _check_choices(run: Callable[..., Any], given: Mapping[str, Any]) -> None:
    for parameter in inspect.signature(run, eval_str=True).parameters.values():
        choices = get_args(parameter.annotation) if get_origin(parameter.annotation) is Literal else ()
        if choices and parameter.name in given and given[parameter.name] not in choices:
            listed = ", ".join(map(repr, choices))
            raise ls.LensSteerError(f"{parameter.name}={given[parameter.name]!r}: choose one of {listed}")


def disjoint(texts: ls.ContrastSet, most: int, draws: int, *, seed: int) -> tuple[ls.ContrastSet, ...]:
    """Return draws of texts that share none: each has at most `most` texts a side, fewer where they do not suffice.

    With several draws a text that stands twice is taken once.

    Raises
    ------
    LensSteerError
        A draw would have fewer than two texts a side.

    """
    if draws > 1 and not texts.paired:
        texts = _of(texts, dict.fromkeys(texts.source), dict.fromkeys(texts.target))
    size = min(most, len(texts.source) // max(1, draws), len(texts.target) // max(1, draws))
    if draws < 1 or size < 2:
        raise ls.LensSteerError(
            f"{draws} draws: {len(texts.source)} + {len(texts.target)} training texts do not suffice for that many "
            "draws of two or more texts a side that share none; give more texts, or fewer draws or fits"
        )
    drawn = texts.subsample(size * draws, seed=seed)
    if draws == 1:
        return (drawn,)
    return tuple(_of(texts, drawn.source[draw::draws], drawn.target[draw::draws]) for draw in range(draws))


def _of(like: ls.ContrastSet, source: Iterable[Any], target: Iterable[Any]) -> ls.ContrastSet:
    return ls.ContrastSet(
        tuple(source), tuple(target), control=like.control, paired=like.paired, name=like.name, chat=like.chat
    )


def default_scorer(train: ls.ContrastSet, seed: int) -> ls.Scorer:
    """Return the exact scorer of a microworld contrast; else a classifier fitted on the training half."""
    if train.name.startswith(MICROWORLD):
        return ls.OracleScorer(concept_name(train))
    return ls.ConceptClassifier.fit(train, seed=seed)


def concept_name(contrast: ls.ContrastSet | ls.LabelledTexts) -> str:
    """Return what sentences and figures call the concept."""
    return contrast.name.removeprefix(MICROWORLD)


def neutral_texts(held: ls.ContrastSet, most: int) -> tuple[tuple[Any, ...], str]:
    """Return the texts on which an edit costs, and what they are: the control, or the held-out target itself."""
    if held.control:
        return tuple(held.control[:most]), "held-out control texts"
    return tuple(held.target[:most]), "held-out target texts"
