"""What every fit does first: take or collect the activations, and write down how the intervention came about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, Protocol, runtime_checkable

from torch import nn

from lens_steer.activations.activations import Activations
from lens_steer.activations.collect import collect
from lens_steer.activations.origin import require_of_model
from lens_steer.activations.pooling import Pool
from lens_steer.errors import ActivationError, SettingError
from lens_steer.host.guards import check_edit_sites
from lens_steer.host.scope import Scope
from lens_steer.host.sites import Site, SitePattern, find_sites
from lens_steer.interventions.intervention import Intervention
from lens_steer.texts.contrast import ContrastSet
from lens_steer.texts.seen import known_forms, pack, seen_forms


@runtime_checkable
class Method(Protocol):
    """A frozen set of settings with one way to use it; every method moves the model from source towards target."""

    @property
    def sites(self) -> SitePattern:
        """Where the method edits."""
        ...

    @property
    def seed(self) -> int:
        """Seed of whatever the method draws."""
        ...

    def fit(self, model: nn.Module, contrast: ContrastSet, *, activations: Activations | None = None) -> Intervention:
        """Return the intervention that moves `model` from the contrast's source towards its target."""
        ...


@runtime_checkable
class PoolingMethod(Method, Protocol):
    """A method that is fitted on pooled activations alone."""

    @property
    def pool(self) -> Pool:
        """How a text's tokens become one value."""
        ...

    @property
    def batch_size(self) -> int | None:
        """Texts per batch."""
        ...


def layers_of(method: Method) -> tuple[int, ...] | None:
    """Return the layers that a method keeps of its sites; None for all, and for a method without that setting."""
    layers: tuple[int, ...] | str | None = getattr(method, "layers", None)
    return None if isinstance(layers, str) else layers  # "all"


def require_base(what: str, base: object, layers: object) -> None:
    """Check what a method wraps: SettingError where it is no method, or has no layers to keep only some of."""
    if not isinstance(base, Method):
        raise SettingError(f"{what}: base is a method such as CAA(), not {base!r}")
    if layers is not None and "layers" not in {field.name for field in fields(base)}:  # type: ignore[arg-type]
        raise SettingError(f"{what}: {type(base).__name__} has no layers= that could be narrowed: set its sites")


def narrowed(base: Method, layers: tuple[int, ...] | None) -> Method:
    """Return a method that keeps only these layers of its sites, whatever it keeps itself; None leaves it as it is."""
    return base if layers is None else replace(base, layers=layers)  # type: ignore[type-var]


def activations_for(
    model: nn.Module, contrast: ContrastSet, method: PoolingMethod, given: Activations | None
) -> Activations:
    """Collect what the method needs, or check that what was given is that; ActivationError names the difference.

    First the sites are tried, once per state of the model and site: SiteError where an edit of one would not do what it
    says.
    """
    sites = find_sites(model, method.sites, layers=layers_of(method))
    check_edit_sites(model, sites)
    if given is None:
        names = [site.name for site in sites]
        return collect(model, contrast, names, pool=method.pool, batch_size=method.batch_size)
    return matching(given, model, contrast, sites, method.pool)


def matching(
    given: Activations, model: nn.Module, contrast: ContrastSet, sites: Sequence[Site], pool: Pool
) -> Activations:
    """Return given activations at some sites.

    ActivationError where they lack one of the sites, or are of another pool, other texts, other tokens of the texts, or
    another model than the one that is fitted (the interventions that are attached to it included). Of activations made
    from arrays, which say none of this, only sites and pool are compared.
    """
    missing = [site.name for site in sites if site not in given.sites]
    if missing:
        raise ActivationError(
            f"the given activations lack {len(missing)} sites, first {missing[0]}: collect them, or set sites="
        )
    if given.pool != pool:
        raise ActivationError(f"the given activations are pooled by {given.pool}, the method needs {pool}")
    data = given.provenance.get("data")
    if data is not None and data != contrast.labelled.data_hash:
        raise ActivationError(
            "the given activations are of other texts than the contrast: collect them anew, or leave them out"
        )
    _require_same_tokens(given)
    require_of_model(given, model)
    return given.at(tuple(sites))


def _require_same_tokens(given: Activations) -> None:
    if given.provenance.get("scope", repr(Scope())) != repr(Scope()):
        raise ActivationError(
            f"the given activations pool the tokens of {given.provenance['scope']} only, a fit pools all: collect them "
            "without scope=, or leave them out"
        )
    if given.provenance.get("bos") == "pooled":
        raise ActivationError(
            "the given activations have BOS and other special tokens in their pools, a fit leaves them out: collect "
            "them without special_in_pool=, or leave them out"
        )


def method_provenance(method: Any, contrast: ContrastSet, activations: Activations | None = None) -> dict[str, Any]:
    """Return what an artifact says of a fit: method, settings, data, and how its activations were pooled."""
    about = {
        **_as_written(method),
        "contrast": contrast.name,
        "texts": {"source": len(contrast.source), "target": len(contrast.target)},
        "data": contrast.data_hash,
        "seen": pack(seen_forms(known_forms(contrast.source + contrast.target))),
    }
    if activations is not None:
        known = {part: activations.provenance[part] for part in _POOLING if part in activations.provenance}
        about["activations"] = {"pool": activations.pool, **known}
    return about


_POOLING = ("scope", "bos", "batch")  # of the provenance of activations: which tokens were pooled, how many at a time


def _as_written(method: Any) -> dict[str, Any]:
    """Return a method's name and settings; texts by their hash, and a method among them in the same way."""
    settings = {field.name: getattr(method, field.name) for field in fields(method)}
    for name, value in settings.items():
        if isinstance(value, ContrastSet):
            settings[name] = value.data_hash
        elif isinstance(value, Method):
            settings[name] = _as_written(value)
    return {"method": type(method).__name__, "settings": settings}
