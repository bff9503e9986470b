"""Showing units: the texts in which a unit is largest, token by token, and its activations in source against target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lens_steer.activations.show_page import page
from lens_steer.activations.shown_unit import ShownUnit, TopText
from lens_steer.directories import replace_file
from lens_steer.display.paper import standalone
from lens_steer.errors import ActivationError, ContrastError, SettingError, SiteError, UnitError
from lens_steer.host.adapter import host_of
from lens_steer.host.guards import require_eval
from lens_steer.host.sites import all_sites, site_at
from lens_steer.host.tokens import TokenBatch, Tokens, tokenize
from lens_steer.host.trunk import Visit, run_texts
from lens_steer.host.units import Unit, UnitsLike, as_units
from lens_steer.settings import require_settings
from lens_steer.texts.contrast import ChatFormat, ContrastSet, LabelledTexts, Row

if TYPE_CHECKING:
    import pandas as pd

_MOST_UNITS = 100  # a page of more is not read, and a whole ranking given by mistake would be
_LONGEST_CHARACTER = 4  # bytes in UTF-8


@dataclass(frozen=True, eq=False)
class UnitView:
    """Chosen units with their top texts: displayed in Jupyter as static HTML (no script, nothing loaded)."""

    units: tuple[ShownUnit, ...]

    def __repr__(self) -> str:
        return f"UnitView({', '.join(str(shown.unit) for shown in self.units)})"

    @property
    def frame(self) -> pd.DataFrame:
        """The shown tokens, one row each.

        Columns: unit, rank (0 for the text with the largest activation), text (its row), side, position (BOS counts),
        token, value (the unit's activation there), pooled (False for special tokens and prompts).
        """
        import pandas as pd

        rows = [
            (str(shown.unit), rank, text.row, text.side, text.start + place, token, value, pooled)
            for shown in self.units
            for rank, text in enumerate(shown.top)
            for place, (token, value, pooled) in enumerate(
                zip(text.tokens, text.values.tolist(), text.pooled, strict=True)
            )
        ]
        names = ["unit", "rank", "text", "side", "position", "token", "value", "pooled"]
        return pd.DataFrame(rows, columns=names)

    def _repr_html_(self) -> str:
        return page(self.units)

    def save(self, path: str | Path) -> Path:
        """Write one self-contained HTML file, in place of what bears its name."""
        replace_file(Path(path), lambda place: _write(place, standalone("Units", self._repr_html_())))
        return Path(path)


def _write(place: Path, text: str) -> None:
    place.write_text(text, encoding="utf-8")


def show_units(
    model: nn.Module,
    texts: ContrastSet | LabelledTexts | Sequence[Row],
    units: UnitsLike,
    *,
    top: int = 5,
    max_tokens: int = 60,
    batch_size: int | None = None,
) -> UnitView:
    """Show where units are active: top texts with coloured tokens, and the largest activation per text by side.

    Parameters
    ----------
    model:
        A TransformerLens model. Interventions that are attached to it take part.
    texts:
        A contrast, texts with labels (sides are told apart for one concept), or a list of texts or pairs.
    units:
        Whatever `as_units` takes, such as `experts.top(3)`; at most 100.
    top:
        Texts per unit, by their largest activation over the tokens that a pool reads (no special token, no prompt).
    max_tokens:
        Longer texts are shown around their largest activation.
    batch_size:
        Texts per batch; chosen by length when None.

    Raises
    ------
    UnitError, SiteError
        A unit does not exist in this model, or there are more than 100.
    ContrastError, TokenError, SettingError
        There is no text, a text has no token, `top` or `max_tokens` is below 1.
    ActivationError
        A value is not finite.

    """
    require_settings(show_units, locals())
    require_eval(model)
    if min(top, max_tokens) < 1:
        raise SettingError(f"top and max_tokens are 1 or more, not {top} and {max_tokens}")
    rows, sides, chat = _rows_and_sides(texts)
    chosen = _units_of(model, units)
    tokens = tokenize(model, rows, chat=chat)
    values = _token_values(model, tokens, chosen, batch_size)
    about = {"tokenizer": host_of(model).tokenizer, "top": top, "max_tokens": max_tokens}
    shown = (
        _shown(unit, tokens, [text[:, column] for text in values], sides, **about) for column, unit in enumerate(chosen)
    )
    return UnitView(tuple(shown))


def _rows_and_sides(
    texts: ContrastSet | LabelledTexts | Sequence[Row],
) -> tuple[Sequence[Row], tuple[str | None, ...], ChatFormat]:
    if isinstance(texts, str) or (not isinstance(texts, ContrastSet | LabelledTexts) and len(texts) == 0):
        raise ContrastError("show_units needs a contrast or a list of texts; write a single text as [text]")
    labelled = texts.labelled if isinstance(texts, ContrastSet) else texts
    if not isinstance(labelled, LabelledTexts):
        return labelled, (None,) * len(labelled), None
    if len(labelled.concepts) > 1:
        return labelled.texts, (None,) * len(labelled.texts), labelled.chat
    names = {1: "source", 0: "target"}
    return labelled.texts, tuple(names.get(int(label)) for label in labelled.labels[:, 0]), labelled.chat


def _units_of(model: nn.Module, units: UnitsLike) -> tuple[Unit, ...]:
    """The units, each once, at this model's own sites."""
    listed = dict.fromkeys(as_units(units, sites=all_sites(model)))
    if len(listed) > _MOST_UNITS:
        raise UnitError(f"{len(listed)} units are too many to look at: give at most {_MOST_UNITS}, such as .top(3)")
    here = {site: site_at(host_of(model), site.name) for site in {unit.site for unit in listed}}
    for site, actual in here.items():
        if actual.width != site.width:
            raise SiteError(f"{site.name} has {actual.width} units in this model, the list of units says {site.width}")
    return tuple(Unit(here[unit.site], unit.index) for unit in listed)


def _token_values(model: nn.Module, tokens: Tokens, units: Sequence[Unit], batch_size: int | None) -> list[Tensor]:
    """Run every text once and keep the chosen units' values at every token: per text [pos, unit]."""
    values = [torch.full((length, len(units)), torch.nan) for length in tokens.lengths]

    def reader(columns: list[int], indices: list[int]) -> Visit:
        def read(activation: Tensor, batch: TokenBatch) -> None:
            kept = activation[..., indices].float().cpu()
            for place, row in enumerate(batch.rows):
                values[row][:, columns] = kept[place, : len(values[row])]

        return read

    visits = {}
    for site in dict.fromkeys(unit.site for unit in units):
        columns = [column for column, unit in enumerate(units) if unit.site == site]
        visits[site] = reader(columns, [units[column].index for column in columns])
    run_texts(model, tokens, visits, batch_size)
    for row, text in enumerate(values):
        if len(bad := (~torch.isfinite(text)).nonzero()):
            token, column = bad[0].tolist()
            raise ActivationError(f"{units[column]} is {float(text[token, column])} at token {token} of text {row}")
    return values


def _shown(
    unit: Unit,
    tokens: Tokens,
    values: list[Tensor],
    sides: tuple[str | None, ...],
    *,
    tokenizer: Any,
    top: int,
    max_tokens: int,
) -> ShownUnit:
    read = [text[torch.tensor(pooled)] for text, pooled in zip(values, tokens.pooled, strict=True)]
    largest = torch.stack([text.max() for text in read])
    texts = []
    for row in sorted(range(len(values)), key=lambda row: -float(largest[row]))[:top]:
        length, pooled = len(values[row]), torch.tensor(tokens.pooled[row])
        peak = int(values[row].masked_fill(~pooled, -torch.inf).argmax())
        start = max(0, min(peak - max_tokens * 2 // 3, length - max_tokens))
        part = slice(start, start + max_tokens)
        pieces = token_texts(tokenizer, tokens.ids[row][part])
        around = (pieces, tokens.pooled[row][part], values[row][part])
        texts.append(TopText(row, sides[row], float(largest[row]), start, length, *around))
    every = torch.cat(read)
    return ShownUnit(unit, largest, sides, float(every.min()), float(every.max()), tuple(texts))


def token_texts(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...]:
    """Return the part of the text that each token adds; a token that ends inside a character adds an empty one."""
    pieces: list[str] = []
    before, waiting = "", 0
    for count, token in enumerate(ids, start=1):
        decoded = tokenizer.decode(list(ids[:count]), clean_up_tokenization_spaces=False).rstrip("\ufffd")
        if decoded.startswith(before):
            pieces.append(decoded.removeprefix(before))
        elif waiting < _LONGEST_CHARACTER:  # byte tokens: an unfinished character can take finished ones with it
            pieces.append("")
            waiting += 1
            continue
        else:
            pieces.append(tokenizer.decode([token]))
        before, waiting = decoded, 0
    return tuple(pieces)
