"""The methods that `lens-steer fit` knows, by name, and the options that each of them takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import CoercionError, Parameter, Token, validators

from lens_steer.cli.option_values import several, sites_of
from lens_steer.cli.option_words import option
from lens_steer.cli.options import FINITE, FROM_ZERO, POSITIVE, CountOrNone, whole
from lens_steer.errors import SettingError

if TYPE_CHECKING:
    from lens_steer.methods.fitting import Method

MethodName = Literal[
    "lineas", "aura", "det0", "damp", "selfcond", "mean-act", "gaussian-act", "linear-act", "caa", "actadd", "iti",
    "repe", "loreft", "cast", "dsas",
]  # fmt: skip
BaseName = Literal[
    "lineas", "aura", "det0", "damp", "selfcond", "mean-act", "gaussian-act", "linear-act", "caa", "repe"
]
_BASES: Mapping[str, BaseName] = {"cast": "caa", "dsas": "linear-act"}
_CHOOSE_A_LAYER = ("caa", "repe", "cast")  # where all layers have to be asked for
_SHARE = validators.Number(gte=0, lte=1)


def method_classes() -> dict[str, type[Any]]:
    """Return the class of every method by its name on the command line."""
    from lens_steer.methods.act_add import ActAdd
    from lens_steer.methods.activation_transport import GaussianAcT, LinearAcT, MeanAcT
    from lens_steer.methods.aura import AurA
    from lens_steer.methods.caa import CAA
    from lens_steer.methods.cast import CAST
    from lens_steer.methods.damp import Damp, Det0
    from lens_steer.methods.dsas import DSAS
    from lens_steer.methods.iti import ITI
    from lens_steer.methods.lineas import LinEAS
    from lens_steer.methods.loreft import LoReFT
    from lens_steer.methods.repe import RepE
    from lens_steer.methods.self_conditioning import SelfCond

    return {
        "lineas": LinEAS,
        "aura": AurA,
        "det0": Det0,
        "damp": Damp,
        "selfcond": SelfCond,
        "mean-act": MeanAcT,
        "gaussian-act": GaussianAcT,
        "linear-act": LinearAcT,
        "caa": CAA,
        "actadd": ActAdd,
        "iti": ITI,
        "repe": RepE,
        "loreft": LoReFT,
        "cast": CAST,
        "dsas": DSAS,
    }


def _layers(_: Any, tokens: Sequence[Token]) -> tuple[int, ...] | str:
    parts = several(tokens)
    if parts == ["all"]:
        return "all"
    try:
        return tuple(int(part) for part in parts)
    except ValueError:
        raise CoercionError(msg="layers are whole numbers with commas, such as 8,-1, or all", token=tokens[0]) from None


_LayersOption = Annotated[
    tuple[int, ...] | str | None, Parameter(converter=_layers, n_tokens=1, allow_leading_hyphen=True)
]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """Settings of the method; each method refuses those that it does not have, and has a default for the others.

    Attributes
    ----------
    sites:
        Sites to edit, several with commas.
    layers:
        Only these layers of them, with commas; negative numbers count from the last. caa, repe: chosen on held-out
        texts when left out, all edits every one.
    pool:
        How a text's tokens become one value: mean, max or last.
    gamma_share:
        lineas: sparsity, as a share of the gamma that edits nothing; 0 is dense. Chosen on a held-out quarter of the
        texts when neither this nor --units is given.
    units:
        lineas: how many units to edit.
    optimizer:
        lineas: quasi-newton, which has no rate, adam or sgd. loreft: adam or sgd.
    steps:
        lineas, loreft: most steps of a descent.
    lr:
        lineas by adam or sgd, loreft: learning rate.
    k:
        det0, damp, selfcond: how many units; iti: how many heads. Needed there.
    factor:
        damp: what the units are multiplied by.
    multiplier:
        caa, actadd, repe: how far to go.
    alpha:
        iti: how far to go, in standard deviations; from one side's mean to the other's when left out.
    rank:
        loreft: directions per site.
    pairing:
        repe: the contrast's own pairs, or pairs drawn at random; those that there are when left out.
    pair:
        actadd: which pair of texts, counted from 0.
    base:
        cast, dsas: the method that is gated, caa and linear-act when left out; it takes its own options.

    """

    sites: str | None = None
    layers: _LayersOption = None
    pool: Literal["mean", "max", "last"] | None = None
    gamma_share: Annotated[float | None, Parameter(validator=_SHARE)] = None
    units: CountOrNone = None
    optimizer: Literal["quasi-newton", "adam", "sgd"] | None = None
    steps: CountOrNone = None
    lr: Annotated[float | None, Parameter(validator=POSITIVE)] = None
    k: CountOrNone = None
    factor: Annotated[float | None, Parameter(validator=_SHARE)] = None
    multiplier: Annotated[float | None, Parameter(validator=FINITE)] = None
    alpha: Annotated[float | None, Parameter(validator=FINITE)] = None
    rank: CountOrNone = None
    pairing: Literal["contrast", "random"] | None = None
    pair: Annotated[int | None, Parameter(converter=whole, validator=FROM_ZERO)] = None
    base: BaseName | None = None

    @property
    def given(self) -> dict[str, Any]:
        """The options that were given, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def method(
        self, name: str, *, paper: bool = False, paired: bool = False, seed: int = 0, batch_size: int | None = None
    ) -> Method:
        """Return the method of this name with these settings; `paired` says whether the texts come in pairs.

        SettingError for options that it does not take, for one that it needs, and for values out of its range.
        """
        given = self.given
        if "sites" in given:
            given["sites"] = sites_of(given["sites"])
        if given.get("layers") == "all" and name not in _CHOOSE_A_LAYER and given.get("base") not in _CHOOSE_A_LAYER:
            del given["layers"]
        base = None
        if name in _BASES:
            base = str(given.pop("base", _BASES[name]))
        _require_taken(given, name, base)
        if (
            name == "lineas"
            and "lr" in given
            and not paper
            and given.get("optimizer", "quasi-newton") == "quasi-newton"
        ):
            raise SettingError(
                f"--lr {self.lr}: a quasi-Newton descent has no rate: leave it out, or give --optimizer adam"
            )
        run: dict[str, Any] = {"seed": seed, "batch_size": batch_size, "paired": paired}
        if base is not None:  # what wraps a method has its settings alone
            given = {"base": _made(base, given, False, **run)}
        return _made(name, given, paper, **run)


