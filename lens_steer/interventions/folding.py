"""Folding: what an intervention's affine maps make of the weights that stand beside them, and which maps none can hold.

An affine map before or after a linear part makes another linear part with it, so most sites of a block can be folded;
what stands on the residual stream cannot, since nothing multiplies it there. Folding is done in float64 and rounded
once, at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lens_steer.errors import LensSteerError, MapError
from lens_steer.host.adapter import Host, host_of
from lens_steer.host.sites import Site, split_name
from lens_steer.host.weights import PlainWeights, Projection
from lens_steer.interventions.edit import Edit
from lens_steer.interventions.maps import ActivationMap, DiagonalAffine

Weight = Float[Tensor, "out in"]
Out = Float[Tensor, " out"]
Unit = Float[Tensor, " unit"]
Linear = Float[Tensor, " unit"] | Float[Tensor, "unit unit"]
"""What multiplies the units: one scale each, or a matrix [to, from] where they are mixed."""

Write = Callable[[], None]
"""Folds one map into the weights as they are when it is called; all refusals came before."""

KEEP_HOOKS = "keep it as hooks, with intervention.on(model)"


def why_not_bakeable(edits: Sequence[Edit], model: nn.Module | None = None) -> str | None:
    """Return why these edits (`intervention.edits`) cannot be baked into the weights of `model`; None if they can.

    No weights are computed or copied. Without a model, only what rules out every model is looked at: scopes, gates, and
    maps that are not affine. `bake` compares the logits of what it made besides, and may still refuse.
    """
    try:
        require_foldable(edits)
        if model is not None:
            planned_writes(PlainWeights(model), host_of(model), edits)
    except LensSteerError as error:
        return str(error)
    return None


def require_foldable(edits: Sequence[Edit]) -> None:
    """Raise MapError for an edit that no model's weights can hold."""
    for edit in edits:
        _require_everywhere(edit)
        _require_affine(edit.site, edit.map)


def planned_writes(weights: PlainWeights, host: Host, edits: Sequence[Edit]) -> list[Write]:
    """Return the writes that fold the edits into `weights`, in their order; MapError where one cannot be folded."""
    return [rule(weights, fold) for fold, rule in _plan(host, edits)]


@dataclass(frozen=True, eq=False)
class Fold:
    """All edits of one hook point as one map, in float64, and the parts of its block that stand beside it."""

    site: Site
    parts: tuple[str, ...]
    linear: Linear
    shift: Unit

    @property
    def mixes(self) -> bool:
        """Whether units depend on each other."""
        return self.linear.ndim == 2

    @property
    def multiplied(self) -> int:
        """How many units are anything but themselves before the shift."""
        if not self.mixes:
            return int((self.linear != 1).sum())
        return int((self.linear != torch.eye(len(self.shift), dtype=self.linear.dtype)).any(1).sum())

    @property
    def shifts(self) -> bool:
        """Whether any unit is shifted."""
        return bool(self.shift.any())

    def refused(self, reason: str, nearest: str) -> MapError:
        """Return the error of a fold that is impossible."""
        return MapError(f"{self.site.name} cannot be baked: {reason}. Nearest: {nearest}, or {KEEP_HOOKS}")


def map_outputs(weight: Weight, bias: Out, linear: Linear, shift: Out) -> tuple[Weight, Out]:
    """Return weight and bias of x -> linear (weight x + bias) + shift."""
    return times(linear, weight.T).T, times(linear, bias) + shift


def map_inputs(weight: Weight, bias: Out, linear: Linear, shift: Tensor) -> tuple[Weight, Out]:
    """Return weight and bias of x -> weight (linear x + shift) + bias."""
    return (weight * linear if linear.ndim == 1 else weight @ linear), bias + weight @ shift


def times(linear: Linear, rows: Float[Tensor, "*row unit"]) -> Float[Tensor, "*row unit"]:
    """Multiply the units of every row."""
    return rows * linear if linear.ndim == 1 else rows @ linear.T


