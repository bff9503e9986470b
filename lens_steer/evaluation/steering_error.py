"""The steering error of a hosted model: its next words, with and without an edit, against the microworld's law."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from numpy import ndarray
from scipy import stats
from torch import nn

from lens_steer.display.shown_result import shown_result
from lens_steer.errors import ModelError, SettingError
from lens_steer.host.adapter import host_of
from lens_steer.host.attach import edited
from lens_steer.host.tokens import Tokens, pad_id
from lens_steer.host.trunk import text_logits
from lens_steer.interventions.intervention import Intervention
from lens_steer.microworld.english import english
from lens_steer.microworld.steering import SteeringError, SteeringTask
from lens_steer.settings import require_settings
from lens_steer.statistics.verdict import verdict_of

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class SteeringErrors:
    """The steering error of the model as it is (`before`) and of the edited one (`after`; the same without an edit)."""

    before: SteeringError
    after: SteeringError

    @property
    def nats(self) -> float:
        """KL(grammar given the attributes || edited model), in nats per token."""
        return self.after.nats.mean

    @property
    def ungrammatical(self) -> float:
        """The probability that the edited model gives to next tokens that no grammatical text has there."""
        return self.after.ungrammatical.mean

    @property
    def frame(self) -> pd.DataFrame:
        """Per measure (nats, ungrammatical): both means, their standard errors, and the change with its own.

        Columns: measure, before, before_se, after, after_se, change, change_se (paired: both speakers go through the
        same documents, so it is far smaller than those of the means say), low, high (95 % interval of the change),
        verdict, prefixes, documents.
        """
        import pandas as pd

        rows = []
        for measure in ("nats", "ungrammatical"):
            old, new = getattr(self.before, measure), getattr(self.after, measure)
            change, error = new.mean - old.mean, new.change_error(old)
            half = float(stats.t.ppf(0.975, self.after.documents - 1)) * error
            rows.append(
                {
                    "measure": measure,
                    "before": old.mean,
                    "before_se": old.standard_error,
                    "after": new.mean,
                    "after_se": new.standard_error,
                    "change": change,
                    "change_se": error,
                    "low": change - half,
                    "high": change + half,
                    "verdict": verdict_of(change - half, change + half).value,
                    "prefixes": self.after.prefixes,
                    "documents": self.after.documents,
                }
            )
        return pd.DataFrame(rows)

    def _repr_html_(self) -> str:
        heading = f"Steering errors: {self.nats:.3g} nats per token, {self.ungrammatical:.2%} ungrammatical"
        return shown_result(heading, table=self.frame)


def steering_error(
    model: nn.Module,
    *,
    given: Mapping[str, str],
    intervention: Intervention | None = None,
    strength: float = 1.0,
    n: int = 128,
    seed: int = 0,
    batch_size: int = 16,
) -> SteeringErrors:
    """Measure how far a model is from the grammar given the attributes that an edit should bring about.

    The mean of KL(grammar given the attributes || model), in nats per token, over every beginning of `n` documents
    drawn with them; beside it the probability on ungrammatical next tokens; both without the edit as well, on the same
    documents. Finite for every model whose logits are.

    Parameters
    ----------
    model:
        A model of the microworld, `load_model("microworld")` or a sibling that was trained on it.
    given:
        The target's attributes, such as `{"register": "plain"}`.
    intervention, strength:
        The edit, and how much of it. Each document is a plain text, as in `perplexity`: an edit of generated tokens
        acts on everything behind BOS, and one for prompts is refused.
    n, seed:
        Documents, two or more, and the seed that draws them.
    batch_size:
        Documents per forward pass; one pass gives the next words of all their beginnings.

    Raises
    ------
    ModelError
        The model speaks another vocabulary, or its logits are not finite.
    SettingError
        A batch size below 1, or an edit with the scope `prompt`.
    MicroworldError
        There is no such attribute or value, or fewer than two documents.

    """
    require_settings(steering_error, locals())
    host = host_of(model)
    _require_vocabulary(host.tokenizer)
    if batch_size < 1:
        raise SettingError(f"batch_size must be 1 or more, not {batch_size}")
    task = SteeringTask.draw(given, n=n, seed=seed)

    def next_log_probs(documents: Sequence[Sequence[int]]) -> list[Float[ndarray, "_ word"]]:
        ids = tuple(tuple(document) for document in documents)
        tokens = Tokens(ids, tuple((True,) * len(document) for document in ids), pad_id(host.tokenizer))
        batch = tokens.batch(range(len(ids))).to(host.device)
        logits = text_logits(model, batch).double()
        if not bool(logits[batch.mask].isfinite().all()):
            raise ModelError("the model's logits are not finite: it overflows, or an edit of this strength makes it")
        logs = logits.log_softmax(-1).cpu().numpy()
        return [row[: len(document)] for row, document in zip(logs, ids, strict=True)]

    def measure(edit: Intervention | None) -> SteeringError:
        with torch.no_grad(), edited(model, edit, strength):
            return task.error(next_log_probs, batch_size=batch_size)

    before = measure(None)
    return SteeringErrors(before, before if intervention is None else measure(intervention))


def _require_vocabulary(tokenizer: Any) -> None:
    vocabulary = tokenizer.get_vocab()
    if vocabulary != english().ids:
        raise ModelError(
            f"the steering error is known for models of the microworld's {len(english().words)} words only, and this "
            f'one has {len(vocabulary)} others: use load_model("microworld") or a model that '
            "`python -m tools.microworld.train` has trained"
        )
