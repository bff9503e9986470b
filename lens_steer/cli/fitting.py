"""`lens-steer fit` and `lens-steer bake`: an intervention learned and saved, or folded into a model's weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from lens_steer.cli.fitted import bake_sentence, fit_sentences, fit_values
from lens_steer.cli.methods import MethodName, MethodOptions
from lens_steer.cli.option_values import lines_of
from lens_steer.cli.options import (
    FILE,
    FINITE,
    BatchSize,
    FittedEdit,
    HalfOptions,
    ModelOptions,
    Out,
    PlanOnly,
    Seed,
    TextOptions,
    settings_of,
)
from lens_steer.cli.planning import passes_of, show_plan
from lens_steer.cli.reporting import tell
from lens_steer.cli.runs import require_free_place, say, say_written, show, warn_of_nothing
from lens_steer.cli.strengths import StrengthOptions
from lens_steer.errors import SettingError


def fit(
    *,
    model: ModelOptions,
    texts: TextOptions = TextOptions(),
    out: Out,
    halves: HalfOptions = HalfOptions(),
    method: MethodName = "lineas",
    settings: MethodOptions = MethodOptions(),
    paper: bool = False,
    control: Annotated[Path | None, Parameter(validator=FILE)] = None,
    strength: StrengthOptions = StrengthOptions(),
    batch_size: BatchSize = None,
    seed: Seed = 0,
    plan: PlanOnly = False,
) -> None:
    """Fit an intervention that moves the model from source towards target, on one half of the texts, and save it.

    With --budget (and --strengths) the other half chooses how much of it is saved: strength 1 of what is saved is the
    chosen one. Half of the held-out texts choose and are not scored again, the others report.

    Example: lens-steer fit --model gpt2 --texts toxic.txt --texts fine.txt --budget ppl:1.1 --out runs/edit

    Parameters
    ----------
    method:
        lineas learns one map per unit through the model, aura damps the experts, caa adds a mean difference, ...
    paper:
        The paper's own settings where the defaults are others.
    control:
        dsas: neutral texts, one a line, that its gates leave alone.

    """
    from lens_steer.host.fingerprint import model_fingerprint
    from lens_steer.report.run_writing import circumstances
    from lens_steer.resumption import resumable
    from lens_steer.texts.seen import known_forms, pack, seen_forms

    if not plan:
        require_free_place(out)
    contrast = texts.read(n=None, seed=seed)
    train, held = halves.split(contrast, seed)
    if control is not None:
        if method != "dsas":
            raise SettingError(f"--control: not for --method {method}, only dsas has gates that leave texts alone")
        train = replace(train, control=tuple(lines_of(control)))
    elif method == "dsas" and not train.control:
        raise SettingError("--method dsas tells source texts from neutral ones: give those by --control FILE")
    chosen = settings.method(method, paper=paper, paired=train.paired, seed=seed, batch_size=batch_size)
    strength.check(held)
    if plan:
        passes, note = passes_of(chosen)
        sites = getattr(chosen, "base", chosen).sites
        show_plan(model.load(), train, note, sites=sites, passes=passes, batch_size=batch_size)
        return
    for sentence in contrast.lint(seed=seed).sentences:
        say(sentence)
    scorer = strength.scorer(train, seed) if strength.wanted else None
    hosted = model.load()
    how = settings_of(
        texts, halves, settings, strength, batch_size=batch_size, model=model.model, method=method, paper=paper
    )
    with resumable(out, model=hosted, plan={"fit": how, "texts": train.data_hash, "seed": seed}):
        edit = chosen.fit(hosted, train)
    show(edit.support())
    if "stopped" not in edit.provenance:  # a descent warns itself
        warn_of_nothing(edit, "no unit tells source from target; give other texts or --sites")
    sentences = [*fit_sentences(edit), bake_sentence(hosted, edit)]
    for sentence in sentences:
        say(sentence)
    tell(findings=sentences, tables={"support": edit.support()}, values=fit_values(edit))
    if scorer is not None:
        edit = strength.chosen(hosted, edit, held, scorer, seed=seed, batch_size=batch_size)
    run = circumstances(f"fit {method}", train, seed, how)
    run["seen"] = pack(seen_forms(known_forms(train.source + train.target)))
    run["fingerprint"] = model_fingerprint(hosted).content()
    replace(edit, provenance={**edit.provenance, "run": run}).save(out)
    say_written(out)


def bake(
    *,
    model: ModelOptions,
    intervention: FittedEdit,
    out: Out,
    strength: Annotated[float, Parameter(validator=FINITE)] = 1.0,
) -> None:
    """Write a plain Hugging Face model with an intervention folded into its weights, exactly or not at all.

    Example: lens-steer bake --model gpt2 --intervention runs/edit --out runs/baked

    Parameters
    ----------
    strength:
        0 changes nothing, 1 is the edit as fitted.

    """
    from lens_steer.directories import new_directory
    from lens_steer.host.load import read_tokenizer
    from lens_steer.interventions.bake import bake as bake_weights
    from lens_steer.interventions.intervention import Intervention

    require_free_place(out)
    edit = Intervention.load(intervention)
    hosted = model.load()
    baked = bake_weights(hosted, edit, strength)
    with new_directory(out) as place:
        baked.save_pretrained(place)
        # The checkpoint's own: the hosted one, read from there, has been made to add BOS.
        read_tokenizer(hosted.tokenizer.name_or_path).save_pretrained(place)
    say_written(out)
