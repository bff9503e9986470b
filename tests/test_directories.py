"""Result directories: all or nothing, and a place that cannot be written is seen before the work."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lens_steer.directories import new_directory, read_json, replace_file, require_free_place, sha256_of, write_json
from lens_steer.errors import ArtifactError, OutputError


def tree_of(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Places of every kind, and an empty working directory."""
    (tmp_path / "work").mkdir()
    (tmp_path / "file").write_text("kept")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "result").write_text("kept")
    (tmp_path / "circle").symlink_to("circle")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


UNWRITABLE = {
    "occupied": ("../full", "already holds other results"),
    "a file": ("../file", "already holds other results"),
    "below a file": ("../file/sub", "Not a directory|File exists"),
    "far below a file": ("../file/sub/deep", "Not a directory|File exists"),
    "where it runs": (".", "cannot be replaced"),
    "where it runs, by its name": ("../work", "cannot be replaced"),
    "where no folder can be made": ("/proc/out", "No such file|not permitted|denied"),
    "a name too long": ("x" * 300, "too long"),
    "a null byte": ("a\0b", "null"),
    "a circle of links": ("../circle", "[Ll]oop|levels of symbolic links|already holds"),
    "below a circle of links": ("../circle/sub", "[Ll]oop|levels of symbolic links|File exists"),
}


@pytest.mark.parametrize(("place", "reason"), UNWRITABLE.values(), ids=UNWRITABLE)
def test_what_cannot_be_written_is_seen_before_the_work(root: Path, place: str, reason: str) -> None:
    before = tree_of(root)
    with pytest.raises(OutputError, match=reason):
        require_free_place(place)
    with pytest.raises(OutputError, match=reason), new_directory(place):
        raise AssertionError("the work was begun")
    assert tree_of(root) == before


@pytest.mark.parametrize("place", ["new", "new/below/that", "../empty", "../link"])
def test_a_free_place_is_left_as_it_was_and_then_written(root: Path, place: str) -> None:
    (root / "empty").mkdir()
    (root / "link").symlink_to("to be made")
    before = tree_of(root)
    require_free_place(place)
    assert tree_of(root) == before
    with new_directory(place) as inside:
        (inside / "result").write_text("done")
        assert not (Path(place) / "result").exists()
    assert (Path(place) / "result").read_text() == "done"
    assert not [name for name in tree_of(root) if "/." in name or name.startswith(".")]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device"), ZeroDivisionError])
def test_what_fails_leaves_nothing(root: Path, error: BaseException) -> None:
    before = tree_of(root)
    with pytest.raises(OutputError if isinstance(error, OSError) else error, match=r"No space|^$"):
        with new_directory("out") as place:
            (place / "half").write_text("half")
            raise error
    assert tree_of(root) == before

    def fail(path: Path) -> None:
        path.write_text("half")
        raise error

    Path("old").write_text("old")
    with pytest.raises(OutputError if isinstance(error, OSError) else error, match=r"No space|^$"):
        replace_file(Path("old"), fail)
    assert Path("old").read_text() == "old"
    assert os.listdir() == ["old"]


def test_a_full_disk_is_an_output_error(root: Path) -> None:
    """Linux's full device refuses every byte, with the error of a full disk."""
    with pytest.raises(OutputError, match="No space left"):
        replace_file(Path("a"), lambda path: Path("/dev/full").write_text("a"))
    with pytest.raises(OutputError, match="cannot be written"):
        replace_file(Path("a"), lambda path: save_file({"a": torch.ones(2)}, path / "below a file"))


def test_the_umask_decides_who_may_read_and_is_never_changed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = os.umask(0o027)
    monkeypatch.setattr(os, "umask", None)  # whoever sets it, for a moment too, fails
    try:
        with new_directory("out") as place:
            write_json(place / "a.json", {})
            save_file({"a": torch.ones(2)}, place / "b.safetensors")  # for its owner alone
        replace_file(Path("c.safetensors"), lambda place: save_file({"a": torch.ones(2)}, place))
        names = ("out", "out/a.json", "out/b.safetensors", "c.safetensors")
        modes = [stat.S_IMODE(Path(name).stat().st_mode) for name in names]
    finally:
        monkeypatch.undo()
        os.umask(old)
    assert modes == [0o750, 0o640, 0o640, 0o640]


def test_two_threads_write_side_by_side(root: Path) -> None:
    def work(number: int) -> None:
        with new_directory(f"out/{number}") as place:
            write_json(place / "a.json", number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(read_json(Path(f"out/{number}/a.json")) for number in range(8)) == list(range(8))


def test_json_holds_plain_and_finite_values(root: Path) -> None:
    content = {
        "nan": float("nan"), "inf": [float("inf"), -np.inf], "numpy": np.float32(0.5), "array": np.array([[1, 2]]),
        "tensor": torch.tensor([1.0, float("nan")]), "set": {"b", "a"}, "tuple": (1, (2,)), "path": Path("x"),
        3: None, "surrogate": "\ud800", "flag": np.bool_(True),
    }  # fmt: skip
    write_json(Path("a.json"), content)
    assert read_json(Path("a.json")) == {
        "nan": None, "inf": [None, None], "numpy": 0.5, "array": [[1, 2]], "tensor": [1.0, None], "set": ["a", "b"],
        "tuple": [1, [2]], "path": "x", "3": None, "surrogate": "?", "flag": True,
    }  # fmt: skip
    json.loads(Path("a.json").read_text(), parse_constant=pytest.fail)


def _directory(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist"),
        (_directory, "cannot be read"),
        (lambda path: path.write_bytes(b"\xff{}"), "damaged"),
        (lambda path: path.write_text('{"a": NaN}'), "damaged: NaN"),
        (lambda path: path.write_text("[-Infinity]"), "damaged: -Infinity"),
        (lambda path: path.write_text("[1e999]"), "damaged: 1e999"),
        (lambda path: path.write_text("[" * 100_000), "damaged"),
        (lambda path: path.write_text("1" * 10_000), "damaged"),
        (lambda path: path.write_text('{"a": 1'), "damaged"),
    ],
)
def test_damaged_json_is_named(root: Path, make: Callable[[Path], Any], message: str) -> None:
    path = root / "a.json"
    make(path)
    with pytest.raises(ArtifactError, match=rf"a\.json.*{message}"):
        read_json(path)


def test_the_hash_of_a_file_that_is_not_there(root: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be read"):
        sha256_of(root / "none")
