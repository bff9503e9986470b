"""The command line: rank, fit, ablate, generate, evaluate, bake, sites, study, report; on one's own model and texts.

Each command is a few library calls; everything heavy is imported inside it, so that help costs nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from lens_steer.cli.demo import demo
from lens_steer.cli.options import (
    BatchSize,
    Chat,
    Device,
    Dtype,
    Label,
    Model,
    NewTokens,
    Number,
    Out,
    Prompts,
    Seed,
    Sites,
    Source,
    Strength,
    Target,
    Temperature,
    Text,
    Texts,
    Words,
    chat_of,
    contrast_of,
    halves_of,
    lines_of,
    load,
    pattern_of,
    pool_of,
)
from lens_steer.cli.report import report
from lens_steer.cli.runs import evaluate_edit, require_free_place, show, show_evaluation, write_run
from lens_steer.cli.study import study_app
from lens_steer.errors import LensSteerError, SettingError

app = typer.Typer(
    help="Find a language model's expert units, steer it by editing few of them, and see what that does.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(study_app, name="study")
app.command()(report)
app.command()(demo)


@app.command()
def sites(
    model: Model, pattern: str = "*", device: Device = None, dtype: Dtype = "float32", out: Out | None = None
) -> None:
    """List the kinds of sites of a model, or the sites that a pattern names."""
    import pandas as pd

    from lens_steer.cli.findings import sites_study
    from lens_steer.host.sites import find_sites

    hosted = load(model, device, dtype)
    found = find_sites(hosted, pattern_of("blocks.*" if pattern == "*" else pattern))
    rows = [{"site": s.name, "layer": s.layer, "kind": s.kind, "units": s.width, "heads": s.heads} for s in found]
    table = pd.DataFrame(rows)
    if pattern == "*":
        kinds = table.groupby("kind", sort=False)
        table = kinds.agg(layers=("layer", "nunique"), units=("units", "first"), heads=("heads", "first")).reset_index()
    show(table)
    if out is not None:
        write_run(out, "sites", {"model": model, "pattern": pattern}, sites_study(table), hosted)


@app.command()
def rank(
    model: Model,
    texts: Texts,
    out: Out,
    sites: Sites = "mlp.hook_post",
    pool: Annotated[str, typer.Option(help="max, mean, last or first.")] = "max",
    top: Annotated[int, typer.Option(help="Units to print.")] = 20,
    holdout: Annotated[float, typer.Option(help="Share of the texts that is held out.")] = 0.5,
    text: Text = "text",
    label: Label = "label",
    source: Source = None,
    target: Target = None,
    chat: Chat = None,
    n: Number = None,
    device: Device = None,
    dtype: Dtype = "float32",
    batch_size: BatchSize = None,
    seed: Seed = 0,
) -> None:
    """Rank the units by how well each tells source from target; writes experts.csv and probes.csv."""
    settings = dict(locals())
    from lens_steer.activations.collect import collect
    from lens_steer.cli.findings import ranking_study
    from lens_steer.ranking.experts import rank_experts

    require_free_place(out)
    contrast = contrast_of(texts, text, label, source, target, chat, n, seed)
    hosted = load(model, device, dtype)
    activations = collect(hosted, contrast, pattern_of(sites), pool=pool_of(pool), batch_size=batch_size)
    ranking = rank_experts(activations, holdout=holdout, seed=seed)
    probes = ranking.probes()
    columns = [
        "site",
        "unit",
        "heldout_auroc",
        "auroc",
        "auroc_low",
        "auroc_high",
        "q_value",
        "source_mean",
        "target_mean",
    ]
    show(ranking.top(top)[columns])
    show(probes)
    write_run(out, "rank", settings, ranking_study(ranking, probes), hosted, contrast)


@app.command()
def fit(
    model: Model,
    texts: Texts,
    out: Out,
    method: Annotated[str, typer.Option(help="aura or lineas.")] = "lineas",
    sites: Annotated[str | None, typer.Option(help="Sites to edit; the method's own when left out.")] = None,
    gamma_share: Annotated[float, typer.Option(help="LinEAS: sparsity, as a share of gamma_max (0: dense).")] = 0.1,
    steps: Annotated[int, typer.Option(help="LinEAS: steps.")] = 1000,
    lr: Annotated[float, typer.Option(help="LinEAS: learning rate.")] = 0.1,
    text: Text = "text",
    label: Label = "label",
    source: Source = None,
    target: Target = None,
    chat: Chat = None,
    n: Number = None,
    device: Device = None,
    dtype: Dtype = "float32",
    batch_size: BatchSize = None,
    seed: Seed = 0,
) -> None:
    """Fit an intervention that moves the model from source towards target, on half of the texts, and save it."""
    from dataclasses import replace

    from lens_steer.methods.aura import AurA
    from lens_steer.methods.lineas import LinEAS

    require_free_place(out)
    contrast, _ = halves_of(contrast_of(texts, text, label, source, target, chat, None, seed), n, seed)
    hosted = load(model, device, dtype)
    where: dict[str, Any] = {} if sites is None else {"sites": pattern_of(sites)}
    if method == "aura":
        edit = AurA(seed=seed, batch_size=batch_size, **where).fit(hosted, contrast)
    elif method == "lineas":
        lineas = LinEAS(steps=steps, lr=lr, seed=seed, micro_batch=batch_size, **where)
        if gamma_share > 0:
            lineas = replace(lineas, gamma=gamma_share * lineas.gamma_max(hosted, contrast))
        edit = lineas.fit(hosted, contrast)
    else:
        raise SettingError(f"no method is named {method!r}; there are aura and lineas")
    show(edit.support())
    edit.save(out)
    typer.echo(f"saved in {out}")


@app.command()
def generate(
    model: Model,
    prompts: Annotated[Path, typer.Option(help="Prompts, one a line.")],
    out: Out,
    intervention: Annotated[Path | None, typer.Option(help="A directory that `fit` wrote.")] = None,
    strength: Strength = 1.0,
    max_new_tokens: NewTokens = 50,
    temperature: Temperature = 1.0,
    chat: Chat = None,
    device: Device = None,
    dtype: Dtype = "float32",
    batch_size: BatchSize = None,
    seed: Seed = 0,
) -> None:
    """Continue prompts with and without an intervention; writes texts.csv."""
    settings = dict(locals())
    import pandas as pd

    from lens_steer.cli.findings import texts_study
    from lens_steer.evaluation.generation import generate as generate_texts
    from lens_steer.interventions.intervention import Intervention

    require_free_place(out)
    rows = lines_of(prompts)
    hosted = load(model, device, dtype)
    edits = {"plain": None} if intervention is None else {"plain": None, "edited": Intervention.load(intervention)}
    columns = {
        name: generate_texts(
            hosted,
            rows,
            intervention=edit,
            strength=strength,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            chat=chat_of(chat),
            seed=seed,
            batch_size=batch_size,
        )
        for name, edit in edits.items()
    }
    table = pd.DataFrame({"prompt": rows, **columns})
    show(table.head(10))
    write_run(out, "generate", settings, texts_study(table, edits.get("edited")), hosted)


@app.command()
def ablate(
    model: Model,
    texts: Texts,
    units: Annotated[Path, typer.Option(help="csv with columns site, unit and width, as `rank` writes it.")],
    out: Out,
    top: Annotated[int | None, typer.Option(help="Ablate the first rows of the csv only.")] = None,
    mode: Annotated[str, typer.Option(help="zero, mean or target_mean.")] = "zero",
    prompts: Prompts = None,
    words: Words = None,
    strength: Strength = 1.0,
    max_new_tokens: NewTokens = 30,
    temperature: Temperature = 1.0,
    text: Text = "text",
    label: Label = "label",
    source: Source = None,
    target: Target = None,
    chat: Chat = None,
    n: Number = None,
    device: Device = None,
    dtype: Dtype = "float32",
    batch_size: BatchSize = None,
    seed: Seed = 0,
) -> None:
    """Ablate listed units and write the scores of generated texts before and after, and the perplexity cost."""
    settings = dict(locals())
    import pandas as pd

    from lens_steer.activations.collect import collect
    from lens_steer.cli.findings import evaluation_study
    from lens_steer.interventions.ablation import ablate as ablate_units

    require_free_place(out)
    if mode not in ("zero", "mean", "target_mean"):
        raise SettingError(f"no mode is named {mode!r}; there are zero, mean and target_mean")
    contrast = contrast_of(texts, text, label, source, target, chat, None, seed)
    chosen = pd.read_csv(units) if units.is_file() else None
    if chosen is None:
        raise SettingError(f"there is no file {units}: give the experts.csv of `lens-steer rank`")
    hosted = load(model, device, dtype)
    listed = chosen if top is None else chosen.head(top)
    acts = None if mode == "zero" else collect(hosted, contrast, sorted(set(listed["site"])), batch_size=batch_size)
    edit = ablate_units(listed, mode=mode, activations=acts)  # type: ignore[arg-type]
    decoding = {"strength": strength, "max_new_tokens": max_new_tokens, "temperature": temperature}
    result, scorer = evaluate_edit(
        hosted, edit, halves_of(contrast, n, seed), prompts, words, seed, batch_size, decoding
    )
    show_evaluation(result, scorer, edit)
    write_run(out, "ablate", settings, evaluation_study(result, edit), hosted, contrast)


@app.command()
def evaluate(
    model: Model,
    texts: Texts,
    intervention: Annotated[Path, typer.Option(help="A directory that `fit` wrote.")],
    out: Out,
    prompts: Prompts = None,
    words: Words = None,
    strength: Strength = 1.0,
    max_new_tokens: NewTokens = 30,
    temperature: Temperature = 1.0,
    text: Text = "text",
    label: Label = "label",
    source: Source = None,
    target: Target = None,
    chat: Chat = None,
    n: Number = None,
    device: Device = None,
    dtype: Dtype = "float32",
    batch_size: BatchSize = None,
    seed: Seed = 0,
) -> None:
    """Score generated texts before and after an intervention, and the perplexity of held-out target texts."""
    settings = dict(locals())
    from lens_steer.cli.findings import evaluation_study
    from lens_steer.interventions.intervention import Intervention

    require_free_place(out)
    contrast = contrast_of(texts, text, label, source, target, chat, None, seed)
    edit = Intervention.load(intervention)
    hosted = load(model, device, dtype)
    decoding = {"strength": strength, "max_new_tokens": max_new_tokens, "temperature": temperature}
    result, scorer = evaluate_edit(
        hosted, edit, halves_of(contrast, n, seed), prompts, words, seed, batch_size, decoding
    )
    show_evaluation(result, scorer, edit)
    write_run(out, "evaluate", settings, evaluation_study(result, edit), hosted, contrast)


@app.command()
def bake(
    model: Model,
    intervention: Annotated[Path, typer.Option(help="A directory that `fit` wrote.")],
    out: Out,
    strength: Strength = 1.0,
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """Write a plain Hugging Face model with an intervention folded into its weights, exactly or not at all."""
    from transformers import AutoTokenizer

    from lens_steer.directories import new_directory
    from lens_steer.interventions.bake import bake as bake_weights
    from lens_steer.interventions.intervention import Intervention

    require_free_place(out)
    edit = Intervention.load(intervention)
    baked = bake_weights(load(model, device, dtype), edit, strength)
    with new_directory(out) as place:
        baked.save_pretrained(place)
        # The checkpoint's own: the hosted one has been made to add BOS.
        AutoTokenizer.from_pretrained(model).save_pretrained(place)
    typer.echo(f"saved in {out}")


def main() -> None:
    """Run the command line; a LensSteerError becomes one line and exit status 1."""
    try:
        app()
    except LensSteerError as error:
        typer.echo(f"lens-steer: {error}", err=True)
        sys.exit(1)