def _options_of(name: str) -> list[str]:
    """Return the options that a method takes itself."""
    own = {field.name for field in fields(method_classes()[name])}
    return [field.name for field in fields(MethodOptions) if field.name in own]


def _require_taken(given: Mapping[str, Any], name: str, base: str | None) -> None:
    taken = _options_of(name if base is None else base)
    if foreign := sorted(given.keys() - taken):
        what = name if base is None else f"{name} of {base}"
        own = ", ".join(map(option, [*taken, *([] if base is None else ["base"])]))
        raise SettingError(f"{', '.join(map(option, foreign))}: not for --method {what}, which takes {own}")


def _made(
    name: str, settings: Mapping[str, Any], paper: bool, *, seed: int, batch_size: int | None, paired: bool
) -> Method:
    cls: Any = method_classes()[name]
    known = {field.name: field for field in fields(cls)}
    run: dict[str, Any] = {"seed": seed}
    if batch_size is not None:
        run["micro_batch" if "micro_batch" in known else "batch_size"] = batch_size
    if "pairing" in known and "pairing" not in settings:
        run["pairing"] = "contrast" if paired else "random"
    settings = {**{key: value for key, value in run.items() if key in known}, **settings}
    if paper:
        if not hasattr(cls, "paper"):
            named = ", ".join(
                other for other, method_class in method_classes().items() if hasattr(method_class, "paper")
            )
            raise SettingError(f"--paper: {name} has one set of defaults; other settings of the paper's have {named}")
        of_paper: Method = cls.paper(**settings)
        return of_paper
    for field in known.values():
        if field.default is MISSING and field.default_factory is MISSING and field.name not in settings:
            raise SettingError(f"--method {name} needs {option(field.name)}")
    made: Method = cls(**settings)
    return made
