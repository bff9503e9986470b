"""`lens-steer study NAME`: run a study, shipped or added by another package, and write its run folder.

A study is a function `run(model, contrast, *, out, seed=0, **settings) -> Study`, found through the entry-point group
`lens_steer.studies`. Its settings become options: see `study_options`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import MISSING, dataclass, fields
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from lens_steer.cli.option_values import chat_of
from lens_steer.cli.option_words import in_options
from lens_steer.cli.options import CountOrNone, ModelOptions, Out, PlanOnly, Seed, TextOptions
from lens_steer.cli.planning import show_plan
from lens_steer.cli.reporting import Force, Json, as_json, forced, reading
from lens_steer.cli.running import app_of, run
from lens_steer.cli.runs import require_free_place, say, say_written, tell_study
from lens_steer.cli.study_options import options_of, types_in
from lens_steer.errors import SettingError
from lens_steer.progress import heard

GROUP = "lens_steer.studies"


def find_studies() -> dict[str, EntryPoint]:
    """Return the studies that are installed, by name."""
    return {entry.name: entry for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)}


def load_study(name: str) -> Callable[..., Any]:
    """Return the function of an installed study; SettingError where there is none, or it cannot be imported."""
    studies = find_studies()
    if name not in studies:
        known = ", ".join(studies) or "none: install lens_steer, or a package with entry points in " + GROUP
        raise SettingError(f"no study is named {name!r}; there are {known}")
    try:
        study: Callable[..., Any] = studies[name].load()
    except Exception as error:  # whatever a package of somebody else's does when it is imported
        raise SettingError(f"the study {name!r} ({studies[name].value}) cannot be loaded: {error!r}") from error
    return study


def study_command(study: Callable[..., Any]) -> Callable[[], None]:
    """Return the command line of a study, for the end of its file: `study_command(run)()`.

    Its options are the model, the texts (`--texts` or `--contrast`), `--out`, `--seed`, and every setting of `run` that
    is a number, a text, a choice or a tuple of them; a setting `scorer` is given as `--words`, `prompts` as a file.
    """

    def main() -> None:
        name = Path(sys.argv[0]).stem
        run(lambda words: run_study(study, name, words), name)

    return main


def study_app() -> App:
    """Return the command `study`, whose first word names the study that reads the rest."""
    app = App(name="study", help="Run a study and write its run folder; without a name, list the studies.")
    app.help_flags = []
    app.default(study)
    return app


def study(*words: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> None:
    """Run a study and write its run folder; without a name, list the studies."""
    if not words or words[0] in ("--help", "-h"):
        _list_studies()
    else:
        name, *rest = words
        run_study(load_study(name), f"lens-steer study {name}", rest)


def _list_studies() -> None:
    say("lens-steer study NAME [OPTIONS]; lens-steer study NAME --help says which.")
    studies = find_studies()
    widest = max(map(len, studies), default=0)
    for name in studies:
        try:
            about = _first_sentence(load_study(name))
        except SettingError as error:
            about = str(error)
        say(f"{name:<{widest}} {about}")


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """The options of every study; a study's own are added to them (see `options_of`)."""

    model: ModelOptions
    texts: TextOptions = TextOptions()
    out: Out
    n: Annotated[CountOrNone, Parameter(help="Texts a side that are read, drawn by the seed; all when left out.")] = (
        None
    )
    seed: Seed = 0
    json: Json = False
    force: Force = False
    plan: PlanOnly = False

    def settings(self) -> dict[str, Any]:
        """Return the study's own settings."""
        return {}

    def run(self, study: Callable[..., Any]) -> None:
        """Run a study; what can be wrong with texts and settings is found before the model is loaded."""
        if not self.plan:
            require_free_place(self.out)
        takes_many = "LabelledTexts" in types_in(inspect.signature(study).parameters["contrast"].annotation)
        texts = _one_table(self.texts, self.n, self.seed) if takes_many else self.texts.read(n=self.n, seed=self.seed)
        settings = self.settings()
        hosted = self.model.load()
        if self.plan:
            show_plan(hosted, texts, "one pass over the texts at all MLP units; a study runs them at least once")
            return
        with heard(study.__module__.rpartition(".")[2]):
            result = study(hosted, texts, out=self.out, seed=self.seed, **settings)
        for line in result.summary:
            say(line)
        tell_study(result)
        say_written(self.out)


def run_study(study: Callable[..., Any], name: str, words: Sequence[str] | None = None) -> None:
    """Read the options of a study, from the command line when `words` is None, and run it."""
    chosen = app_of_study(study, name)(sys.argv[1:] if words is None else list(words))
    if not isinstance(chosen, StudyOptions):  # help was asked for
        return
    with ExitStack() as around:
        if chosen.json:
            around.enter_context(as_json(f"study {name.rpartition(' ')[2]}"))
        around.enter_context(reading(vars(chosen)))
        around.enter_context(in_options(type(chosen)))
        around.enter_context(forced(chosen.out, force=chosen.force))
        chosen.run(study)


def app_of_study(study: Callable[..., Any], name: str) -> App:
    """Return a command line that reads the options of a study, and returns them."""
    options = options_of(study, StudyOptions)
    required = [option.name for option in fields(options) if option.default is MISSING]
    example = "".join(
        f" --{option.replace('_', '-')} microworld:negative" for option in required if option not in ("model", "out")
    )
    options.__doc__ = (
        f"{_first_sentence(study)}\n\n"
        f"Example: {name} --model microworld --contrast microworld:rude{example} --n 40 --out runs/study\n"
    )
    app = app_of(name)
    app.default(options)
    return app


def _one_table(texts: TextOptions, n: int | None, seed: int) -> Any:
    """Read what is labelled for one concept, or for many as one table."""
    from lens_steer.texts.contrast import LabelledTexts
    from lens_steer.texts.label_tables import read_labels

    if not texts.for_many:
        contrasts = texts.read_all(n=n, seed=seed)
        return contrasts[0] if len(contrasts) == 1 else LabelledTexts.of(contrasts)
    places, reading = [*texts.names, *map(str, texts.texts or [])], texts.reading
    if other := {"label", "source", "target", "source_text", "target_text", "paired"} & {*reading}:
        raise SettingError(f"--{min(other).replace('_', '-')} is of one concept: it does not go with --labels")
    if len(places) > 1:
        raise SettingError(f"--labels are columns of one table, not of {len(places)}")
    return read_labels(places[0], texts.labels or (), chat=chat_of(texts.chat), n=n, seed=seed, **reading)


def _first_sentence(study: Callable[..., Any]) -> str:
    return (inspect.getdoc(study) or "").partition("\n\n")[0].replace("\n", " ")
