"""`lens-steer sites` and `lens-steer rank`: what can be edited, and which units are experts."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from lens_steer.cli.options import (
    BatchSize,
    Count,
    HalfOptions,
    ModelOptions,
    Out,
    Seed,
    TextOptions,
    settings_of,
    sites_of,
)
from lens_steer.cli.runs import require_free_place, say, show, write_run

_SHOWN = ["site", "unit", "selection_auroc", "heldout_auroc", "heldout_low", "heldout_high", "q_value", "tied"]


def sites(*, model: ModelOptions, pattern: str = "*", out: Path | None = None) -> None:
    """List the kinds of sites of a model, or the sites that a pattern names.

    Example: lens-steer sites --model gpt2 --pattern "blocks.*.mlp.hook_post"

    Parameters
    ----------
    pattern:
        Kind, name, glob or preset (paper:aura, ...) of the sites; several with commas.
    out:
        New directory for the list; nothing is written when left out.

    """
    import pandas as pd

    from lens_steer.cli.findings import sites_study
    from lens_steer.host.sites import find_sites

    if out is not None:
        require_free_place(out)
    wanted = sites_of("blocks.*" if pattern == "*" else pattern)
    hosted = model.load()
    rows = [
        {"site": site.name, "layer": site.layer, "kind": site.kind, "units": site.width, "heads": site.heads}
        for site in find_sites(hosted, wanted)
    ]
    table = pd.DataFrame(rows)
    if pattern == "*":
        kinds = table.groupby("kind", sort=False)
        table = kinds.agg(layers=("layer", "nunique"), units=("units", "first"), heads=("heads", "first")).reset_index()
    show(table)
    if out is not None:
        write_run(out, "sites", settings_of(model, pattern=pattern), sites_study(table), hosted)


def rank(
    *,
    model: ModelOptions,
    texts: TextOptions = TextOptions(),
    out: Out,
    halves: HalfOptions = HalfOptions(),
    sites: str = "mlp.hook_post",
    pool: Literal["max", "mean", "last", "first"] = "max",
    top: Count = 20,
    batch_size: BatchSize = None,
    seed: Seed = 0,
) -> None:
    """Rank the units by how well each tells source from target; writes experts.csv and probes.csv.

    Units are chosen on the half of the texts that `fit` sees too, and measured on the other half.

    Example: lens-steer rank --model gpt2 --texts toxic.txt --texts fine.txt --out runs/rank

    Parameters
    ----------
    sites:
        Kind, name, glob or preset of the sites; several with commas.
    pool:
        How a text's tokens become one value.
    top:
        Units to print.

    """
    from lens_steer.activations.collect import collect
    from lens_steer.cli.findings import ranking_study, separating_sentence
    from lens_steer.ranking.experts import rank_experts
    from lens_steer.ranking.resolution import resolution_sentence

    settings = settings_of(
        model, texts, halves, out=out, sites=sites, pool=pool, top=top, batch_size=batch_size, seed=seed
    )
    require_free_place(out)
    wanted = sites_of(sites)
    contrast = texts.read(n=None, seed=seed)
    train, held = halves.split(contrast, seed)
    hosted = model.load()
    if halves.n is None:  # the halves of `split`, and q-values over all texts
        activations = collect(hosted, contrast, wanted, pool=pool, batch_size=batch_size)
        ranking = rank_experts(activations, holdout=halves.holdout, seed=seed)
    else:
        chosen, measured = (collect(hosted, half, wanted, pool=pool, batch_size=batch_size) for half in (train, held))
        ranking = rank_experts(chosen, holdout=measured, seed=seed)
    probes = ranking.probes()
    show(ranking.top(top)[_SHOWN])
    say(f"\n{separating_sentence(ranking.frame)}\n{resolution_sentence(ranking.resolution())}\n")
    show(probes)
    write_run(out, "rank", settings, ranking_study(ranking, probes), hosted, contrast, seen=ranking.seen)
