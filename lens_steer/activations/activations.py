"""Activations: pooled values of texts at sites, with the labels that make contrasts of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor

from lens_steer.activations.by_site import BySite
from lens_steer.activations.moments import TokenMoments
from lens_steer.activations.pooling import Pool, checked_pool
from lens_steer.activations.saved import load_activations, save_activations
from lens_steer.activations.shown_facts import shown_model, shown_sites
from lens_steer.activations.stored_values import StoredValues
from lens_steer.display.shown_result import shown_result
from lens_steer.errors import ActivationError
from lens_steer.host.sites import Site, split_name
from lens_steer.statistics.design import Design

Side = Literal["source", "target", "all"]


@dataclass(frozen=True, eq=False)
class Activations:
    """Pooled activations of every text at every site, and who is source and target of which concept.

    Attributes
    ----------
    values:
        Site -> float32 [text, unit].
    labels:
        [text, concept]: 1 where the text is a source of the concept, 0 where a target, -1 where it takes no part.
    concepts:
        Names of the concepts, one per column of `labels`.
    pool:
        How tokens became one value.
    moments:
        Site -> token moments per concept and side; None where only pooled values are known.
    lengths:
        Number of pooled tokens of each text.
    groups:
        Subgroup of each text, where the contrast names them; None for a text without.
    blocks:
        The number of each text's block: what is of one block is never parted (see `texts.blocks`). Where it is left
        out, every text is a block of its own.
    hashes:
        [text, form]: by these a text is known again (see `texts.seen`); None for arrays without texts.
    pairs:
        [text, concept]: the number of its pair in a paired concept, -1 without; None where nothing is paired.
    continuations:
        Of generated tokens, what the model wrote after each text; None for given texts.
    provenance:
        Model, its fingerprint (what is attached included), host, dtype, data hash, pool, scope, BOS choice, batch size,
        versions.

    """

    values: BySite[Tensor]
    labels: Int8[Tensor, "text concept"]
    concepts: tuple[str, ...]
    pool: Pool
    moments: BySite[TokenMoments] | None = None
    lengths: tuple[int, ...] | None = None
    groups: tuple[str | None, ...] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    blocks: Int[Tensor, " row"] = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    hashes: Int[Tensor, "text form"] | None = None
    pairs: Int[Tensor, "text concept"] | None = None
    continuations: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not len(self.blocks):
            object.__setattr__(self, "blocks", torch.arange(len(self.labels)))
        if len(self.blocks) != len(self.labels):
            raise ActivationError(f"blocks must number every text: {len(self.blocks)} for {len(self.labels)} texts")
        if len(self.concepts) != self.labels.shape[1]:
            raise ActivationError(
                f"{self.labels.shape[1]} columns of labels need as many concepts, got {len(self.concepts)}"
            )

    def __repr__(self) -> str:
        units = sum(site.width for site in self.sites)
        return (
            f"Activations({len(self.labels)} texts, {len(self.sites)} sites, {units} units, pool={self.pool!r}, "
            f"concepts={', '.join(self.concepts)})"
        )

    def _repr_html_(self) -> str:
        import pandas as pd

        sides = [((self.labels == side).sum(0).tolist()) for side in (1, 0)]
        table = pd.DataFrame({"concept": self.concepts, "source": sides[0], "target": sides[1]})
        about = self.provenance
        of = "tokens that the model wrote" if about.get("of") == "generated" else "given texts"
        lengths = None if not self.lengths else f"{min(self.lengths):,} to {max(self.lengths):,} a text"
        facts = [
            ("texts", f"{len(self.labels):,}, in {len(set(self.blocks.tolist())):,} blocks"),
            ("sites", shown_sites(self.sites)),
            ("pool", f"{self.pool}, over {of}"),
            ("tokens", lengths),
            ("model", shown_model(about)),
        ]
        return shown_result("Activations", facts=facts, table=table, rest=".concepts")

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites, in the order of a forward pass."""
        return tuple(self.values)

    @property
    def source(self) -> BySite[Tensor]:
        """Site -> float32 [text, unit] of the source texts; of one concept only, so choose one first."""
        return self._side(1)

    @property
    def target(self) -> BySite[Tensor]:
        """Site -> float32 [text, unit] of the target texts; of one concept only, so choose one first."""
        return self._side(0)

    def units(self, site: Site | str, units: slice) -> Float[Tensor, "text unit"]:
        """Return some units of a site; of a store's own activations nothing else is read from the disk."""
        chosen = next((one for one in self.sites if one.name == str(site)), None)
        if chosen is None or not isinstance(self.values, StoredValues):
            return self.values[site][:, units]
        return self.values.units(chosen, units)

    def concept(self, name: str) -> Activations:
        """Return the view for one concept: the texts that take part in it."""
        if name not in self.concepts:
            raise ActivationError(f"no concept is named {name!r}; there are {', '.join(self.concepts)}")
        column = self.concepts.index(name)
        part = slice(column, column + 1)
        chosen = self.rows(self.labels[:, column] >= 0)
        moments = None
        if self.moments is not None:
            whole = self.moments

            def of_concept(site: Site) -> TokenMoments:
                at = whole[site]
                return TokenMoments(at.count[part], at.mean[part], at.std[part])

            moments = BySite(self.sites, of_concept)
        pairs = None if chosen.pairs is None else chosen.pairs[:, part]
        return replace(chosen, labels=chosen.labels[:, part], concepts=(name,), moments=moments, pairs=pairs)

    def at(self, sites: tuple[Site, ...]) -> Activations:
        """Return the view of some of the sites."""
        moments = self.moments
        return replace(
            self,
            values=BySite(sites, lambda site: self.values[site]),
            moments=None if moments is None else BySite(sites, lambda site: moments[site]),
        )

    def rows(self, chosen: Tensor) -> Activations:
        """Return the activations of some texts (a mask or indices); token moments are of all texts and are dropped."""
        indices = chosen.nonzero()[:, 0] if chosen.dtype == torch.bool else chosen
        if len(indices) == len(self.labels) and bool((indices == torch.arange(len(indices))).all()):
            return replace(self, moments=None)
        keep = indices.tolist()
        return replace(
            self,
            values=BySite(self.sites, lambda site: self.values[site][indices]),
            labels=self.labels[indices],
            moments=None,
            lengths=None if self.lengths is None else tuple(self.lengths[i] for i in keep),
            groups=None if self.groups is None else tuple(self.groups[i] for i in keep),
            blocks=self.blocks[indices],
            hashes=None if self.hashes is None else self.hashes[indices],
            pairs=None if self.pairs is None else self.pairs[indices],
            continuations=None if self.continuations is None else tuple(self.continuations[i] for i in keep),
        )

    def token_mean(self, site: Site | str, side: Side) -> Float[Tensor, " unit"]:
        """Mean of every unit over the tokens of one side's texts, or of all, whatever the pool."""
        moments = self._token_moments(site)
        if side == "all":
            weights = moments.count[0] / moments.count[0].sum()
            return weights @ moments.mean[0]
        return moments.mean[0, _SIDES[side]]

    def token_std(self, site: Site | str, side: Literal["source", "target"]) -> Float[Tensor, " unit"]:
        """Return the standard deviation of every unit over the tokens of one side's texts, whatever the pool."""
        return self._token_moments(site).std[0, _SIDES[side]]

    def shuffled(self, seed: int = 0) -> Activations:
        """Return a null control: the same values, the labels of every concept permuted among its texts.

        What is not independent moves together, as in `ContrastSet.shuffled`: a block of one side as a whole, copies of
        a text too, and inside a block of both sides its different texts. Token moments are of the true labels and go.
        """
        labels = self.labels.clone()
        for place, column in enumerate(labels.T):
            part = (column >= 0).nonzero()[:, 0]
            copies = None if self.hashes is None else self.hashes[part, 0].numpy()
            design = Design.of(column[part].numpy() == 1, self.blocks[part].numpy(), copies)
            draw = int(np.random.default_rng([seed, place]).integers(2**31))
            column[part] = torch.from_numpy(design.relabelled(1, draw)[0]).to(labels.dtype)
        return replace(self, labels=labels, moments=None)

    def save(self, directory: str | Path) -> Path:
        """Write `activations.safetensors` and `activations.json` into a new directory."""
        return save_activations(self, Path(directory))

    @classmethod
    def load(cls, directory: str | Path) -> Activations:
        """Read what `save` wrote; values stay on disk until they are used. ArtifactError if it is damaged."""
        return load_activations(Path(directory), cls)

    @classmethod
    def from_arrays(
        cls,
        *,
        source: Mapping[str, Any],
        target: Mapping[str, Any],
        pool: Pool = "max",
        name: str = "contrast",
        blocks: Sequence[int] | Int[np.ndarray, _] = (),
    ) -> Activations:
        """Make activations of arrays or tensors [text, unit] per site name, source and target with the same sites.

        `blocks` number what belongs together, source texts first; without them every text is a block of its own.
        ActivationError for sites or widths that differ, an empty side, values that are no finite numbers, or blocks
        that do not number every text.
        """
        checked_pool(pool)
        if source.keys() != target.keys() or not source:
            raise ActivationError("source and target need the same sites, at least one")
        values: dict[str, Tensor] = {}
        sites = []
        for key in source:
            sides = [_finite_floats(side[key], str(key)) for side in (source, target)]
            if any(side.ndim != 2 or len(side) == 0 for side in sides) or sides[0].shape[1] != sides[1].shape[1]:
                shapes = " and ".join(str(tuple(side.shape)) for side in sides)
                raise ActivationError(f"{key}: two arrays [text, unit] of one width are needed, got {shapes}")
            layer, kind = split_name(str(key))
            sites.append(Site(str(key), layer, kind, sides[0].shape[1]))
            values[str(key)] = torch.cat(sides)
        counts = {tuple(len(side[key]) for side in (source, target)) for key in source}
        if len(counts) > 1:
            raise ActivationError(
                f"all sites need the same texts; the counts (source, target) differ: {sorted(counts)}"
            )
        n_source, n_target = counts.pop()
        labels = torch.tensor([[1]] * n_source + [[0]] * n_target, dtype=torch.int8)
        together = torch.from_numpy(np.array(blocks, dtype=np.int64))
        return cls(BySite(tuple(sites), lambda site: values[site.name]), labels, (name,), pool, blocks=together)

    def _side(self, label: int) -> BySite[Tensor]:
        self._require_one_concept()
        rows = (self.labels[:, 0] == label).nonzero()[:, 0]
        return BySite(self.sites, lambda site: self.values[site][rows])

    def _token_moments(self, site: Site | str) -> TokenMoments:
        self._require_one_concept()
        if self.moments is None:
            raise ActivationError("these activations hold pooled values only: token means come from lens_steer.collect")
        return self.moments[site]

    def _require_one_concept(self) -> None:
        if len(self.concepts) != 1:
            raise ActivationError(f"choose one concept first: activations.concept(name), of {', '.join(self.concepts)}")


def _finite_floats(values: Any, name: str) -> Tensor:
    """Return an array or a tensor (of any device or dtype, with a gradient or without) as float32 on the CPU."""
    try:
        given = values if isinstance(values, Tensor) else torch.from_numpy(np.array(values, dtype=float))
    except (TypeError, ValueError) as error:
        raise ActivationError(f"{name}: an array of numbers [text, unit] is needed ({error})") from error
    floats = given.detach().cpu().float()
    bad = (~torch.isfinite(floats)).nonzero()
    if len(bad):
        place = ", ".join(map(str, bad[0].tolist()))
        raise ActivationError(
            f"{name}: the value at [{place}] is {float(floats[tuple(bad[0])])}, and {len(bad) - 1} more are no finite "
            "numbers: leave these texts or units out"
        )
    return floats


_SIDES = {"source": 0, "target": 1}


def require_activations(given: object) -> None:
    """Raise ActivationError for what is no activations, such as a contrast."""
    if not isinstance(given, Activations):
        raise ActivationError(f"activations are needed, not {type(given).__name__}: collect(model, contrast, ...)")
