"""What of an edit stands against folding it into weights, whatever the model."""

from __future__ import annotations

from lens_steer.errors import MapError
from lens_steer.interventions.edit import Edit

KEEP_AS_HOOKS = "keep it as hooks, `with intervention.on(model)`"


def require_foldable(edit: Edit) -> None:
    """Raise MapError for what no weights can do: an edit for some tokens or rows only, or whose map is not affine."""
    if edit.gate is not None:
        raise MapError(
            f"{edit.site.name} cannot be baked: a gate decides on the prompt of each row whether it is steered, and "
            f"weights act on every row. Nearest: the intervention without its gate, or {KEEP_AS_HOOKS}"
        )
    if not edit.scope.is_all:
        # Without its window of positions an edit such as ActAdd's is another one altogether.
        whole = edit.scope.start == 0 and edit.scope.stop is None
        wider = 'intervention.scoped("all"), or ' if whole else ""
        raise MapError(
            f"{edit.site.name} cannot be baked: it is for some tokens only ({edit.scope}), and weights act on every "
            f"one. Nearest: {wider}{KEEP_AS_HOOKS}"
        )
    obstacle = edit.map.obstacle()
    if obstacle is not None:
        raise MapError(
            f"{edit.site.name} cannot be baked: {obstacle.reason}. Nearest: {obstacle.nearest}, or {KEEP_AS_HOOKS}"
        )
