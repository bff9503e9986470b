"""`--plan`: what a command would take, printed in the place of the run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any

from lens_steer.cli.runs import say, show

if TYPE_CHECKING:
    from lens_steer.host.prompts import Prompt
    from lens_steer.texts.contrast import ContrastSet, LabelledTexts

_TRIED = 8  # prompts
_PASSES_PER_GRADIENT = 1.5  # over half of the texts, and a backward pass takes about two forwards


def show_plan(hosted: Any, contrast: ContrastSet | LabelledTexts, note: str = "", **settings: Any) -> None:
    """Print the plan of a run over texts; `settings` are those of `lens_steer.plan`."""
    from lens_steer.activations.plan import plan
    from lens_steer.processes import process_number

    made = plan(hosted, contrast, **settings)
    if process_number() == 0:
        show(made.frame)
        if note:
            say(note)
        say("nothing was written")


def passes_of(method: Any) -> tuple[int, str]:
    """Return about how often a fit passes over its texts, and what the number is."""
    gradients = getattr(getattr(method, "base", method), "most_gradients", None)
    if gradients is None:
        return 1, "one pass over the texts; a causal or layer-choosing fit runs parts of the model again"
    return (
        math.ceil(_PASSES_PER_GRADIENT * gradients),
        f"at most {gradients} gradients, each of one side of the texts; a descent stops when its loss does",
    )


def generation_note(
    hosted: Any, prompts: Sequence[Prompt], *, edits: int, samples: int, max_new_tokens: int, chat: Any
) -> str:
    """Say how long continuations would take, from those of a few prompts."""
    from lens_steer.evaluation.generation import generate

    tried = list(prompts)[:_TRIED]
    began = perf_counter()
    generate(hosted, tried, max_new_tokens=max_new_tokens, chat=chat)
    seconds = (perf_counter() - began) / len(tried)
    count = len(prompts) * samples * edits
    return (
        f"beside it {count:,} continuations of up to {max_new_tokens} tokens: {len(prompts)} prompts, {samples} "
        f"sample(s), {edits} models or edits; {seconds:.3g} s each, measured on {len(tried)}, "
        f"{count * seconds / 60:.3g} minutes"
    )
