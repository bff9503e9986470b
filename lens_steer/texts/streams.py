"""Streams: labelled texts that are read again whenever they are needed, so that they need not fit into memory.

What is kept of a text is its label and its hashes, some hundred bytes. pyarrow is imported where it is used.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Int8

from lens_steer.errors import ContrastError
from lens_steer.texts.columns import label_text, quoted
from lens_steer.texts.contrast import ChatFormat
from lens_steer.texts.seen import known_forms

_AT_A_TIME = 4096


@dataclass(frozen=True, eq=False)
class TextStream:
    """Texts of one concept that are read row by row, as often as it takes; made by `stream_texts`.

    `records` gives the rows from the first on, each time it is called. Equal texts are one block; of prompts, groups
    and pairs a stream knows nothing. `sides` maps a label to 1 (source) or 0 (target).
    """

    records: Callable[[], Iterable[Mapping[str, Any]]]
    text: str
    label: str
    sides: Callable[[str], int | None]
    name: str
    chat: ChatFormat = None

    def __repr__(self) -> str:
        return f"TextStream({self.name!r})"

    @property
    def concepts(self) -> tuple[str, ...]:
        """The one concept, named like the stream."""
        return (self.name,)

    def rows(self) -> Iterator[str]:
        """The texts, one after the other."""
        return (text for text, _ in self._labelled())

    @property
    def labels(self) -> Int8[np.ndarray, "text 1"]:
        """1 for source, 0 for target."""
        return self._table[0]

    @property
    def forms(self) -> Int[np.ndarray, "text form"]:
        """The hashes by which texts are known again: see `known_forms`."""
        return self._table[1]

    @property
    def data_hash(self) -> str:
        """SHA-256 (hex) of texts, labels and chat, in order."""
        return self._table[2]

    @cached_property
    def blocks(self) -> Int[np.ndarray, " text"]:
        """The number of the block of each text: that of its first copy among the different texts."""
        _, first, block = np.unique(self.forms[:, 0], return_index=True, return_inverse=True)
        blocks: Int[np.ndarray, " text"] = np.argsort(np.argsort(first))[block]
        return blocks

    @cached_property
    def _table(self) -> tuple[Int8[np.ndarray, "text 1"], Int[np.ndarray, "text form"], str]:
        """Labels, hashes, and the hash of all: what one reading of the stream finds."""
        rows = self._labelled()
        labels, forms, digest = [], [], hashlib.sha256(repr(self.chat).encode())
        while part := list(islice(rows, _AT_A_TIME)):
            texts = [text for text, _ in part]
            labels.append(np.array([[label] for _, label in part], dtype=np.int8))
            forms.append(known_forms(texts))
            digest.update(forms[-1][:, 0].tobytes() + labels[-1].tobytes())
        both = np.concatenate(labels) if labels else np.empty((0, 1), dtype=np.int8)
        if missing := [side for side, label in (("source", 1), ("target", 0)) if label not in both]:
            raise ContrastError(f"{self.name} has no {' and no '.join(missing)} text")
        return both, np.concatenate(forms), digest.hexdigest()

    def _labelled(self) -> Iterator[tuple[str, int]]:
        for number, record in enumerate(self.records(), 1):
            where = f"{self.name}, row {number}"
            for column in (self.text, self.label):
                if column not in record:
                    raise ContrastError(f"{where} has no {column!r}; there is {quoted(map(str, record))}")
            text, label = record[self.text], label_text(record[self.label])
            side = self.sides(label)
            if side is None:
                raise ContrastError(
                    f"{where}: the label {label!r} is neither side: give source= (and target=), or leave the row out"
                )
            if not isinstance(text, str) or not text.strip():
                raise ContrastError(f"{where} has no text in {self.text!r}: leave the row out")
            yield text, side


def stream_texts(
    rows: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Any,
    *,
    text: str = "text",
    label: str = "label",
    source: object = None,
    target: object = None,
    chat: ChatFormat = None,
    name: str | None = None,
) -> TextStream:
    """Return labelled texts that are read when they are needed, for `collect(..., reduce="sketch")`.

    Parameters
    ----------
    rows:
        A parquet file or several, read a part at a time; a data set of the `datasets` library, streamed
        (`streaming=True`) or not; or a function that gives the records (mappings) from the first on whenever it is
        called.
    text, label:
        Columns of the texts and of the labels.
    source, target:
        The labels of the two sides. With neither, labels are 0 and 1 (or false and true), and 1 is the source; with one
        of them every other label is the other side.
    chat:
        As in `read_contrast`.
    name:
        What the concept is called; by default after the file.

    Raises
    ------
    ContrastError
        Files cannot be read as parquet; when rows are read: a column is missing, a text is blank, a label is of neither
        side (the row is named, counted from 1), or a side has no text.

    """
    records, called = _records(rows, [text, label])
    return TextStream(records, text, label, _sides(source, target), name or called, chat)


def _sides(source: object, target: object) -> Callable[[str], int | None]:
    known = {side: None if given is None else label_text(given) for side, given in ((1, source), (0, target))}
    if source is None and target is None:
        plain = {"1": 1, "true": 1, "0": 0, "false": 0}
        return plain.get
    if known[1] == known[0]:
        raise ContrastError(f"source and target need different labels, not {known[1]!r} twice")

    def side_of(label: str) -> int | None:
        for side, wanted in known.items():
            if label == wanted:
                return side
        # Every other label is the side that was not named.
        return next((side for side, wanted in known.items() if wanted is None), None) if label else None

    return side_of


def _records(rows: Any, columns: list[str]) -> tuple[Callable[[], Iterable[Mapping[str, Any]]], str]:
    if callable(rows):
        return rows, "stream"
    listed = [rows] if isinstance(rows, str | os.PathLike) else rows
    if isinstance(listed, list | tuple) and listed and all(isinstance(one, str | os.PathLike) for one in listed):
        paths = [Path(one).expanduser() for one in listed]
        return lambda: _parquet(paths, columns), paths[0].stem
    if hasattr(rows, "__iter__") and (hasattr(rows, "features") or hasattr(rows, "column_names")):
        return lambda: rows, "stream"
    raise ContrastError(
        f"texts cannot be streamed from {type(rows).__name__}: give parquet files, a data set of `datasets`, or a "
        "function that returns records"
    )


def _parquet(paths: Sequence[Path], columns: list[str]) -> Iterator[Mapping[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    for path in paths:
        try:
            with parquet.ParquetFile(path) as file:
                present = [column for column in columns if column in file.schema_arrow.names]
                for batch in file.iter_batches(batch_size=_AT_A_TIME, columns=present):
                    yield from batch.to_pylist()
        except (OSError, pyarrow.ArrowException) as error:
            raise ContrastError(f"{path} cannot be read as parquet: {error}") from error
