"""Data sets of the `datasets` library: in hand, saved in a directory, a directory of data files, or on the hub."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lens_steer.errors import ContrastError
from lens_steer.texts.columns import Columns, quoted
from lens_steer.texts.tables import TABLES

if TYPE_CHECKING:
    import pandas as pd

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def is_data_set(value: object) -> bool:
    """Return whether a value is a data set, or splits of one, of the `datasets` library."""
    library: Any = sys.modules.get("datasets")  # whoever has a data set in hand has loaded it
    return library is not None and isinstance(
        value, library.Dataset | library.DatasetDict | library.IterableDataset | library.IterableDatasetDict
    )


def table_in_hand(data: Any, columns: Columns) -> pd.DataFrame:
    """Return the table of a data set in hand, its rows counted from 0 as it counts them."""
    import datasets

    if isinstance(data, dict):
        raise ContrastError(f"these are splits of a data set: give one of them, data[{next(iter(data), 'train')!r}]")
    if not isinstance(data, datasets.Dataset):
        raise ContrastError("this data set is streamed: give one that is loaded, streaming=False")
    needed = columns.needed(data.column_names, "the data set")
    frame: pd.DataFrame = data.select_columns(needed).to_pandas()
    return frame


def read_data_set(name: str, config: str | None, columns: Columns) -> pd.DataFrame:
    """Return a split of a data set by its directory or hub name, "name" or "name:split"; rows are counted from 1."""
    place, _, split = (name, "", "") if Path(name).expanduser().is_dir() else name.partition(":")
    path = Path(place).expanduser()
    if not path.is_dir() and (not HUB_NAME.fullmatch(place) or path.suffix in {*TABLES, ".json", ".txt"}):
        raise ContrastError(f"no such file or directory: {place}")
    import datasets

    saved = (path / "state.json").exists() or (path / "dataset_dict.json").exists()
    if saved and config is not None:
        raise ContrastError(f"{name} was saved by datasets and has one configuration: leave config= out")
    try:
        data = (
            datasets.load_from_disk(str(path))
            if saved
            else datasets.load_dataset(str(path) if path.is_dir() else place, config)
        )
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        what = "this data set cannot be read" if path.is_dir() else "no such file, and no such data set within reach"
        hint = "; name one as config=" if config is None and "onfig name" in str(error) else ""
        raise ContrastError(f"{name}: {what} ({error}){hint}") from error
    splits = data if isinstance(data, dict) else {str(data.split or split or "train"): data}
    split = split or ("train" if isinstance(data, dict) else next(iter(splits)))
    if split not in splits:
        raise ContrastError(f"{place} has no split {split!r}; there is {quoted(splits)}; ask for one as 'name:split'")
    needed = columns.needed(splits[split].column_names, name)
    frame: pd.DataFrame = splits[split].select_columns(needed).to_pandas()
    return frame.set_axis(range(1, len(frame) + 1))
