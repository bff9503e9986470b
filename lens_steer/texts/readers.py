"""Reading contrasts: tables, concept files, pairs of text files, the microworld and data sets.

Readers only find rows and sides; what makes a contrast is decided in `lens_steer.texts.contrast`. Nothing is unpickled
and no remote code runs. pandas and datasets are imported where they are used.
"""

import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lens_steer.errors import ContrastError
from lens_steer.texts.contrast import ChatFormat, ContrastSet, Row, first_few

if TYPE_CHECKING:
    import pandas as pd

Labels = str | int | float | Sequence[str | int | float] | None
FilePath = str | os.PathLike[str]

PICKLES = {".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".bin"}
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
WHOLE_NUMBER = re.compile(r"(-?(?:0|[1-9][0-9]*))(?:\.0+)?")


@dataclass(frozen=True)
class _Columns:
    """Where a table holds texts, labels and subgroups, and which labels are which side."""

    text: str | tuple[str, str] = "text"
    label: str = "label"
    source: Labels = None
    target: Labels = None
    groups: str | None = None

    def needed(self, present: Sequence[str], where: str) -> list[str]:
        """The columns to read; raises where one is absent."""
        texts = [self.text] if isinstance(self.text, str) else self.text
        needed = dict.fromkeys([*texts, self.label, *([self.groups] if self.groups is not None else [])])
        if absent := [column for column in needed if column not in present]:
            raise ContrastError(f"{where} has no column {_quoted(absent)}; its columns are {_quoted(present)}")
        return list(needed)

    def refuse(self, what: str) -> None:
        """Raise where columns or labels were chosen for something that has none."""
        if self != _Columns():
            unused = "text=, label=, source=, target= and groups= do not apply"
            raise ContrastError(f"{what} has no columns: {unused}; for the other direction call .swap() on the result")


def read_contrast(
    path_or_name: FilePath | tuple[FilePath, FilePath],
    *,
    text: str | tuple[str, str] = "text",
    label: str = "label",
    source: Labels = None,
    target: Labels = None,
    groups: str | None = None,
    chat: ChatFormat = None,
    n: int | None = None,
    seed: int = 0,
) -> ContrastSet:
    """Read a contrast from a file, two text files, the microworld or a data set.

    - `.csv`, `.tsv`, `.jsonl`, `.ndjson`, `.parquet`: columns of texts (or of prompts and completions) and of labels.
    - `.json`: `{"concept": ..., "sentences": {"positive": [...], "negative": [...]}}`; positive is the source.
    - `(source_path, target_path)`: two text files, one text per line.
    - `"microworld:NAME"`: a contrast of the embedded language.
    - anything else: a directory or a hub name of a data set; its split is `train`, or that of `"name:split"`.

    `source` and `target` are labels or lists of labels. Where one is given, the other side is every other label; with
    both, further rows are left out; with neither, labels must be 0 and 1 (or false and true), and 1 is the source.
    Labels compare as text: 1, 1.0 and "1" are one label, True and "true" another, "01" is not "1".
    `groups` is a column kept as the subgroup of each row. `n` draws that many rows per side with `seed`.

    Refused (`ContrastError`): files, columns or labels that are missing, blank texts (a message counts rows as the file
    does, a header being row 1), text that is not UTF-8, pickles.
    """
    columns = _Columns(text, label, source, target, groups)
    if isinstance(path_or_name, tuple):
        columns.refuse("a pair of text files")
        contrast = _read_pair(path_or_name, chat)
    elif str(path_or_name).startswith("microworld:"):
        columns.refuse("the microworld")
        return _read_microworld(str(path_or_name), chat, n, seed)
    else:
        contrast = _read_one(str(path_or_name), columns, chat)
    return contrast if n is None else contrast.subsample(n, seed)


def _read_one(name: str, columns: _Columns, chat: ChatFormat) -> ContrastSet:
    """A file, by its suffix, else a data set."""
    path = Path(name).expanduser()
    suffix = path.suffix.lower()
    if suffix in PICKLES:
        raise ContrastError(f"{name}: {suffix} files can run code when opened, so none is; save the texts as .csv")
    if path.is_dir() or not path.exists():
        return _from_table(_read_data_set(name, columns), columns, name, name, chat)
    if suffix == ".json":
        columns.refuse(f"a concept file ({name})")
        return _read_concept(path, chat)
    if suffix not in TABLES:
        known = f"{', '.join(TABLES)}, .json (a concept), (source_path, target_path) for two text files"
        raise ContrastError(f"{name}: {suffix or 'a file without a suffix'} cannot be read; there is {known}")
    return _from_table(TABLES[suffix](path), columns, name, path.stem, chat)


def _read_pair(paths: tuple[FilePath, FilePath], chat: ChatFormat) -> ContrastSet:
    """Two text files, one text per line."""
    source, target = (Path(path).expanduser() for path in paths)
    if other := [path for path in (source, target) if path.suffix.lower() in {*PICKLES, *TABLES, ".json"}]:
        raise ContrastError(f"{first_few(other)}: a pair is two files of one text per line")
    sides = [_decoded(path).replace("\r\n", "\n").removesuffix("\n").split("\n") for path in (source, target)]
    for path, rows in zip((source, target), sides):
        _refuse_blank(rows, f"{path}, line")
    return ContrastSet(*sides, name=f"{source.stem} vs {target.stem}", chat=chat)


def _read_microworld(name: str, chat: ChatFormat, n: int | None, seed: int) -> ContrastSet:
    from lens_steer.microworld.contrasts import named_contrast

    source, target = named_contrast(name.removeprefix("microworld:"), n=n, seed=seed)
    return ContrastSet(source, target, name=name, chat=chat)


def _read_concept(path: Path, chat: ChatFormat) -> ContrastSet:
    """A concept file; its positive sentences are the source."""
    content = _parsed(_decoded(path), str(path))
    try:
        sides = {side: content["sentences"][side] for side in ("positive", "negative")}
        if not all(isinstance(rows, list) for rows in sides.values()):
            raise TypeError("sentences must be lists")
    except (LookupError, TypeError) as error:
        form = '{"sentences": {"positive": [...], "negative": [...]}}'
        raise ContrastError(f"{path} is not a concept file, {form}; save a table as .jsonl") from error
    for side, rows in sides.items():
        _refuse_blank(rows, f"{path}, {side} sentence")
    return ContrastSet(*sides.values(), name=str(content.get("concept", path.stem)), chat=chat)


def _read_separated(path: Path) -> "pd.DataFrame":
    """A csv or tsv, every cell a str, so that a text "NA" or "1" stays one; rows without any content are skipped."""
    import pandas as pd

    content, mark = io.StringIO(_decoded(path)), "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        frame = pd.read_csv(content, sep=mark, dtype=str, keep_default_na=False, skip_blank_lines=False)
    except ValueError as error:
        raise ContrastError(f"{path} cannot be read as a table: {error}") from error
    if not isinstance(frame.index, pd.RangeIndex):
        raise ContrastError(f"{path} has rows with more cells than its header; quote the texts that hold {mark!r}")
    frame = frame.set_axis(range(2, len(frame) + 2))
    return frame[(frame != "").any(axis=1)]


def _read_lines(path: Path) -> "pd.DataFrame":
    """A JSON object per line; blank lines are skipped."""
    import pandas as pd

    lines = {number: line for number, line in enumerate(_decoded(path).split("\n"), 1) if line.strip()}
    records = {number: _parsed(line, f"{path}, line {number}") for number, line in lines.items()}
    if other := [number for number, record in records.items() if not isinstance(record, dict)]:
        raise ContrastError(f"{path} must hold a JSON object per line; there is none in line {first_few(other)}")
    return pd.DataFrame(list(records.values()), index=list(records), dtype=object)


def _read_parquet(path: Path) -> "pd.DataFrame":
    import pandas as pd

    try:
        frame = pd.read_parquet(path, engine="pyarrow")
    except (OSError, ValueError) as error:
        raise ContrastError(f"{path} cannot be read as parquet: {error}") from error
    return frame.set_axis(range(1, len(frame) + 1))


TABLES: dict[str, Callable[[Path], "pd.DataFrame"]] = {".parquet": _read_parquet}
TABLES |= dict.fromkeys((".csv", ".tsv"), _read_separated) | dict.fromkeys((".jsonl", ".ndjson"), _read_lines)


def _read_data_set(name: str, columns: _Columns) -> "pd.DataFrame":
    """A split of a data set: saved by datasets in a directory, a directory of data files, or on the hub."""
    place, _, split = (name, "", "") if Path(name).expanduser().is_dir() else name.partition(":")
    path = Path(place).expanduser()
    if not path.is_dir() and (not HUB_NAME.fullmatch(place) or path.suffix in {*TABLES, ".json", ".txt"}):
        raise ContrastError(f"no such file or directory: {place}")
    import datasets

    try:
        if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            found = datasets.load_from_disk(str(path))
        else:
            found = datasets.load_dataset(str(path) if path.is_dir() else place)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        what = "this data set cannot be read" if path.is_dir() else "no such file, and no such data set within reach"
        raise ContrastError(f"{name}: {what} ({error})") from error
    splits = found if isinstance(found, dict) else {str(found.split or split or "train"): found}
    split = split or ("train" if isinstance(found, dict) else next(iter(splits)))
    if split not in splits:
        raise ContrastError(f"{place} has no split {split!r}; there is {_quoted(splits)}; ask for one as 'name:split'")
    needed = columns.needed(splits[split].column_names, name)
    frame: pd.DataFrame = splits[split].select_columns(needed).to_pandas()
    return frame.set_axis(range(1, len(frame) + 1))


def _from_table(frame: "pd.DataFrame", columns: _Columns, where: str, name: str, chat: ChatFormat) -> ContrastSet:
    """The contrast of a table whose index counts its rows as the file does."""
    columns.needed([str(column) for column in frame.columns], where)
    labels = [_label(value) for value in _cells(frame, columns.label)]
    sides = _side_labels(Counter(filter(None, labels)), columns, f"{where}, column {columns.label!r}")
    blank = [row for row, label in zip(frame.index, labels) if not label]
    if blank and (columns.source is None or columns.target is None):
        raise ContrastError(f"{where} has no {columns.label!r} in row {first_few(blank)}; take these rows out")
    _texts(frame[[label in sides[0] | sides[1] for label in labels]], columns, where)  # names bad rows of both sides
    parts = [frame[[label in side for label in labels]] for side in sides]
    texts = [_texts(part, columns, where) for part in parts]
    groups: list[list[str] | None] = [None, None]
    if columns.groups is not None:
        cells = [_cells(part, columns.groups) for part in parts]
        groups = [[value if isinstance(value, str) else _label(value) for value in part] for part in cells]
    return ContrastSet(*texts, name=name, source_groups=groups[0], target_groups=groups[1], chat=chat)


def _texts(frame: "pd.DataFrame", columns: _Columns, where: str) -> list[Row]:
    """The texts or pairs of some rows; a prompt may be blank, a text or completion not."""
    names = [columns.text] if isinstance(columns.text, str) else columns.text
    cells = [_cells(frame, column) for column in names]
    for column, values in zip(names, cells):
        _refuse_blank(values, f"{where}, {column!r} in row", frame.index.tolist(), prompt=column != names[-1])
    return list(cells[0]) if isinstance(columns.text, str) else list(zip(*cells))


def _cells(frame: "pd.DataFrame", column: str) -> list[Any]:
    """The values of a column, None where one is missing."""
    return [None if missing else value for value, missing in zip(frame[column].tolist(), frame[column].isna())]


def _side_labels(counts: Counter[str], columns: _Columns, where: str) -> tuple[set[str], set[str]]:
    """The labels of the source and of the target."""
    known, listing = set(counts), ", ".join(f"{label!r} ({count} rows)" for label, count in counts.most_common(20))
    source, target = _given(columns.source), _given(columns.target)
    if source is None and target is None:
        if known not in ({"0", "1"}, {"false", "true"}):
            raise ContrastError(f"{where} does not say which side is the source; give source=, out of {listing}")
        source = {"1", "true"} & known
    if unknown := ((source or set()) | (target or set())) - known:
        raise ContrastError(f"{where} has no label {_quoted(sorted(unknown))}; there is {listing}")
    source = known - (target or set()) if source is None else source
    target = known - source if target is None else target
    if not source or not target or source & target:
        raise ContrastError(f"{where}: source and target need different labels, one or more each, of {listing}")
    return source, target


def _given(labels: Labels) -> set[str] | None:
    if labels is None:
        return None
    return {_label(label) for label in ([labels] if isinstance(labels, str | int | float) else labels)}


def _label(value: object) -> str:
    """A label as the text by which it compares; nothing where it is missing."""
    text = "" if value is None else str(value).strip()
    whole = WHOLE_NUMBER.fullmatch(text)
    return whole[1] if whole else text.lower() if text.lower() in ("true", "false") else text


def _refuse_blank(values: Sequence[object], where: str, rows: Sequence[int] = (), *, prompt: bool = False) -> None:
    """Raise where a value is no text, or is blank and no prompt; `rows` counts them, from 1 unless given."""
    numbered = zip(rows or range(1, len(values) + 1), values)
    if bad := [row for row, value in numbered if not isinstance(value, str) or not (prompt or value.strip())]:
        raise ContrastError(f"{where} {first_few(bad)}: blank, missing or not a text; take these rows out")


def _decoded(path: Path) -> str:
    """The text of a UTF-8 file, without a byte order mark."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ContrastError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ContrastError(f"{path} is not UTF-8 (line {line}: {error.reason}); save it as UTF-8") from error


def _parsed(content: str, where: str) -> Any:
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        raise ContrastError(f"{where} is not JSON: {error}") from error


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
