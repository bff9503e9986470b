"""Touched: how many tokens each edit of an intervention changed while it was on."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from lens_steer.errors import LensSteerWarning
from lens_steer.host.clock import ForwardPass
from lens_steer.interventions.edit import Edit

if TYPE_CHECKING:
    import pandas as pd

_PENDING = 512  # counts kept as they come: on an accelerator, reading one at once would make every pass wait


class _Firing(NamedTuple):
    """One firing of an edit's site: the edit's number, and fresh tokens, of the prompt and generated."""

    edit: int
    touched_prompt: int | Tensor
    touched_generated: int | Tensor
    prompt_in_scope: int | Tensor
    generated_in_scope: int | Tensor


class Touched:
    """Counts, for each edit, the prompt tokens and the generated tokens that it changed; made by `Intervention.on`.

    A token counts where it is in the edit's scope, its row's gate is open and its row's strength is not 0, whether or
    not the map moved it by much. Pads never count; a token that is run again, as generation without a cache does with
    all before the last, counts once. Passes over embeddings in place of token ids are not counted.
    """

    def __init__(self, edits: Sequence[Edit]) -> None:
        self._edits = tuple(edits)
        self._tokens = [[0, 0] for _ in edits]  # prompt, generated
        self._in_scope: list[int | None] = [None for _ in edits]  # None until the edit's site has fired
        self._pending: list[_Firing] = []
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Touched\n{self.frame}"

    @property
    def frame(self) -> pd.DataFrame:
        """One row per edit: edit (its number), site, layer, scope, prompt_tokens, generated_tokens."""
        import pandas as pd

        self._fold()
        columns = ["edit", "site", "layer", "scope", "prompt_tokens", "generated_tokens"]
        rows = [
            (number, edit.site.name, edit.site.layer, str(edit.scope), *tokens)
            for number, (edit, tokens) in enumerate(zip(self._edits, self._tokens, strict=True))
        ]
        return pd.DataFrame(rows, columns=columns)

    def add(
        self,
        number: int,
        forward: ForwardPass,
        inside: Bool[Tensor, "text pos"] | None = None,
        rows: Bool[Tensor, " text"] | None = None,
    ) -> None:
        """Count one firing of an edit's site: the tokens `inside` its scope (None: all real ones), in `rows` only."""
        # A site fires once in a pass; a block that is called by itself afterwards is no pass of the model.
        if number in forward.counted:
            return
        forward.counted.add(number)
        in_scope = forward.fresh_tokens(inside)
        touched = in_scope if rows is None else forward.fresh_tokens(inside, rows)
        with self._lock:
            self._pending.append(_Firing(number, *touched, *in_scope))
            full = len(self._pending) >= _PENDING
        if full:
            self._fold()

    def _fold(self) -> None:
        with self._lock:
            pending, self._pending = self._pending, []
            for number, prompt, generated, *in_scope in _read(pending):
                self._tokens[number][0] += prompt
                self._tokens[number][1] += generated
                self._in_scope[number] = (self._in_scope[number] or 0) + sum(in_scope)

    def warn_of_idle_scopes(self, *, stacklevel: int) -> None:
        """Warn once of the edits in whose scope no token was, though the model ran.

        Edits at one site whose scopes differ in their window of positions alone are one edit in several parts (ActAdd):
        they are idle together.
        """
        self._fold()
        counts: dict[tuple[str, str], int] = {}
        where: dict[tuple[str, str], str] = {}
        for number, (edit, count) in enumerate(zip(self._edits, self._in_scope, strict=True)):
            if not edit.scope.is_all and count is not None:
                part = edit.site.name, str(edit.scope.everywhere)
                counts[part] = counts.get(part, 0) + count
                where.setdefault(part, f"edit {number} at {edit.site.name} with the scope '{edit.scope}'")
        idle = [where[part] for part, count in counts.items() if count == 0]
        if idle:
            more = "" if len(idle) == 1 else f", and {len(idle) - 1} more"
            warnings.warn(
                f"no token was in the scope of {idle[0]}{more}: the model ran, and this changed nothing",
                LensSteerWarning,
                stacklevel,
            )


def _read(firings: Sequence[_Firing]) -> list[list[int]]:
    """Return the firings as plain numbers, all tensors among them read at once."""
    tensors = [count for firing in firings for count in firing if isinstance(count, Tensor)]
    read = iter(torch.stack(tensors).tolist() if tensors else ())
    return [[int(next(read)) if isinstance(count, Tensor) else count for count in firing] for firing in firings]
