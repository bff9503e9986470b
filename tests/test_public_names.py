"""The public names: all there, cheap to import, and said once."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lens_steer


@pytest.mark.compat
@pytest.mark.parametrize("name", lens_steer.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(lens_steer, name).__name__.split(".")[-1].startswith(name)


def test_every_name_of_the_stub_is_public() -> None:
    stub = Path(lens_steer.__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    named = [alias.name for node in ast.parse(stub).body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(named) == sorted(lens_steer.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="attribute LoRA"):
        _ = lens_steer.LoRA


def test_importing_loads_nothing_heavy() -> None:
    heavy = ("torch", "numpy", "pandas", "transformer_lens")
    code = f"import sys, lens_steer; print([name for name in {heavy} if name in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"
