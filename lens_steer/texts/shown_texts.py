"""Texts as they show themselves in a notebook: how many, how long, how independent; never the texts themselves."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from lens_steer.texts.blocks import Row, pooled_text
from lens_steer.texts.rows import kind_of

if TYPE_CHECKING:
    import pandas as pd


def shown_sides(sides: Mapping[str, Sequence[Row]], blocks: Int[np.ndarray, " text"]) -> "pd.DataFrame":
    """Return one row per side that has texts: texts, blocks, and their lengths in characters that pools cover."""
    import pandas as pd

    ends = np.cumsum([len(rows) for rows in sides.values()])[:-1]
    rows = []
    for (side, texts), of_side in zip(sides.items(), np.split(blocks, ends), strict=True):
        if texts:
            sizes = [len(pooled_text(text)) for text in texts]
            rows.append((side, len(texts), len(set(of_side.tolist())), min(sizes), int(np.median(sizes)), max(sizes)))
    return pd.DataFrame(rows, columns=["side", "texts", "blocks", "shortest", "median length", "longest"])


def shown_rows(rows: Sequence[Row], groups: Iterable[str | None] | None, chat: object) -> list[tuple[str, object]]:
    """Return what there is to say of rows as a whole."""
    named = {group for group in groups or () if group is not None}
    template = "the tokenizer's template" if chat is True else chat
    return [
        ("rows", f"{kind_of(rows[0])}; lengths in characters"),
        ("groups", f"{len(named):,}" if named else ""),
        ("chat", template),
    ]
