"""Reading contrasts: from tables, concept files, pairs of text files, what is in hand, the microworld and data sets.

Readers only find rows and sides; what makes a contrast is decided in `lens_steer.texts.contrast`. Nothing is unpickled
and no remote code runs. pandas and datasets are imported where they are used.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from lens_steer.errors import ContrastError
from lens_steer.settings import require_settings
from lens_steer.texts.columns import Columns, Labels, Threshold, contrast_of_table, quoted, refuse_blank
from lens_steer.texts.contrast import ChatFormat, ContrastSet, first_few
from lens_steer.texts.data_sets import is_data_set, read_data_set, table_in_hand
from lens_steer.texts.tables import TABLES, decoded, parsed, table_of_records

FilePath = str | os.PathLike[str]
PICKLES = {".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".bin"}
FILE_SUFFIXES = {*PICKLES, *TABLES, ".json", ".txt"}
"""What ends so is a file, and no data set's name."""
IN_HAND = "contrast"
"""The name of a contrast that was read from no file."""


def read_contrast(
    path_or_name: FilePath | Sequence[Any] | Any,
    *,
    text: str | tuple[str, str] = "text",
    label: str = "label",
    source: Labels = None,
    target: Labels = None,
    threshold: Threshold = None,
    prompt: str | None = None,
    source_text: str | None = None,
    target_text: str | None = None,
    groups: str | None = None,
    paired: bool | None = None,
    config: str | None = None,
    name: str | None = None,
    chat: ChatFormat = None,
    n: int | None = None,
    seed: int = 0,
) -> ContrastSet:
    """Read a contrast from a file, two text files, rows in hand, the microworld or a data set.

    Parameters
    ----------
    path_or_name:
        - `.csv`, `.tsv`, `.jsonl`, `.ndjson`, `.parquet`, and `.json` that holds a list of records: a table. A column
          inside records or lists is named with dots, such as "prompt.text" or "generations.0.text".
        - `.json` that holds `{"concept": ..., "sentences": {"positive": [...], "negative": [...]}}`: a concept file;
          positive is the source. `.json` that holds lists of records by split, `"file.json:split"`: "train" by default.
        - `(source, target)`: two text files, one text per line; or two lists of texts or (prompt, completion) pairs.
        - a pandas DataFrame, a `datasets.Dataset`, a list of records: a table in hand.
        - `"microworld:NAME"`: a contrast of the embedded language.
        - anything else: a directory or a hub name of a data set; its split is `train`, or that of `"name:split"`.
    text:
        Column of the texts, or columns of prompts and completions. Cells may be conversations, lists of {"role",
        "content"}; a prompt and a completion that both are make one.
    label:
        Column of the labels, or with `threshold` of the scores.
    source, target:
        Labels or lists of labels. Where one is given, the other side is every other label; with both, further rows are
        left out; with neither, labels must be 0 and 1 (or false and true), and 1 is the source. Labels compare as text:
        1, 1.0 and "1" are one label, True and "true" another, "01" is not "1".
    threshold:
        Rows whose score in `label` is at least this are the source, the others the target. `(low, high)`: from `high`
        on the source, up to `low` the target, those between are left out.
    prompt:
        Column of the prompts that the texts complete; pools cover the completions only.
    source_text, target_text:
        Columns of the two sides where a row holds both. The contrast is paired.
    groups:
        Column kept as the subgroup of each row.
    paired:
        Whether source[i] and target[i] belong together. True of rows that hold both sides unless False is given, and
        of two files, lists or the sides of a concept file where True is given.
    config:
        Configuration of a data set that has several, such as "sst2" of "nyu-mll/glue".
    name:
        What the contrast is called; by default after the file, the concept or the data set.
    chat:
        True (the tokenizer's chat template) or a format such as "User: {text}\\nBot:"; recorded for the host.
    n, seed:
        Draw that many rows (or pairs) per side, with this seed.

    Raises
    ------
    ContrastError
        Files, columns, labels or scores are missing; blank texts (a message counts rows as the file does, a header
        being row 1); text that is not UTF-8; pickles; a setting that does not apply to what is read.

    """
    require_settings(read_contrast, locals())
    columns = Columns(text, label, source, target, threshold, prompt, source_text, target_text, groups)
    if _is_path(path_or_name) and str(path_or_name).startswith("microworld:"):
        _refuse_beside(columns, "the microworld", paired=paired, config=config)
        return _read_microworld(str(path_or_name), name, chat, n, seed)
    if _is_path(path_or_name):
        contrast = _read_path(os.fspath(path_or_name), columns, paired, config, chat)
    else:
        if config is not None:
            raise ContrastError("config= is for data sets that are read by name")
        contrast = _in_hand(path_or_name, columns, paired, chat)
    if name is not None:
        contrast = contrast._derived(name=name)
    return contrast if n is None else contrast.subsample(n, seed)


def _is_path(value: object) -> TypeGuard[FilePath]:
    return isinstance(value, str | os.PathLike)


def _refuse_beside(columns: Columns, what: str, *, paired: bool | None, config: str | None) -> None:
    columns.refuse(what)
    if paired is not None or config is not None:
        named = " and ".join(name for name, value in (("paired=", paired), ("config=", config)) if value is not None)
        raise ContrastError(f"{named} does not apply to {what}")