def _projections(weights: PlainWeights, fold: Fold) -> list[Projection]:
    """Find the projections beside a site; MapError where there is none, or a shift finds no bias."""
    projections = (weights.projection(fold.site.layer, part) for part in fold.parts)
    present = [projection for projection in projections if projection is not None]
    if not present:
        raise fold.refused(
            f"this {weights.architecture} model has no projection {fold.parts[-1]} whose weights can be told apart",
            "hook_mlp_out or hook_attn_out, where the model has them",
        )
    _require_biases(weights, fold, present)
    return present


def _require_biases(weights: PlainWeights, fold: Fold, projections: list[Projection]) -> None:
    without = [projection.module for projection in projections if not weights.has_bias(projection)]
    if fold.shifts and without:
        raise fold.refused(
            f"its shift needs a bias, and {weights.architecture}'s {', '.join(without)} has none that the config could "
            "switch on",
            _nearest_shift(weights, fold),
        )


def _nearest_shift(weights: PlainWeights, fold: Fold) -> str:
    for last, sites in (("attn.o", "attn.hook_z or hook_attn_out"), ("mlp.out", "mlp.hook_post or hook_mlp_out")):
        projection = weights.projection(fold.site.layer, last)
        if last[:4] == fold.parts[0][:4] and projection is not None and weights.has_bias(projection):
            return f"a shift at {sites}, whose projection has a bias"
    return "a scale without a shift (AurA, Damp, ablate to zero)"


def _fold_outputs(weights: PlainWeights, fold: Fold) -> Write:
    projections = _projections(weights, fold)

    def write() -> None:
        for projection in projections:
            weights.write(projection, *map_outputs(*weights.read(projection), fold.linear, fold.shift))

    return write


def _fold_inputs(weights: PlainWeights, fold: Fold) -> Write:
    return _map_inputs_of(weights, _projections(weights, fold), fold.linear, fold.shift)


def _map_inputs_of(weights: PlainWeights, projections: list[Projection], linear: Linear, shift: Unit) -> Write:
    def write() -> None:
        for projection in projections:
            weights.write(projection, *map_inputs(*weights.read(projection), linear, shift))

    return write


def _fold_norm(weights: PlainWeights, fold: Fold, *, normalized: bool = False) -> Write:
    """Scale the norm's weight; the shift goes into its bias, or like a mixture into what reads the norm."""
    (part,) = fold.parts
    norm = weights.norm(fold.site.layer, part)
    if norm is None:
        raise fold.refused("this norm has no weight of its own", "the inputs of the projections that read it")
    readers = list(weights.readers(fold.site.layer, norm))
    if fold.mixes:
        if normalized or not readers:
            raise fold.refused(
                "it mixes units where the norm's weight, one number per unit, is all that stands beside it",
                "the norm's hook_out" if readers else "attn.o.hook_out or mlp.out.hook_out, before that norm",
            )
        _require_biases(weights, fold, readers)
        return _map_inputs_of(weights, readers, fold.linear, fold.shift)
    into_readers = fold.shifts and not norm.biased
    if into_readers:
        _require_readers(weights, fold, readers)

    def write() -> None:
        weight, bias = weights.read_norm(norm)
        shift = weight * fold.shift if normalized else fold.shift
        if into_readers:
            _map_inputs_of(weights, readers, torch.ones_like(shift), shift)()
        weights.write_norm(norm, fold.linear * weight, (bias if normalized else fold.linear * bias) + shift)

    return write


def _fold_normalized(weights: PlainWeights, fold: Fold) -> Write:
    """Fold the value before weight and bias: a shift there reaches the output times the weight."""
    return _fold_norm(weights, fold, normalized=True)


def _require_readers(weights: PlainWeights, fold: Fold, readers: list[Projection]) -> None:
    if not readers:
        raise fold.refused(
            "this norm has no bias, and no projection reads it (it norms a branch's output, say)",
            "a scale without a shift there",
        )
    _require_biases(weights, fold, readers)


