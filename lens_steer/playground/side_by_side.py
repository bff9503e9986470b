"""One prompt continued twice, as the model is and under edits: both texts, what the edits write, the words behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Unpack

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lens_steer.activations.show import token_texts
from lens_steer.errors import SettingError
from lens_steer.host.adapter import host_of
from lens_steer.host.decode import Decoding, Sampling, decode
from lens_steer.host.prompts import Prompt, prompt_tokens
from lens_steer.host.scope import Scope, ScopeName, special_ids
from lens_steer.host.sites import Site, all_sites
from lens_steer.host.tokens import TokenBatch, Tokens
from lens_steer.host.trunk import as_hook, text_logits
from lens_steer.host.turns import taking_turns
from lens_steer.host.units import Unit, UnitsLike, as_units
from lens_steer.interventions.intervention import Intervention
from lens_steer.texts.contrast import ChatFormat

if TYPE_CHECKING:
    import pandas as pd

_WORDS = 5  # of each law


@dataclass(frozen=True)
class NextWord:
    """A token that may come next: its probability as the model is, and under the edits, behind the same tokens."""

    text: str
    before: float
    after: float


@dataclass(frozen=True)
class Passage:
    """A prompt and its continuation, token by token.

    Attributes
    ----------
    tokens:
        The part of the text that each adds.
    prompt:
        How many of them are the prompt's, BOS included.
    special:
        Whether a token is a special one, such as BOS.
    colours:
        Name of what is measured -> its value at every token: "write of NAME at SITE" is the norm of the change that
        the edit makes there (0 in the unedited text), a unit's name its value.
    next_words:
        Behind every token, the likeliest next ones with and without the edits, likeliest first.

    """

    tokens: tuple[str, ...]
    prompt: int
    special: tuple[bool, ...]
    colours: Mapping[str, tuple[float, ...]]
    next_words: tuple[tuple[NextWord, ...], ...]

    @property
    def continuation(self) -> str:
        """The text behind the prompt."""
        return "".join(self.tokens[self.prompt :])


@dataclass(frozen=True)
class SideBySide:
    """A prompt continued as the model is (`before`) and under edits (`after`), with the same random stream."""

    before: Passage
    after: Passage
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def frame(self) -> pd.DataFrame:
        """One row per token and measure: side, position, token, generated, measure, value."""
        import pandas as pd

        rows = [
            (side, position, passage.tokens[position], position >= passage.prompt, name, value)
            for side, passage in (("before", self.before), ("after", self.after))
            for name, values in passage.colours.items()
            for position, value in enumerate(values)
        ]
        return pd.DataFrame(rows, columns=["side", "position", "token", "generated", "measure", "value"])

    def _repr_html_(self) -> str:
        from lens_steer.playground.page import side_by_side_html

        return side_by_side_html(self)


def continue_both(
    model: nn.Module,
    edits: Mapping[str, Intervention],
    prompt: Prompt,
    *,
    strengths: Mapping[str, float],
    scope: Scope | ScopeName | None = None,
    units: UnitsLike = (),
    chat: ChatFormat = None,
    **sampling: Unpack[Sampling],
) -> SideBySide:
    """Continue a prompt without and with edits, which act in their order, each at its strength.

    The texts are those of `generate` with the same settings. Both are then run once more, whole, without and with the
    edits, which know where the prompt ends: that is where writes, unit values and next words are read. At strength 0 of
    all edits the two are equal, and every write is 0.

    Parameters
    ----------
    model, edits:
        A TransformerLens model, and its edits by name.
    prompt, chat, sampling:
        As for `generate`.
    strengths:
        Name of an edit -> how much of it; 0 where it is left out.
    scope:
        For which tokens all edits act, in place of their own scopes.
    units:
        Units whose values are read too: whatever `ablate` takes.

    Raises
    ------
    SettingError, TokenError
        As `generate`; a strength for no edit.
    MapError, SiteError, ArtifactError
        The scope leaves nothing of an edit; as `Intervention.on`.

    """
    if strange := strengths.keys() - edits.keys():
        raise SettingError(f"there is no edit {sorted(strange)[0]!r}; there are {', '.join(edits)}")
    decoding, host = Decoding(**sampling), host_of(model)
    prompts = prompt_tokens(model, [prompt], chat, decoding.max_new_tokens)
    shown = units_of(model, units)
    acting = {
        name: (edit if scope is None else edit.scoped(scope), strengths[name])
        for name, edit in edits.items()
        if strengths.get(name, 0.0) != 0.0
    }
    (ids,) = prompts.ids
    with torch.no_grad(), taking_turns(model):
        (new_before,) = decode(model, [ids], decoding, rows=[0])
        with _edited(model, acting):
            (new_after,) = decode(model, [ids], decoding, rows=[0]) if acting else (new_before,)

        def passage(new: Sequence[int], *, is_edited: bool) -> Passage:
            whole = (*ids, *new)
            batch = Tokens((whole,), ((True,) * len(whole),), prompts.pad_id, (len(ids),)).batch([0]).to(host.device)
            with _reading(model, shown) as values:
                laws = [_law(model, batch)]
            with _edited(model, acting) as writes, _reading(model, shown) as edited_values:
                laws.append(_law(model, batch))
            nothing = (0.0,) * len(whole)
            colours = {
                f"write of {name} at {site.name}": writes.get((name, site), nothing) if is_edited else nothing
                for name, edit in edits.items()
                for site in edit.sites
            } | (edited_values if is_edited else values)
            special = special_ids(host.tokenizer)
            return Passage(
                token_texts(host.tokenizer, whole),
                len(ids),
                tuple(token in special for token in whole),
                colours,
                _next_words(host.tokenizer, *laws),
            )

        before, after = passage(new_before, is_edited=False), passage(new_after, is_edited=True)
    return SideBySide(before, after, {"strengths": dict(strengths), "scope": scope and str(scope), **sampling})


def units_of(model: nn.Module, units: UnitsLike) -> tuple[Unit, ...]:
    """Return units at this model's own sites; none for an empty list. Errors as `show_units`."""
    empty = isinstance(units, Sequence) and not len(units)
    return () if empty else as_units(units, sites=all_sites(model))