def _in_hand(rows: Any, columns: Columns, paired: bool | None, chat: ChatFormat) -> ContrastSet:
    """A frame, a data set, a list of records, or a pair of files or lists."""
    pandas: Any = sys.modules.get("pandas")
    if pandas is not None and isinstance(rows, pandas.DataFrame):
        return contrast_of_table(rows, columns, "the DataFrame", IN_HAND, paired=paired, chat=chat)
    if is_data_set(rows):
        table = table_in_hand(rows, columns)
        return contrast_of_table(table, columns, "the data set", IN_HAND, paired=paired, chat=chat)
    if isinstance(rows, Sequence) and rows and all(isinstance(record, Mapping) for record in rows):
        table = table_of_records(rows, range(len(rows)), "the list")
        return contrast_of_table(table, columns, "the list of records", IN_HAND, paired=paired, chat=chat)
    if not isinstance(rows, tuple | list) or len(rows) != 2:
        raise ContrastError(
            f"a contrast cannot be read from {type(rows).__name__}: give a path, a name, (source, target), "
            "a DataFrame, a datasets.Dataset or a list of records"
        )
    source, target = rows
    if _is_path(source) != _is_path(target):
        raise ContrastError("(source, target) are two text files or two lists of texts, not one of each")
    if not _is_path(source):
        columns.refuse("a pair of lists")
        return ContrastSet(_listed(source), _listed(target), paired=bool(paired), name=IN_HAND, chat=chat)
    columns.refuse("a pair of text files")
    return _read_pair((Path(source).expanduser(), Path(target).expanduser()), paired, chat)


def _listed(rows: Any) -> Any:
    """Columns of pandas and arrays as lists; everything else as it is, for the contrast to judge."""
    return rows.tolist() if hasattr(rows, "tolist") else rows


def _read_path(given: str, columns: Columns, paired: bool | None, config: str | None, chat: ChatFormat) -> ContrastSet:
    """A file, by its suffix, else a data set."""
    path = Path(given).expanduser()
    file, _, split = given.rpartition(":")
    if split and file.endswith(".json") and not path.exists():
        path = Path(file).expanduser()
    else:
        split = ""
    suffix = path.suffix.lower()
    if suffix in PICKLES:
        raise ContrastError(f"{given}: {suffix} files can run code when opened, so none is; save the texts as .csv")
    if path.is_dir() or not path.exists():
        table = read_data_set(given, config, columns)
        return contrast_of_table(table, columns, given, given, paired=paired, chat=chat)
    if config is not None:
        raise ContrastError(f"config= is for data sets, and {given} is a file")
    if suffix == ".json":
        return _read_json(path, split, columns, paired, chat)
    if suffix == ".txt":
        raise ContrastError(f"{given}: a text file is one side of a contrast; give two, (source_path, target_path)")
    if suffix not in TABLES:
        known = f"{', '.join(TABLES)}, .json (a list of records, or a concept), (source_path, target_path)"
        raise ContrastError(f"{given}: {suffix or 'a file without a suffix'} cannot be read; there is {known}")
    return contrast_of_table(TABLES[suffix](path), columns, given, path.stem, paired=paired, chat=chat)


def _read_pair(paths: tuple[Path, Path], paired: bool | None, chat: ChatFormat) -> ContrastSet:
    """Two text files, one text per line."""
    if other := [path for path in paths if path.suffix.lower() in {*PICKLES, *TABLES, ".json"}]:
        raise ContrastError(f"{first_few(other)}: a pair is two files of one text per line")
    sides = [decoded(path).replace("\r\n", "\n").removesuffix("\n").split("\n") for path in paths]
    for path, rows in zip(paths, sides):
        refuse_blank(rows, f"{path}, line")
    name = f"{paths[0].stem} vs {paths[1].stem}"
    return ContrastSet(*sides, paired=bool(paired), name=name, chat=chat)


def _read_microworld(place: str, name: str | None, chat: ChatFormat, n: int | None, seed: int) -> ContrastSet:
    from lens_steer.microworld.contrasts import named_contrast

    source, target = named_contrast(place.removeprefix("microworld:"), n=n, seed=seed)
    return ContrastSet(source, target, name=name or place, chat=chat)


def _read_json(path: Path, split: str, columns: Columns, paired: bool | None, chat: ChatFormat) -> ContrastSet:
    """A concept file, a list of records, or such lists by split."""
    content = parsed(decoded(path), str(path))
    if isinstance(content, dict) and isinstance(content.get("sentences"), dict):
        columns.refuse(f"a concept file ({path})")
        return _concept(path, content, paired, chat)
    if isinstance(content, dict) and content and all(isinstance(rows, list) for rows in content.values()):
        chosen = split or (next(iter(content)) if len(content) == 1 else "train")
        if chosen not in content:
            raise ContrastError(
                f"{path} has no list {chosen!r}; it has {quoted(content)}: ask for one as '{path}:NAME'"
            )
        content = content[chosen]
    if not isinstance(content, list):
        raise ContrastError(
            f"{path} holds neither a list of records nor a concept, "
            '{"sentences": {"positive": [...], "negative": [...]}}'
        )
    table = table_of_records(content, range(1, len(content) + 1), str(path))
    return contrast_of_table(table, columns, str(path), path.stem, paired=paired, chat=chat)


def _concept(path: Path, content: dict[str, Any], paired: bool | None, chat: ChatFormat) -> ContrastSet:
    """A concept file; its positive sentences are the source."""
    sides = {side: content["sentences"].get(side) for side in ("positive", "negative")}
    for side, rows in sides.items():
        if not isinstance(rows, list):
            raise ContrastError(f"{path} is a concept file without a list of {side} sentences")
        refuse_blank(rows, f"{path}, {side} sentence")
    return ContrastSet(*sides.values(), paired=bool(paired), name=str(content.get("concept", path.stem)), chat=chat)