def _fold_stream_after(weights: PlainWeights, fold: Fold) -> Write:
    """Put a shift of a block's output into what its MLP writes last."""
    _require_shift_only(fold)
    if weights.norm(fold.site.layer, "ln2_post") is not None:
        raise fold.refused(
            "a norm stands between the MLP's bias and the stream", "a scale at hook_mlp_out or hook_attn_out"
        )
    return _fold_outputs(weights, fold)


def _fold_stream_before(weights: PlainWeights, fold: Fold) -> Write:
    """Put a shift of a block's input into the block before, or before the first block into the embedding."""
    if fold.site.layer > 0:
        site = Site(fold.site.name, fold.site.layer - 1, fold.site.kind, fold.site.width)
        return _fold_stream_after(weights, replace(fold, site=site))
    _require_shift_only(fold)
    table = weights.entering_embedding()
    if table is None:
        raise fold.refused(
            f"{weights.architecture} has no learned positions, and its token embedding is scaled or tied to the "
            "unembedding",
            "the same shift at blocks.0.hook_resid_post, where the MLP has a bias",
        )
    return lambda: weights.shift_embedding(table, fold.shift)


def _require_shift_only(fold: Fold) -> None:
    if fold.multiplied:
        raise fold.refused(
            f"it {'mixes' if fold.mixes else 'scales'} {fold.multiplied} units of the residual stream, where what "
            "earlier blocks wrote passes by every weight",
            "a shift there (CAA, MeanAcT), or the method at hook_mlp_out and hook_attn_out or a norm (paper:lineas)",
        )


Rule = Callable[[PlainWeights, Fold], Write]
"""Checks that a fold is possible beside the weights of its site, and returns the write; MapError where it is not."""

# Canonical kind -> rule and the parts of the block that it changes. Rules on what a part gives out are applied from the
# first site to the last, rules on what a part takes in from the last to the first: the nearest to the weights first.
_OUTGOING: dict[str, tuple[Rule, tuple[str, ...]]] = {
    **{f"{part}.hook_out": (_fold_outputs, (part,)) for part in ("attn.q", "attn.k", "attn.v", "attn.o")},
    **{f"{part}.hook_out": (_fold_outputs, (part,)) for part in ("mlp.gate", "mlp.in", "mlp.out")},
    "attn.hook_out": (_fold_outputs, ("attn.o",)),
    "mlp.hook_out": (_fold_outputs, ("mlp.out",)),
    "hook_out": (_fold_stream_after, ("mlp.out",)),
    "hook_in": (_fold_stream_before, ("mlp.out",)),
}
_INCOMING: dict[str, tuple[Rule, tuple[str, ...]]] = {
    **{f"{part}.hook_in": (_fold_inputs, (part,)) for part in ("attn.q", "attn.k", "attn.v", "attn.o")},
    **{f"{part}.hook_in": (_fold_inputs, (part,)) for part in ("mlp.gate", "mlp.in", "mlp.out")},
    "attn.hook_in": (_fold_inputs, ("attn.q", "attn.k", "attn.v")),
    "mlp.hook_in": (_fold_inputs, ("mlp.gate", "mlp.in")),
    **{f"{norm}.hook_out": (_fold_norm, (norm,)) for norm in ("ln1", "ln1_post", "ln2", "ln2_post")},
    **{f"{norm}.hook_normalized": (_fold_normalized, (norm,)) for norm in ("ln1", "ln1_post", "ln2", "ln2_post")},
}


