"""`lens-steer rank` with a store, a sketch, a plan, and as the processes that torchrun and accelerate start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from lens_steer.errors import OutputError, SettingError
from tests.cli.test_cli import TEXTS, lens_steer, place

__all__ = ["place"]  # a fixture

ROOT = Path(__file__).parents[2]


def test_a_stored_run_is_gone_on_with_and_read_again(place: Path) -> None:
    lens_steer(place, f"rank {TEXTS} --out @one --store @kept --batch-size 4")
    shards = {path.name: path.stat().st_mtime_ns for path in (place / "kept").glob("shard-*")}
    assert shards
    lens_steer(place, f"rank {TEXTS} --out @two --store @kept --batch-size 4")
    assert shards == {path.name: path.stat().st_mtime_ns for path in (place / "kept").glob("shard-*")}
    tables = [pd.read_csv(place / name / "experts.csv") for name in ("one", "two")]
    pd.testing.assert_frame_equal(*tables)
    with pytest.raises(OutputError, match="pool: 'max' there, 'mean' here"):
        lens_steer(place, f"rank {TEXTS} --out @three --store @kept --pool mean")
    with pytest.raises(SettingError, match="--store and --sketch are of all texts"):
        lens_steer(place, f"rank {TEXTS} --out @three --store @kept --n 4")
    assert not (place / "three").exists()


def test_a_sketch_ranks_without_probes(place: Path) -> None:
    printed = lens_steer(place, f"rank {TEXTS} --out @sketched --sketch")
    assert "units differ between source and target texts" in printed
    table = pd.read_csv(place / "sketched" / "experts.csv")
    assert {"auroc_error", "heldout_error"} <= set(table.columns)
    assert not (place / "sketched" / "probes.csv").exists()


def test_a_plan_writes_nothing(place: Path) -> None:
    lens_steer(place, f"fit {TEXTS} --method aura --out @planned")
    before = set(place.rglob("*"))
    printed = lens_steer(place, f"rank {TEXTS} --out @p1 --store @p2 --plan")
    assert "32 KiB" in printed  # 32 texts of 256 units, float32
    assert "256 at 2 sites" in printed
    for command in (
        f"rank {TEXTS} --out @p1 --plan --sketch",
        f"fit {TEXTS} --out @p1 --plan",
        f"fit {TEXTS} --out @p1 --method aura --plan",
        f"evaluate {TEXTS} --intervention @planned --out @p1 --words sad --max-new-tokens 2 --plan",
        f"card @planned {TEXTS} --out @p1.html --words sad --max-new-tokens 2 --plan",
        f"study expert_ranking {TEXTS} --out @p1 --plan",
    ):
        printed = lens_steer(place, command)
        assert printed.endswith("nothing was written\n"), command
        assert "expected minutes" in printed
    assert "at most 165 gradients" in lens_steer(place, f"fit {TEXTS} --out @p1 --plan")
    assert "at most 60 gradients" in lens_steer(place, f"fit {TEXTS} --out @p1 --gamma-share 0.1 --plan")
    assert set(place.rglob("*")) == before


def test_processes_need_a_store(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingError, match="2 processes share the work through a directory: give --store DIR"):
        lens_steer(place, f"rank {TEXTS} --out @alone")


def test_torchrun_ranks_as_one_process_does(place: Path) -> None:
    words = [
        word.replace("@", f"{place}/") for word in f"rank {TEXTS} --batch-size 4 --store @shared --out @run".split()
    ]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*launcher, "-m", "lens_steer", *words], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written to") == 1
    lens_steer(place, f"rank {TEXTS} --batch-size 4 --store @lone --out @lone_run")
    for path in (place / "lone").iterdir():
        assert path.read_bytes() == (place / "shared" / path.name).read_bytes(), path.name
    pd.testing.assert_frame_equal(*(pd.read_csv(place / name / "experts.csv") for name in ("run", "lone_run")))