def _law(model: nn.Module, batch: TokenBatch) -> Float[Tensor, "pos vocab"]:
    return text_logits(model, batch)[0].float().softmax(-1).cpu()


@contextmanager
def _edited(
    model: nn.Module, acting: Mapping[str, tuple[Intervention, float]]
) -> Iterator[dict[tuple[str, Site], tuple[float, ...]]]:
    """Edit the model, one edit behind the other; give the norms of what each changed at its sites in the last pass."""
    host = host_of(model)
    norms: dict[tuple[str, Site], tuple[float, ...]] = {}
    values: dict[tuple[str, Site], Tensor] = {}

    def keep(key: tuple[str, Site]) -> Callable[[Tensor], None]:
        return lambda flat: values.__setitem__(key, flat)

    def compare(key: tuple[str, Site]) -> Callable[[Tensor], None]:
        return lambda flat: norms.__setitem__(key, tuple((flat - values[key]).float().norm(dim=-1)[0].tolist()))

    with ExitStack() as stack:
        for name, (edit, strength) in acting.items():
            keys = [(name, site) for site in edit.sites]
            stack.enter_context(host.hooks([(key[1].name, as_hook(keep(key))) for key in keys]))
            stack.enter_context(edit.on(model, strength))
            stack.enter_context(host.hooks([(key[1].name, as_hook(compare(key))) for key in keys]))
        yield norms


@contextmanager
def _reading(model: nn.Module, units: Sequence[Unit]) -> Iterator[dict[str, tuple[float, ...]]]:
    """Give the values of units at every token of the last pass."""
    values: dict[str, tuple[float, ...]] = {}

    def read(unit: Unit) -> Callable[[Tensor], None]:
        return lambda flat: values.__setitem__(str(unit), tuple(flat[0, :, unit.index].float().tolist()))

    with host_of(model).hooks([(unit.site.name, as_hook(read(unit))) for unit in units]):
        yield values


def _next_words(
    tokenizer: Any, before: Float[Tensor, "pos vocab"], after: Float[Tensor, "pos vocab"]
) -> tuple[tuple[NextWord, ...], ...]:
    """Return the likeliest tokens of either law at every position."""
    behind = []
    for old, new in zip(before, after, strict=True):
        likely = {*old.topk(min(_WORDS, len(old))).indices.tolist(), *new.topk(min(_WORDS, len(new))).indices.tolist()}
        words = [NextWord(tokenizer.decode([word]), float(old[word]), float(new[word])) for word in likely]
        behind.append(tuple(sorted(words, key=lambda word: (-max(word.before, word.after), word.text))))
    return tuple(behind)
