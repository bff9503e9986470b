"""`lens-steer import` and `lens-steer export`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lens_steer import cli
from lens_steer.errors import LensSteerWarning, OutputError
from lens_steer.interventions.intervention import Intervention
from tests.families import save_tiny


def test_vectors_come_in_and_go_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_tiny("gpt2", tmp_path / "model")
    vector = np.random.default_rng(0).normal(size=32)
    (tmp_path / "given.json").write_text(json.dumps({"1": vector.tolist()}))
    bring = f"import --model {tmp_path}/model --vectors {tmp_path}"
    cli.app(f"{bring}/given.json --out {tmp_path}/edit".split())
    assert "blocks.1.hook_resid_post" in capsys.readouterr().out
    cli.app(f"export --intervention {tmp_path}/edit --out {tmp_path}/out.safetensors --strength 2".split())
    assert capsys.readouterr().out == f"written to {tmp_path}/out.safetensors\n"
    cli.app(f"{bring}/out.safetensors --out {tmp_path}/again".split())
    edit, again = (Intervention.load(tmp_path / name) for name in ("edit", "again"))
    assert again == edit.scaled(2.0)
    with pytest.raises(OutputError, match="already"):
        cli.app(f"{bring}/given.json --out {tmp_path}/edit".split())
    (tmp_path / "zero.json").write_text(json.dumps({"1": [0.0] * 32}))
    with pytest.warns(LensSteerWarning, match="its vectors are zero"):
        cli.app(f"{bring}/zero.json --out {tmp_path}/nothing".split())
