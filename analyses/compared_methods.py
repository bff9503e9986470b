"""The methods that are compared, and where each stands: at the same sites as all others, and at its own paper's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import lens_steer as ls

COMMON, OWN = "the same for all", "the paper's"


@dataclass(frozen=True)
class ComparedMethod:
    """A method under a name of the table: how it is made for given sites, and the sites of its own paper."""

    name: str
    make: Callable[[Any], Any]
    own: Any
    anywhere: bool = True


def compared_methods(
    model: Any, small: ls.ContrastSet, sites: Any, steps: int, share: float, seed: int
) -> Iterator[ComparedMethod]:
    """Yield the methods; where a paper edits one layer of the residual stream, that is the middle one."""
    layers = sorted({site.layer for site in ls.find_sites(model, "hook_resid_post")})
    middle = (layers[len(layers) // 2],)
    one: dict[str, Any] = {"sites": "hook_resid_post", "layers": middle}
    at: dict[str, Any] = {"seed": seed}

    def k(place: Any) -> int:
        return max(1, round(share * sum(site.width for site in ls.find_sites(model, place))))

    def layered(method: Callable[..., Any], **own: Any) -> Callable[[Any], Any]:
        return lambda place: method(**(place if isinstance(place, dict) else {"sites": place}), **own, **at)

    n_heads = sum(site.heads for site in ls.find_sites(model, "attn.hook_z"))
    yield ComparedMethod("AurA", lambda place: ls.AurA(sites=place, **at), "paper:aura")
    yield ComparedMethod("Det0", lambda place: ls.Det0(k=k(place), sites=place, **at), "paper:aura")
    yield ComparedMethod("Damp", lambda place: ls.Damp(k=k(place), sites=place, **at), "paper:aura")
    yield ComparedMethod("SelfCond", lambda place: ls.SelfCond(k=k(place), sites=place, **at), "paper:selfcond")
    token: dict[str, Any] = {"statistic": "token", "value": "mean"}
    yield ComparedMethod(
        "SelfCond, token means", lambda place: ls.SelfCond(k=k(place), sites=place, **token, **at), "paper:selfcond"
    )
    yield ComparedMethod("MeanAcT", layered(ls.MeanAcT), "paper:act")
    yield ComparedMethod("GaussianAcT", layered(ls.GaussianAcT), "paper:act")
    yield ComparedMethod("LinearAcT", layered(ls.LinearAcT), "paper:act")
    yield ComparedMethod("CAA", layered(ls.CAA, pool="mean"), one)
    yield ComparedMethod("ActAdd", layered(ls.ActAdd, pair=0), one)
    yield ComparedMethod(
        "ITI", lambda place: ls.ITI(k=max(1, n_heads // 4), alpha=1.0, sites=place, **at), "attn.hook_z", False
    )
    pairing: dict[str, Any] = {"pairing": "random", "pool": "mean"}
    yield ComparedMethod("RepE", layered(ls.RepE, **pairing), one)
    yield ComparedMethod("RepE, projected out", layered(ls.RepE, mode="project_out", **pairing), one)
    yield ComparedMethod("LinEAS", lambda place: ls.LinEAS(sites=place, progress=False, **at), "paper:lineas")
    few: dict[str, Any] = {"progress": False, **at}
    yield ComparedMethod(
        "LinEAS, few units", lambda place: ls.LinEAS(sites=place, units=k(place), **few), "paper:lineas"
    )
    yield ComparedMethod("LoReFT", layered(ls.LoReFT, steps=steps, progress=False), one)
    yield ComparedMethod("CAST of CAA", lambda place: ls.CAST(base=layered(ls.CAA, pool="mean")(place), **at), one)
    if small.control:
        yield ComparedMethod(
            "DSAS of LinearAcT", lambda place: ls.DSAS(base=ls.LinearAcT(sites=place, **at), **at), "paper:act"
        )


def placed(methods: Sequence[ComparedMethod], sites: Any) -> Iterator[tuple[ComparedMethod, str, Any]]:
    """Yield every method, the name of where it stands, and the sites: at `sites`, unless None, and at its own."""
    for method in methods:
        if method.anywhere and sites is not None:
            yield method, COMMON, sites
        yield method, OWN, method.own


def named_methods(methods: Iterable[ComparedMethod], names: Sequence[str]) -> list[ComparedMethod]:
    """Return the methods of those names, or whose names begin so where no method has just that name; all without names.

    LensSteerError for a name that is no method's.
    """
    every = list(methods)
    exact = {method.name for method in every}
    asked: set[str] = set()
    for name in names:
        meant = [name] if name in exact else [full for full in exact if full.startswith(name)]
        if not meant:
            raise ls.LensSteerError(f"no method is named {name!r} here; there are {', '.join(sorted(exact))}")
        asked.update(meant)
    return [method for method in every if not names or method.name in asked]
