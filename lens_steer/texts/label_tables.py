"""Tables with a column of labels per concept, read as one table of texts for many concepts."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lens_steer.errors import ContrastError
from lens_steer.settings import require_settings
from lens_steer.texts.blocks import block_draws, blocks_of, row_hashes
from lens_steer.texts.columns import (
    Columns,
    Threshold,
    cells_of,
    group_names,
    homes_of,
    label_text,
    quoted,
    rows_of,
    sides_by_score,
)
from lens_steer.texts.contrast import ChatFormat, LabelledTexts
from lens_steer.texts.data_sets import is_data_set, read_data_set, table_in_hand
from lens_steer.texts.rows import first_few
from lens_steer.texts.tables import TABLES, decoded, parsed, table_of_records

if TYPE_CHECKING:
    import pandas as pd

MICROWORLD = "microworld"
Values = Mapping[Any, int | bool | None] | None
"""What a label means: 1 (source), 0 (target), None (the text takes no part in that concept)."""
_KNOWN = {"1": 1, "true": 1, "0": 0, "false": 0}


@dataclass(frozen=True)
class _LabelColumns(Columns):
    labels: tuple[str, ...] = ()

    def needed(self, present: Sequence[str], where: str) -> list[str]:
        texts = [self.text] if isinstance(self.text, str) else list(self.text)
        return homes_of([self.prompt, *texts, *self.labels, self.groups], present, where)


def read_labels(
    path_or_name: str | os.PathLike[str] | Any,
    labels: Sequence[str] = (),
    *,
    text: str | tuple[str, str] = "text",
    prompt: str | None = None,
    values: Values = None,
    threshold: Threshold = None,
    groups: str | None = None,
    config: str | None = None,
    name: str | None = None,
    chat: ChatFormat = None,
    n: int | None = None,
    seed: int = 0,
) -> LabelledTexts:
    """Read texts that are labelled for many concepts, one column of labels per concept.

    Parameters
    ----------
    path_or_name:
        A `.csv`, `.tsv`, `.jsonl`, `.ndjson`, `.parquet` or `.json` (a list of records) file, a data set's directory or
        hub name, or such a table in hand (a DataFrame, a `datasets.Dataset`, a list of records). `"microworld"` draws
        `n` texts (600 by default) of the embedded language, labelled for its concepts; there `labels` choose among
        those, all of them when left out.
    labels:
        The columns of labels; each names a concept.
    text, prompt:
        As in `read_contrast`.
    values:
        What a label means, in every column: 1 for the source, 0 for the target, None for a text that takes no part in
        that concept, such as `{"yes": 1, "no": 0, "unsure": None, "": None}`. Labels compare as in `read_contrast`.
        When left out, 1 and 0 (or true and false) are known, and any other value is refused by name.
    threshold:
        The columns hold scores: see `read_contrast`; between two thresholds a text takes no part.
    groups:
        Column of what the texts come from (template, author, document): rows of one group are never parted by a split.
        A blank cell is of no group.
    config, name, chat:
        As in `read_contrast`.
    n, seed:
        Draw so many rows, in whole blocks one after the other but for the last.

    Raises
    ------
    ContrastError
        Columns are missing or named twice; a label that is not mapped (column, label and rows are named); a concept
        without texts of both sides; blank texts; what cannot be read.

    """
    require_settings(read_labels, locals())
    chosen = (labels,) if isinstance(labels, str) else tuple(labels)
    if len(set(chosen)) < len(chosen):
        raise ContrastError(f"labels= names a column twice: {quoted(chosen)}")
    if isinstance(path_or_name, str) and path_or_name == MICROWORLD:
        from lens_steer.microworld.contrasts import labelled_documents

        texts, drawn, concepts = labelled_documents(chosen, n=n, seed=seed)
        return LabelledTexts(tuple(texts), np.array(drawn), concepts, name=name or MICROWORLD, chat=chat)
    if not chosen:
        raise ContrastError("labels= names the columns of labels, one or more")
    if values is not None and threshold is not None:
        raise ContrastError("threshold= is for scores and values= for labels: give one of them")
    columns = _LabelColumns(text=text, prompt=prompt, threshold=threshold, groups=groups, labels=chosen)
    frame, where, stem = _table(path_or_name, columns, config)
    frame = frame.rename(columns=str)
    columns.needed(list(frame.columns), where)
    if frame.empty:
        raise ContrastError(f"{where} has a header and no row")
    rows = rows_of(frame, (prompt, text) if isinstance(text, str) else text, where)
    marks = np.stack([_marks(frame, column, columns, values, where) for column in chosen], axis=1)
    members = None if groups is None else [of or None for of in group_names(frame, groups)]
    keep = np.arange(len(rows))
    if n is not None:
        if not 1 <= n <= len(rows):
            raise ContrastError(f"n is a number of rows, 1 to the {len(rows)} of {where}, not {n}")
        hashes, blocks = row_hashes(rows), blocks_of(rows, *([] if members is None else [members]))
        draws = (block_draws(ids, seed, what, hashes) for ids, what in ((hashes, "row"), (blocks, "block")))
        keep = np.sort(np.lexsort(tuple(draws))[:n])
    return LabelledTexts(
        tuple(rows[row] for row in keep),
        marks[keep],
        chosen,
        groups=None if members is None else tuple(members[row] for row in keep),
        name=name or stem,
        chat=chat,
    )


def _marks(frame: pd.DataFrame, column: str, columns: Columns, values: Values, where: str) -> np.ndarray:
    """Return 1, 0 or -1 per row."""
    if columns.threshold is not None:
        source, target = sides_by_score(cells_of(frame, column), frame.index, columns.threshold, where, column)
        return np.where(source, 1, np.where(target, 0, -1))
    known = _KNOWN if values is None else {label_text(label): meaning for label, meaning in values.items()}
    if wrong := [label for label, meaning in known.items() if meaning not in (0, 1, None)]:
        raise ContrastError(f"values= maps labels to 1, 0 or None, not so {quoted(wrong)}")
    labels = [label_text(cell) for cell in cells_of(frame, column)]
    if unknown := Counter(label for label in labels if label not in known):
        rows = [row for row, label in zip(frame.index, labels, strict=True) if label in unknown]
        listed = ", ".join(f"{label!r} ({count} rows)" for label, count in unknown.most_common(20))
        raise ContrastError(
            f"{where}, column {column!r} holds {listed} beside {quoted(known)}, first in row {first_few(rows)}: say "
            "what it means, values={'...': 1, '...': 0}, or None for texts that take no part"
        )
    return np.array([-1 if known[label] is None else int(known[label] or 0) for label in labels])


def _table(given: Any, columns: Columns, config: str | None) -> tuple[pd.DataFrame, str, str]:
    """Return the rows of a file, a data set or a table in hand, what messages call it, and its name."""
    if isinstance(given, str | os.PathLike):
        return _table_at(os.fspath(given), columns, config)
    if config is not None:
        raise ContrastError("config= is for data sets that are read by name")
    pandas: Any = sys.modules.get("pandas")
    if pandas is not None and isinstance(given, pandas.DataFrame):
        return given, "the DataFrame", "texts"
    if is_data_set(given):
        return table_in_hand(given, columns), "the data set", "texts"
    if isinstance(given, Sequence) and given and all(isinstance(record, Mapping) for record in given):
        return table_of_records(given, range(len(given)), "the list"), "the list of records", "texts"
    raise ContrastError(
        f"labelled texts cannot be read from {type(given).__name__}: give a path, a name, a DataFrame, a "
        "datasets.Dataset or a list of records"
    )


def _table_at(given: str, columns: Columns, config: str | None) -> tuple[pd.DataFrame, str, str]:
    path = Path(given).expanduser()
    if path.is_dir() or not path.exists():
        return read_data_set(given, config, columns), given, given
    if config is not None:
        raise ContrastError(f"config= is for data sets, and {given} is a file")
    suffix = path.suffix.lower()
    if suffix == ".json":
        content = parsed(decoded(path), str(path))
        if not isinstance(content, list):
            raise ContrastError(f"{path} holds no list of records")
        return table_of_records(content, range(1, len(content) + 1), str(path)), given, path.stem
    if suffix not in TABLES:
        raise ContrastError(f"{given}: a table of labels is a {', '.join([*TABLES, '.json'])} file")
    return TABLES[suffix](path), given, path.stem
