"""`lens-steer fit` and `lens-steer bake`: an intervention learned and saved, or folded into a model's weights."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter, validators

from lens_steer.cli.options import (
    FINITE,
    POSITIVE,
    BatchSize,
    CountOrNone,
    FittedEdit,
    HalfOptions,
    ModelOptions,
    Out,
    Seed,
    TextOptions,
    settings_of,
    sites_of,
)
from lens_steer.cli.runs import require_free_place, say, show, warn_of_nothing
from lens_steer.errors import SettingError

if TYPE_CHECKING:
    from lens_steer.interventions.intervention import Intervention
    from lens_steer.texts.contrast import ContrastSet

_GAMMA_SHARE = 0.1


def fit(
    *,
    model: ModelOptions,
    texts: TextOptions = TextOptions(),
    out: Out,
    halves: HalfOptions = HalfOptions(),
    method: Literal["lineas", "aura"] = "lineas",
    sites: str | None = None,
    gamma_share: Annotated[float | None, Parameter(validator=validators.Number(gte=0, lte=1))] = None,
    steps: CountOrNone = None,
    lr: Annotated[float | None, Parameter(validator=POSITIVE)] = None,
    optimizer: Literal["sgd", "adam"] | None = None,
    batch_size: BatchSize = None,
    seed: Seed = 0,
) -> None:
    """Fit an intervention that moves the model from source towards target, on one half of the texts, and save it.

    Example: lens-steer fit --model gpt2 --texts toxic.txt --texts fine.txt --gamma-share 0.1 --out runs/edit

    Parameters
    ----------
    method:
        LinEAS learns one map per unit, AurA damps the experts.
    sites:
        Sites to edit, several with commas; the method's own when left out.
    gamma_share:
        LinEAS: sparsity, as a share of the gamma that edits nothing; 0 is dense, 0.1 when left out.
    steps:
        LinEAS: steps of the descent; the paper's 1000 when left out.
    lr:
        LinEAS: learning rate; the paper's 0.1 when left out. Adam needs a smaller one, such as 0.01.
    optimizer:
        LinEAS: the paper's sgd when left out.

    """
    learned = {"gamma_share": gamma_share, "steps": steps, "lr": lr, "optimizer": optimizer}
    given = {name: value for name, value in learned.items() if value is not None}
    if method != "lineas" and given:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise SettingError(f"{named}: for LinEAS only, and the method is {method}")
    from lens_steer.report.run_writing import circumstances
    from lens_steer.texts.seen import known_forms, pack, seen_forms

    require_free_place(out)
    where: dict[str, Any] = {} if sites is None else {"sites": sites_of(sites)}
    train, _ = halves.split(texts.read(n=None, seed=seed), seed)
    hosted = model.load()
    if method == "aura":
        from lens_steer.methods.aura import AurA

        edit = AurA(seed=seed, batch_size=batch_size, **where).fit(hosted, train)
    else:
        edit = _fit_lineas(hosted, train, given, micro_batch=batch_size, seed=seed, **where)
    show(edit.support())
    if method != "lineas":  # which warns itself
        warn_of_nothing(edit, "no unit tells source from target; give other texts or --sites")
    how = {"model": model.model, "method": method, "sites": sites, **given}
    run = circumstances(f"fit {method}", train, seed, settings_of(texts, halves, batch_size=batch_size, **how))
    run["seen"] = pack(seen_forms(known_forms(train.source + train.target)))
    replace(edit, provenance={**edit.provenance, "run": run}).save(out)
    say(f"saved in {out}")


def _fit_lineas(hosted: Any, train: ContrastSet, given: dict[str, Any], **settings: Any) -> Intervention:
    """Fit LinEAS, and say how far its training loss fell."""
    from lens_steer.methods.lineas import LinEAS

    learned = {name: value for name, value in given.items() if name != "gamma_share"}
    share = given.get("gamma_share", _GAMMA_SHARE)
    lineas = LinEAS(**learned, **settings)
    if share > 0:
        lineas = replace(lineas, gamma=share * lineas.gamma_max(hosted, train))
    edit = lineas.fit(hosted, train)
    if not edit.history.empty:
        losses = edit.history["loss"]
        say(f"training loss {losses.iloc[0]:.4g} -> {losses.min():.4g} in {len(losses)} steps")
    return edit


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
    say(f"saved in {out}")
