"""Sketches of activations: counts per unit instead of a value per text, so that memory does not grow with texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lens_steer.activations.activations import Activations
from lens_steer.activations.by_site import BySite
from lens_steer.activations.origin import require_one_origin
from lens_steer.activations.shown_facts import shown_model, shown_sites
from lens_steer.activations.sketch_file import read_sketch, write_sketch
from lens_steer.directories import new_directory
from lens_steer.display.shown_result import shown_result
from lens_steer.errors import ActivationError, SettingError
from lens_steer.host.sites import Site
from lens_steer.settings import require_settings
from lens_steer.statistics.sketches import Sketch

HALVES = ("selection", "heldout")


@dataclass(frozen=True, kw_only=True)
class Sketching:
    """How `collect(..., reduce=Sketching(...))` sketches.

    Attributes
    ----------
    bins:
        Cells per unit, about equally full. A unit takes 4 bytes per cell for each half of each side of each concept.
    pilot:
        Texts that fix the grid; their values are in memory at once.
    holdout:
        The share of each side's texts that is held out from selection, as in `rank_experts`; None: none is.
    seed:
        Of the pilot sample and of the split.
    grid:
        Another sketch whose grid to take, so that both can be merged.

    Refused (`SettingError`): fewer than 2 bins or 1 pilot text, a share outside 0..1.

    """

    bins: int = 256
    pilot: int = 1024
    holdout: float | None = 0.5
    seed: int = 0
    grid: ActivationSketch | None = None

    def __post_init__(self) -> None:
        require_settings(type(self), vars(self))
        if self.bins < 2 or self.pilot < 1:
            raise SettingError(f"bins are 2 or more and pilot texts 1 or more, not {self.bins} and {self.pilot}")
        if self.holdout is not None and not 0 < self.holdout < 1:
            raise SettingError(f"holdout must lie between 0 and 1, or be None, not {self.holdout}")


@dataclass(frozen=True, eq=False)
class ActivationSketch:
    """What `collect(..., reduce="sketch")` gives: counts and moments of every unit, for `rank_experts`.

    Attributes
    ----------
    sketches:
        Site -> its sketch. Its groups are, concept by concept, the source texts that select, those held out, and the
        same of the target.
    texts:
        Who is who: labels, blocks and hashes of the texts (some hundred bytes each), without their values.
    holdout, seed:
        The share of texts that was held out, and the seed of the split (see `rank_experts`) and of the pilot sample.

    """

    sketches: BySite[Sketch]
    texts: Activations
    holdout: float | None
    seed: int

    def __repr__(self) -> str:
        units = sum(site.width for site in self.sites)
        return f"ActivationSketch({len(self.texts.labels)} texts, {len(self.sites)} sites, {units} units)"

    def _repr_html_(self) -> str:
        held = "none" if self.holdout is None else f"{self.holdout:.0%} of each side's texts"
        facts = [
            ("texts", f"{len(self.texts.labels):,}, of which no value is kept"),
            ("sites", shown_sites(self.sites)),
            ("concepts", ", ".join(self.concepts)),
            ("pool", self.texts.pool),
            ("held out", held),
            ("model", shown_model(self.texts.provenance)),
        ]
        return shown_result("Sketch of activations", facts=facts)

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites, in the order of a forward pass."""
        return tuple(self.sketches)

    @property
    def concepts(self) -> tuple[str, ...]:
        """Names of the concepts."""
        return self.texts.concepts

    def side(self, site: Site, concept: str, label: int, halves: Sequence[str] = HALVES) -> Sketch:
        """Return the sketch, one group, of a concept's source texts (label 1) or target texts (0)."""
        first = 4 * self.concepts.index(concept) + 2 * (1 - label)
        return self.sketches[site].together([first + HALVES.index(half) for half in halves])

    def save(self, directory: str | Path) -> Path:
        """Write `sketch.safetensors` and `sketch.json` into a new directory; OutputError if it holds something."""
        with new_directory(directory) as place:
            write_sketch(self, place)
        return Path(directory)

    @classmethod
    def load(cls, directory: str | Path) -> ActivationSketch:
        """Read what `save`, or `collect(..., reduce=, store=)`, wrote. ArtifactError if it is damaged."""
        sketches, texts, holdout, seed = read_sketch(Path(directory))
        return cls(sketches, texts, holdout, seed)

    def merged(self, other: ActivationSketch) -> ActivationSketch:
        """Return the sketch of both's texts, of other texts at the same sites on the same grid.

        Counts do not depend on the order or on how the texts were split; other batches may round a value across a cut,
        so give `collect` one batch size. ActivationError where sites, concepts, pool, model, held-out share or grids
        differ: sketch the second with `grid=` the first.
        """
        same = ("pool", "scope")
        mine, theirs = (
            (one.sites, one.concepts, one.holdout, [one.texts.provenance.get(name) for name in same])
            for one in (self, other)
        )
        if mine != theirs:
            raise ActivationError("sketches merge of the same sites, concepts, pool, scope and held-out share")
        require_one_origin(self.texts, other.texts, "the other sketch")
        both = {site.name: self.sketches[site].merged(other.sketches[site]) for site in self.sites}
        return replace(
            self, sketches=BySite(self.sites, lambda site: both[site.name]), texts=_joined(self.texts, other.texts)
        )


def _joined(one: Activations, other: Activations) -> Activations:
    """Return both's texts; they share no block."""
    if one.hashes is None or other.hashes is None:
        raise ActivationError("sketches merge of texts that are known by their hashes")
    after = int(one.blocks.max()) + 1 - int(other.blocks.min())
    return replace(
        one,
        labels=torch.cat([one.labels, other.labels]),
        blocks=torch.cat([one.blocks, other.blocks + after]),
        hashes=torch.cat([one.hashes, other.hashes]),
        lengths=None,
        groups=None,
        pairs=None,
    )
