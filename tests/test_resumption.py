"""Parts of long jobs: taken over by the same call alone, computed again where anything differs, gone at its end."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lens_steer.errors import LensSteerWarning
from lens_steer.resumption import Part, remembered, resumable


def broken_off(out: Path, model: Any, plan: dict[str, Any], starts: list[float], *, fails: bool) -> list[Part]:
    """Compute a part from each start; returns the parts, and counts in `plan` what was computed."""
    parts: list[Part] = []

    def compute(start: float) -> Callable[[], Part]:
        def computed() -> Part:
            COMPUTED.append(start)
            return Part({"value": start, "nothing": math.nan}, {"maps": torch.full((3,), start)})

        return computed

    with resumable(out, model=model, plan=plan):
        for start in starts:
            parts.append(remembered({"start": start}, compute(start)))
        if fails:
            raise ZeroDivisionError
    return parts


COMPUTED: list[float] = []


def test_only_the_same_call_takes_parts_over(tmp_path: Path, tiny: Any) -> None:
    out = tmp_path / "edit"
    with pytest.raises(ZeroDivisionError), pytest.warns(LensSteerWarning, match="2 finished parts kept in"):
        broken_off(out, tiny, {"seed": 0}, [0.1, 0.2], fails=True)
    COMPUTED.clear()
    broken_off(out, tiny, {"seed": 1}, [0.1, 0.2], fails=False)  # another plan
    assert COMPUTED == [0.1, 0.2]
    (kept,) = tmp_path.iterdir()
    (kept / "0001.safetensors").write_bytes(b"cut off")
    COMPUTED.clear()
    with pytest.warns(LensSteerWarning, match="going on from 2 finished parts"):
        first, second, third = broken_off(out, tiny, {"seed": 0}, [0.1, 0.2, 0.3], fails=False)
    assert COMPUTED == [0.2, 0.3]  # the damaged part and the new one
    assert first.values["value"] == 0.1
    assert math.isnan(first.values["nothing"])
    assert torch.equal(first.tensors["maps"], torch.full((3,), 0.1))
    assert (second.values["value"], third.values["value"]) == (0.2, 0.3)
    assert list(tmp_path.iterdir()) == []


def test_a_part_of_another_origin_is_computed_again(tmp_path: Path, tiny: Any) -> None:
    with pytest.raises(ZeroDivisionError), pytest.warns(LensSteerWarning):
        broken_off(tmp_path / "edit", tiny, {}, [0.1], fails=True)
    COMPUTED.clear()
    with pytest.warns(LensSteerWarning):
        broken_off(tmp_path / "edit", tiny, {}, [0.5], fails=False)
    assert COMPUTED == [0.5]


def test_work_goes_on_where_nothing_can_be_kept_and_outside_nothing_is(tmp_path: Path, tiny: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(LensSteerWarning, match="not kept for a resumption"):
        assert broken_off(tmp_path / "file" / "edit", tiny, {}, [0.1], fails=False)[0].values["value"] == 0.1
    assert remembered({}, lambda: Part({"value": 1})).values["value"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
