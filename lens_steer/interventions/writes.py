"""Writes: what the edits of an intervention do in a forward pass, each for its tokens, its rows, at their strength."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_steer.errors import ModelError
from lens_steer.host.attach import Write
from lens_steer.host.clock import ForwardPass, positions_of
from lens_steer.host.scope import Scope, require_prompts
from lens_steer.host.sites import Site
from lens_steer.interventions.edit import Edit
from lens_steer.interventions.maps import ActivationMap
from lens_steer.interventions.row_gate import RowGate
from lens_steer.interventions.strengths import RowStrengths, rows_of
from lens_steer.interventions.touched import Touched

Activation = Float[Tensor, "text pos unit"]


def writes_of(
    edits: Sequence[Edit], strengths: float | tuple[float, ...], touched: Touched
) -> list[tuple[Site, Write]]:
    """Return what to attach for edits at a strength, or one per row, in the order in which they act.

    Each gate is read once, directly in front of the first edit that carries it.
    """
    if strengths == 0.0:
        return []
    at = RowStrengths(strengths) if isinstance(strengths, tuple) else strengths
    writes: list[tuple[Site, Write]] = []
    gates: list[RowGate] = []
    for number, edit in enumerate(edits):
        if edit.gate is not None and edit.gate not in gates:
            gates.append(edit.gate)
            writes.append((edit.gate.site, _gate_reader(edit.gate, len(gates) - 1)))
        gate = None if edit.gate is None else gates.index(edit.gate)
        writes.append((edit.site, _writer(number, edit, at, gate, touched)))
    return writes


Act = Callable[[Activation, ForwardPass | None], Tensor]
"""A map at its strength, or strengths, on every token of a pass."""


def _at_one(edit_map: ActivationMap, strength: float) -> Act:
    scaled = edit_map.scaled(strength)
    return lambda flat, forward: scaled.on_rows(flat, rows_of(forward, flat))


def _row_by_row(edit_map: ActivationMap, strengths: RowStrengths) -> Act:
    """Each row through the map at its own strength: what a pass at that strength alone would do to it."""
    maps = {value: edit_map.scaled(value) for value in strengths.values if value != 0.0}

    def act(flat: Activation, forward: ForwardPass | None) -> Tensor:
        groups = strengths.groups(flat, forward)
        parts = [
            flat[group.places] if value == 0.0 else maps[value].on_rows(flat[group.places], group.rows)
            for value, group in groups.items()
        ]
        back = torch.cat([group.places for group in groups.values()]).argsort()
        return torch.cat(parts)[back]

    return act


def _writer(number: int, edit: Edit, at: float | RowStrengths, gate: int | None, touched: Touched) -> Write:
    scope = edit.scope
    act = _row_by_row(edit.map, at) if isinstance(at, RowStrengths) else _at_one(edit.map, at)

    def write_everywhere(flat: Activation, forward: ForwardPass | None) -> Tensor:
        if forward is not None:
            touched.add(number, forward)
        return act(flat, forward)

    def write_for_some(flat: Activation, forward: ForwardPass | None) -> Tensor:
        mapped = act(flat, forward)
        inside = None if scope.is_all else _inside(scope, forward)
        opened = None if gate is None else _decided(gate, forward, len(flat))
        if forward is not None:
            at_work = at.nonzero(flat, forward) if isinstance(at, RowStrengths) else None
            touched.add(number, forward, inside, _both(opened, at_work))
        where = _both(None if opened is None else opened[:, None], inside)
        return mapped if where is None else torch.where(where[..., None], mapped, flat)

    return write_everywhere if scope.is_all and isinstance(at, float) and gate is None else write_for_some


def _both(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Return where both hold; None stands for everywhere."""
    if one is None or other is None:
        return other if one is None else one
    return one & other


def _inside(scope: Scope, forward: ForwardPass | None) -> Bool[Tensor, "text pos"]:
    positions = positions_of(forward)
    assert forward is not None  # positions_of has refused it
    # Once per pass, however many edits share the scope.
    if scope not in forward.scope_masks:
        forward.scope_masks[scope] = scope.mask(positions)
    return forward.scope_masks[scope]


def _gate_reader(gate: RowGate, number: int) -> Write:
    def read(flat: Activation, forward: ForwardPass | None) -> None:
        positions = positions_of(forward)
        require_prompts(positions, "a gate decides")
        if forward is not None and forward.holds_its_prompt:
            decisions = forward.prompt.decisions
            if number not in decisions:  # a generation without a cache runs its prompt again at every step
                decisions[number] = gate.decide(flat, positions)

    return read


def _decided(gate: int, forward: ForwardPass | None, rows: int) -> Bool[Tensor, " text"]:
    """Return what a gate decided on the prompt that this pass holds or goes on with."""
    positions_of(forward)
    assert forward is not None
    decision = forward.prompt.decisions.get(gate)
    if decision is None or len(decision) != rows:
        raise ModelError(
            "a gate decides on a prompt that it sees whole, in one pass, and this pass is of one that it has not seen "
            "so, or of other rows of it: run the prompt inside the context, with the same rows, neither in chunks nor "
            "on a cache kept from before"
        )
    return decision
