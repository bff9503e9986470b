"""Sketching: a pass that keeps counts per unit instead of a value per text, so that memory does not grow with texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from lens_steer.activations.activations import Activations
from lens_steer.activations.by_site import BySite
from lens_steer.activations.pooling import TokenPool
from lens_steer.activations.shown_facts import shown_model, shown_sites
from lens_steer.display.shown_result import shown_result
from lens_steer.errors import ActivationError, SettingError
from lens_steer.host.adapter import host_of
from lens_steer.host.sites import Site
from lens_steer.host.tokens import TokenBatch, Tokens
from lens_steer.host.trunk import Visit, trunk
from lens_steer.progress import progress_bar
from lens_steer.statistics.sketches import Grid, Sketch
from lens_steer.texts.blocks import split_blocks

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

    def merged(self, other: ActivationSketch) -> ActivationSketch:
        """Return the sketch of both's texts, of other texts at the same sites on the same grid.

        Counts do not depend on the order or on how the texts were split; other batches may round a value across a cut,
        so give `collect` one batch size. ActivationError where sites, concepts, pool,
        model, held-out share or grids differ: sketch the second with `grid=` the first.
        """
        same = ("fingerprint", "pool", "scope")
        mine, theirs = (
            (one.sites, one.concepts, one.holdout, [one.texts.provenance.get(name) for name in same])
            for one in (self, other)
        )
        if mine != theirs:
            raise ActivationError("sketches merge of the same sites, concepts, pool, model and held-out share")
        both = {site.name: self.sketches[site].merged(other.sketches[site]) for site in self.sites}
        return replace(
            self, sketches=BySite(self.sites, lambda site: both[site.name]), texts=_joined(self.texts, other.texts)
        )


def sketch_texts(
    model: nn.Module,
    tokens: Tokens,
    texts: Activations,
    settings: Sketching,
    *,
    batch_size: int | None = None,
    progress: bool = True,
) -> ActivationSketch:
    """Run tokenised texts through the trunk and sketch every site of `texts`: see `collect`.

    The pilot texts are the first of a seeded order. ContrastError where too few texts would be held out;
    ActivationError that names site, unit and text where a value is no finite number.
    """
    members, grid = _members(texts, settings.holdout, settings.seed), settings.grid
    order = np.random.default_rng(settings.seed).permutation(len(texts.labels)).tolist()
    count = 0 if grid is not None else settings.pilot
    sites, device = tuple(texts.values), host_of(model).device
    # Metal has no float64: there the sketch stays on the CPU.
    place = torch.device("cpu") if device.type == "mps" else device
    sketches: dict[str, Sketch] = {}
    if grid is not None:
        sketches = {site.name: Sketch(grid.sketches[site].grid, len(members)) for site in sites}
    first: dict[str, list[Tensor]] = {site.name: [] for site in sites}
    rows: list[int] = []

    def visit_of(site: Site) -> Visit:
        def visit(activation: Tensor, batch: TokenBatch) -> None:
            pooled = TokenPool(batch.pooled.to(activation.device))(activation, texts.pool).to(place)
            if site.name in sketches:
                _add(sketches[site.name], site, pooled, members, list(batch.rows))
            else:
                first[site.name].append(pooled)

        return visit

    def run_all(chosen: list[int], what: str) -> None:
        with torch.no_grad(), trunk(model, {site: visit_of(site) for site in sites}) as run:
            batches = list(tokens.batches(batch_size, rows=chosen)) if chosen else []
            for numbers, batch in progress_bar(batches, desc=what, unit="batch", show=progress):
                run(batch.to(device))
                if not sketches:
                    rows.extend(numbers)

    run_all(order[:count], "pilot")
    if grid is None:
        for site in sites:
            values = torch.cat(first.pop(site.name))
            made = Sketch(Grid.of(values, settings.bins), len(members))
            _add(made, site, values, members, rows)
            sketches[site.name] = made
    run_all(order[count:], "sketch")
    return ActivationSketch(BySite(sites, lambda site: sketches[site.name]), texts, settings.holdout, settings.seed)


def _members(texts: Activations, holdout: float | None, seed: int) -> Bool[Tensor, "group text"]:
    """Return, concept by concept, which source texts select, which are held out, and the same of the target."""
    groups = []
    hashes = None if texts.hashes is None else texts.hashes[:, 0].numpy()
    for label in texts.labels.numpy().T:
        held = np.zeros(len(label), dtype=np.bool_)
        if holdout is not None:
            held = split_blocks(texts.blocks.numpy(), label, holdout, seed, hashes=hashes, fewest=2)
        groups += [(label == side) & (held == half) for side in (1, 0) for half in (False, True)]
    return torch.from_numpy(np.stack(groups))


def _add(sketch: Sketch, site: Site, values: Tensor, members: Tensor, rows: list[int]) -> None:
    try:
        sketch.add(values, members[:, rows])
    except ActivationError as error:
        row, unit = (~torch.isfinite(values)).nonzero()[0].tolist()
        raise ActivationError(
            f"{site.name}[{unit}] is {float(values[row, unit])} for text {rows[row]}: the model or an edit attached to "
            "it overflows"
        ) from error


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
