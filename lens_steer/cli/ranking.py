"""`lens-steer sites` and `lens-steer rank`: what can be edited, and which units are experts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from lens_steer.cli.option_values import lines_of, sites_of
from lens_steer.cli.options import (
    FILE,
    BatchSize,
    Count,
    HalfOptions,
    ModelOptions,
    Out,
    PlanOnly,
    Seed,
    TextOptions,
    settings_of,
)
from lens_steer.cli.planning import show_plan
from lens_steer.cli.reporting import tell
from lens_steer.cli.runs import require_free_place, say, show, write_run
from lens_steer.errors import SettingError
from lens_steer.processes import process_count, process_number
from lens_steer.statistics.verdict import verdict_of

if TYPE_CHECKING:
    from lens_steer.activations.activations import Activations
    from lens_steer.texts.contrast import ContrastSet

_FEWEST_UNRELATED = 5  # texts: of fewer, no unit can be shown to stand out in most such texts
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
    tell(tables={"sites": table})
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
    unrelated: Annotated[Path | None, Parameter(validator=FILE)] = None,
    store: Path | None = None,
    store_dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    sketch: bool = False,
    batch_size: BatchSize = None,
    seed: Seed = 0,
    plan: PlanOnly = False,
) -> None:
    """Rank the units by how well each tells source from target; writes experts.csv and probes.csv.

    Units are chosen on the half of the texts that `fit` sees too, and measured on the other half. With several
    processes, `torchrun --nproc-per-node 8 -m lens_steer rank ... --store DIR`, each runs its share of the batches.

    Example: lens-steer rank --model gpt2 --texts toxic.txt --texts fine.txt --out runs/rank

    Parameters
    ----------
    sites:
        Kind, name, glob or preset of the sites; several with commas.
    pool:
        How a text's tokens become one value.
    top:
        Units to print, and to write with --json; experts.csv has all.
    unrelated:
        Texts that have to do with nothing, one a line: the column `universal` tells the units that stand out in them.
    store:
        Directory for the activations: a run that was interrupted goes on there, started with the same command.
    store_dtype:
        Precision of the stored values.
    sketch:
        Keep counts in the place of values, so that memory does not grow with the texts: scores within stated bounds,
        and no probes.

    """
    from lens_steer.activations.collect import collect
    from lens_steer.activations.sketch import Sketching
    from lens_steer.cli.findings import ranking_study, separating_sentence, universal_sentence
    from lens_steer.ranking.experts import rank_experts
    from lens_steer.ranking.resolution import resolution_sentence

    settings = settings_of(
        model, texts, halves, out=out, sites=sites, pool=pool, top=top, unrelated=unrelated, store=store,
        store_dtype=store_dtype, sketch=sketch, batch_size=batch_size, seed=seed,
    )  # fmt: skip
    _require_together(store, halves, sketch=sketch, unrelated=unrelated, plan=plan)
    if not plan and process_number() == 0:
        require_free_place(out)
    wanted = sites_of(sites)
    others = None if unrelated is None else _in_two_halves(unrelated)
    contrast = texts.read(n=None, seed=seed)
    train, held = halves.split(contrast, seed)
    hosted = model.load()
    how: Any = {"pool": pool, "batch_size": batch_size, "store_dtype": store_dtype}
    if plan:
        show_plan(hosted, contrast, sites=wanted, reduce="sketch" if sketch else None, store=store is not None, **how)
        return
    if halves.n is None:  # the halves of `split`, and q-values over all texts
        reduce = Sketching(holdout=halves.holdout, seed=seed) if sketch else None
        collected = collect(hosted, contrast, wanted, store=store, reduce=reduce, **how)
        if process_number() > 0:
            return
        neutral = _collected(hosted, others, wanted, how)
        ranking = rank_experts(collected, holdout=halves.holdout, unrelated=neutral, seed=seed)
    else:
        chosen, measured = (collect(hosted, half, wanted, **how) for half in (train, held))
        neutral = _collected(hosted, others, wanted, how)
        ranking = rank_experts(chosen, holdout=measured, unrelated=neutral, seed=seed)
    probes = None if sketch else ranking.probes()
    show(ranking.top(top)[[*_SHOWN, *(["universal"] if neutral is not None else [])]])
    say(f"\n{separating_sentence(ranking.frame)}\n{resolution_sentence(ranking.resolution())}\n")
    if neutral is not None:
        say(f"{universal_sentence(ranking.frame, len(neutral.labels))}\n")
    if probes is not None:
        show(probes)
    study = ranking_study(ranking, probes, unrelated=0 if neutral is None else len(neutral.labels))
    write_run(out, "rank", settings, study, hosted, contrast, seen=ranking.seen, most_rows=top)
    best = ranking.frame.iloc[0]
    tell(verdicts={"best unit": verdict_of(best["heldout_low"], best["heldout_high"], reference=0.5)})


def _require_together(
    store: Path | None, halves: HalfOptions, *, sketch: bool, unrelated: Path | None, plan: bool
) -> None:
    """Refuse options that do not go together, before anything is read."""
    if store is not None and (store.is_file() or store.resolve() == Path.cwd()):
        raise SettingError(f"--store {store} is no directory of its own: name one for the activations")
    if (store is not None or sketch) and halves.n is not None:
        raise SettingError("--store and --sketch are of all texts: leave --n out, or give fewer texts")
    if sketch and unrelated is not None:
        raise SettingError("--unrelated needs the values of every text, which --sketch does not keep: leave one out")
    if process_count() > 1 and store is None and not plan:
        raise SettingError(f"{process_count()} processes share the work through a directory: give --store DIR")


def _in_two_halves(path: Path) -> ContrastSet:
    """Return the texts of a file as a contrast that means nothing."""
    from lens_steer.texts.contrast import ContrastSet

    lines = lines_of(path)
    if len(lines) < _FEWEST_UNRELATED:
        raise SettingError(
            f"--unrelated {path} has {len(lines)} texts: give {_FEWEST_UNRELATED} or more, fewer show no universal unit"
        )
    return ContrastSet(lines[::2], lines[1::2], name=path.stem)


def _collected(hosted: Any, texts: ContrastSet | None, sites: Any, how: Any) -> Activations | None:
    from lens_steer.activations.collect import collect

    return None if texts is None else collect(hosted, texts, sites, **how)