def _plan(host: Host, edits: Sequence[Edit]) -> list[tuple[Fold, Rule]]:
    """Join the edits of each hook point into one and order the folds; MapError for a site that no rule covers.

    Two folds may meet in one projection: one on what it takes in (at `mlp.hook_post`, say) and one on what it gives out
    (at `hook_mlp_out`). With weight W and bias b, the maps x -> a x + c in front and y -> d y + e behind it make

        y = d (W (a x + c) + b) + e,     that is     W' = d W a,    b' = d (W c + b) + e,

    whichever is folded first, because each fold reads the weights as the other left them. Of several folds on one side
    the order matters: nearest to the projection first. Behind it that is the first to fire (`mlp.out.hook_out`, then
    the stream), in front of it the last to fire (`mlp.in.hook_in` before the norm's output). So folds on outputs go in
    the order of a forward pass, and those on inputs in the reverse order.
    """
    joined: dict[str, Fold] = {}
    for edit in edits:
        name = host.canonical(edit.site.name)
        earlier = joined.get(name)
        linear, shift = _linear_and_shift(edit.map)
        if earlier is not None:
            linear, shift = _after(linear, earlier.linear), times(linear, earlier.shift) + shift
        joined[name] = Fold(edit.site if earlier is None else earlier.site, (), linear, shift)
    moving = sorted((n for n, fold in joined.items() if fold.multiplied or fold.shifts), key=host.firing_order)
    outgoing: list[tuple[Fold, Rule]] = []
    incoming: list[tuple[Fold, Rule]] = []
    for name in moving:
        kind, fold = split_name(name)[1], joined[name]
        if kind not in _OUTGOING and kind not in _INCOMING:
            raise fold.refused(
                "no weights stand directly beside it",
                "the sites attn.hook_q, hook_k, hook_v and hook_z, mlp.hook_pre and hook_post, hook_attn_out, "
                "hook_mlp_out and the norms' outputs",
            )
        rule, parts = (_OUTGOING if kind in _OUTGOING else _INCOMING)[kind]
        place = (replace(fold, parts=parts), rule)
        (outgoing if kind in _OUTGOING else incoming).append(place)
    return [*outgoing, *reversed(incoming)]


def _linear_and_shift(affine: ActivationMap) -> tuple[Linear, Unit]:
    """Return what an affine map multiplies by and adds, in float64."""
    if isinstance(affine, DiagonalAffine):
        return affine.scale.cpu().double(), affine.shift.cpu().double()
    # Any other affine map says it best itself: where it sends zero, and each unit alone.
    origin = torch.zeros(affine.width, dtype=torch.float64)
    with torch.no_grad():
        shift = affine(origin[None])[0]
        columns = affine(torch.eye(affine.width, dtype=torch.float64)) - shift
    return columns.T, shift


def _after(later: Linear, earlier: Linear) -> Linear:
    """Return the product of two maps' linear parts, the earlier one acting first."""
    if later.ndim == 1 and earlier.ndim == 1:
        return later * earlier
    earlier = torch.diag(earlier) if earlier.ndim == 1 else earlier
    return times(later, earlier.T).T


def _require_everywhere(edit: Edit) -> None:
    if edit.gate is not None:
        raise MapError(
            f"{edit.site.name} cannot be baked: a gate decides on the prompt of each row whether it is steered, and "
            f"weights act on every row. Nearest: the intervention without its gate, or {KEEP_HOOKS}"
        )
    if edit.scope.is_all:
        return
    # Without its window of positions an edit such as ActAdd's is another one altogether.
    whole = edit.scope.start == 0 and edit.scope.stop is None
    wider = 'intervention.scoped("all"), or ' if whole else ""
    raise MapError(
        f"{edit.site.name} cannot be baked: it is for some tokens only ({edit.scope}), and weights act on every one. "
        f"Nearest: {wider}{KEEP_HOOKS}"
    )


def _require_affine(site: Site, of_site: ActivationMap) -> None:
    """Refuse what weights cannot do: a map inside an interval, behind a gate, or otherwise not affine."""
    obstacle = of_site.obstacle()
    if obstacle is not None:
        raise MapError(f"{site.name} cannot be baked: {obstacle.reason}. Nearest: {obstacle.nearest}, or {KEEP_HOOKS}")
