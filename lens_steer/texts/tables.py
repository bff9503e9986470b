"""Tables: files of rows, and what else holds rows, as pandas frames whose index counts the rows as the file does.

Nothing is unpickled. pandas is imported where it is used.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lens_steer.errors import ContrastError
from lens_steer.texts.contrast import first_few

if TYPE_CHECKING:
    import pandas as pd


def decoded(path: Path) -> str:
    """Return the text of a UTF-8 file, without a byte order mark; ContrastError where it is none, or is empty."""
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ContrastError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ContrastError(f"{path} is not UTF-8 (line {line}: {error.reason}); save it as UTF-8") from error
    if not content.strip():
        raise ContrastError(f"{path} is empty")
    return content


def parsed(content: str, where: str) -> Any:
    """Return what a text of JSON says."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ContrastError(f"{where} is not JSON: {error}") from error


def table_of_records(records: Sequence[Any], rows: Sequence[int], where: str, row_word: str = "row") -> pd.DataFrame:
    """Return the table of a list of JSON objects."""
    import pandas as pd

    if not records:
        raise ContrastError(f"{where} is empty")
    if other := [row for row, record in zip(rows, records) if not isinstance(record, Mapping)]:
        raise ContrastError(f"{where} must hold JSON objects only; there is none in {row_word} {first_few(other)}")
    return pd.DataFrame(list(records), index=list(rows), dtype=object)


def _read_csv(path: Path) -> pd.DataFrame:
    return _numbered(_cells(decoded(path), path, ",", csv.QUOTE_MINIMAL), path, ",")


def _read_tsv(path: Path) -> pd.DataFrame:
    """A tsv is mostly written without quotes: they mean something only where its writer has quoted."""
    content = decoded(path)
    if '"' in content and (quoted := _as_quoted(content, path)) is not None:
        if broken := [row for row, *cells in quoted.itertuples() if any(set("\t\n\r") & set(cell) for cell in cells)]:
            raise ContrastError(
                f"{path}, row {first_few([row + 2 for row in broken])}: quotes around a tab or a line break, or texts "
                "that begin and end with a quote; nothing tells which: save the table as .csv or .jsonl"
            )
        return _numbered(quoted, path, "\t")
    return _numbered(_cells(content, path, "\t", csv.QUOTE_NONE), path, "\t")


def _as_quoted(content: str, path: Path) -> pd.DataFrame | None:
    """The table as a quoting writer would have written it to the character; None where none has."""
    try:
        frame = _cells(content, path, "\t", csv.QUOTE_MINIMAL)
    except ContrastError:
        return None
    plain = content.replace("\r\n", "\n").removesuffix("\n")
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
        if frame.to_csv(sep="\t", index=False, quoting=quoting, lineterminator="\n").removesuffix("\n") == plain:
            return frame
    return None


def _cells(content: str, path: Path, mark: str, quoting: Literal[0, 1, 2, 3]) -> pd.DataFrame:
    """Every cell a str, so that a text "NA" or "1" stays one."""
    import pandas as pd

    try:
        frame: pd.DataFrame = pd.read_csv(
            io.StringIO(content),
            sep=mark,
            dtype=str,
            keep_default_na=False,
            skip_blank_lines=False,
            quoting=quoting,
        )
    except ValueError as error:
        raise ContrastError(f"{path} cannot be read as a table: {error}") from error
    return frame


def _numbered(frame: pd.DataFrame, path: Path, mark: str) -> pd.DataFrame:
    """Rows without any content are skipped; the header is row 1."""
    import pandas as pd

    if not isinstance(frame.index, pd.RangeIndex):
        raise ContrastError(f"{path} has rows with more cells than its header; quote the texts that hold {mark!r}")
    frame = frame.set_axis(range(2, len(frame) + 2))
    return frame[(frame != "").any(axis=1)]


def _read_lines(path: Path) -> pd.DataFrame:
    """A JSON object per line; blank lines are skipped."""
    lines = {number: line for number, line in enumerate(decoded(path).split("\n"), 1) if line.strip()}
    records = [parsed(line, f"{path}, line {number}") for number, line in lines.items()]
    return table_of_records(records, list(lines), str(path), "line")


def _read_parquet(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        frame = pd.read_parquet(path, engine="pyarrow")
    except (OSError, ValueError) as error:
        raise ContrastError(f"{path} cannot be read as parquet: {error}") from error
    return frame.set_axis(range(1, len(frame) + 1))


TABLES: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_lines,
    ".ndjson": _read_lines,
    ".parquet": _read_parquet,
}
