"""The store of an unfinished pass: what is on disk, what a kill leaves, what resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lens_steer.activations import store as store_module
from lens_steer.activations.activations import Activations
from lens_steer.activations.collect import collect
from lens_steer.errors import ArtifactError, OutputError
from lens_steer.texts.contrast import ContrastSet, LabelledTexts
from tests.families import sentences

SITE = "blocks.0.mlp.hook_post"
CONTRAST = ContrastSet(sentences(10, seed=1), sentences(10, seed=2))


@pytest.fixture(autouse=True)
def a_shard_per_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_SHARD_SECONDS", 0.0)


def interrupt(model: Any, after: int, texts: Any, **settings: Any) -> None:
    """Collect, and stop after some passes (the fingerprint's is one more)."""
    passes: list[int] = []

    def stop(tensor: Any, hook: Any) -> None:
        passes.append(1)
        if len(passes) > after + 1:
            raise KeyboardInterrupt

    with model.hooks(fwd_hooks=[("blocks.0.hook_in", stop)]), pytest.raises(KeyboardInterrupt):
        collect(model, texts, **settings)


def same(one: Activations, other: Activations) -> bool:
    moments = [
        torch.allclose(one.token_std(site, side), other.token_std(site, side), rtol=1e-5, atol=1e-6)  # type: ignore[arg-type]
        for site in one.sites
        for side in ("source", "target")
    ]
    return all(
        torch.allclose(one.values[site], other.values[site], rtol=1e-5, atol=1e-6) for site in one.sites
    ) and all(moments)


def test_shards_hold_values_and_the_sums_are_there_once(tiny: Any, tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 2, (20, 50)).astype(np.int8)
    texts = LabelledTexts(tuple(sentences(20, seed=3)), labels, tuple(f"c{place}" for place in range(50)))
    interrupt(tiny, 8, texts, sites=SITE, batch_size=2, store=tmp_path)
    shards = sorted(tmp_path.glob("shard-*"))
    assert len(shards) == 8
    of_values = 2 * 128 * 4
    assert all(shard.stat().st_size < of_values + 500 for shard in shards)  # beside a header
    assert len(list(tmp_path.glob("sums*"))) == 1


@pytest.mark.parametrize("batch_size", [2, 3, 7, 20])
def test_a_pass_resumes_with_any_batch_size(tiny: Any, tmp_path: Path, batch_size: int) -> None:
    interrupt(tiny, 2, CONTRAST, batch_size=4, store=tmp_path)
    assert same(collect(tiny, CONTRAST, batch_size=batch_size, store=tmp_path), collect(tiny, CONTRAST))
    assert {path.name for path in tmp_path.iterdir()} == {"plan.json", "activations.json", "activations.safetensors"}


def test_a_shard_that_the_sums_do_not_include_is_run_again(tiny: Any, tmp_path: Path) -> None:
    """As when the call was killed between the two files."""
    interrupt(tiny, 2, CONTRAST, batch_size=4, store=tmp_path)
    before = (tmp_path / "sums.safetensors").read_bytes()
    interrupt(tiny, 1, CONTRAST, batch_size=4, store=tmp_path)
    (tmp_path / "sums.safetensors").write_bytes(before)
    assert len(list(tmp_path.glob("shard-*"))) == 3
    assert same(collect(tiny, CONTRAST, batch_size=4, store=tmp_path), collect(tiny, CONTRAST))


@pytest.mark.parametrize("name", [".plan.json-x1", ".shard-00000001.safetensors-x", ".sums.safetensors-x"])
def test_what_a_kill_leaves_is_no_other_result(tiny: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("half")
    collect(tiny, CONTRAST, store=tmp_path)
    assert not (tmp_path / name).exists()


def test_what_is_not_ours_is_left_alone(tiny: Any, tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("*")
    with pytest.raises(OutputError, match="already holds other results"):
        collect(tiny, CONTRAST, store=tmp_path)
    assert (tmp_path / ".gitignore").exists()


@pytest.mark.parametrize("name", ["shard-00000000.safetensors", "sums.safetensors"])
def test_a_damaged_part_is_named(tiny: Any, tmp_path: Path, name: str) -> None:
    interrupt(tiny, 2, CONTRAST, batch_size=4, store=tmp_path)
    (tmp_path / name).write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match=f"{name} is damaged"):
        collect(tiny, CONTRAST, batch_size=4, store=tmp_path)


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": 1}', '{"format": 1, "bytes": "x"}', "null"])
def test_a_damaged_description_is_named(tiny: Any, tmp_path: Path, content: str) -> None:
    place = collect(tiny, CONTRAST).save(tmp_path / "acts")
    (place / "activations.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"activations.(json|safetensors) is damaged|has format"):
        Activations.load(place)


def test_the_size_of_the_file_is_checked(tiny: Any, tmp_path: Path) -> None:
    place = collect(tiny, CONTRAST).save(tmp_path / "acts")
    with (place / "activations.safetensors").open("ab") as file:
        file.write(b"more")
    with pytest.raises(ArtifactError, match="does not have the .* bytes that were written"):
        Activations.load(place)


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_saved_values_that_are_no_finite_numbers_are_refused_by_site_and_text(
    tiny: Any, tmp_path: Path, bad: float
) -> None:
    collect(tiny, CONTRAST, [SITE, "blocks.1.mlp.hook_post"]).save(tmp_path / "acts")
    data = tmp_path / "acts" / store_module._DATA
    whole = load_file(data)

    def damaged(name: str, *places: tuple[int, ...]) -> None:
        tensors = {key: value.clone() for key, value in whole.items()}
        for place in places:
            tensors[name][place] = bad
        save_file(tensors, data)

    damaged(f"values/{SITE}", (3, 7), (5, 0))
    with pytest.raises(ArtifactError, match=rf"{SITE}\[7\] of text 3 is (nan|-inf), and 1 more"):
        Activations.load(tmp_path / "acts")
    damaged("mean/blocks.1.mlp.hook_post", (0, 1, 2))
    with pytest.raises(ArtifactError, match=r"token means of blocks\.1\.mlp\.hook_post"):
        Activations.load(tmp_path / "acts")
    damaged(f"values/{SITE}")
    assert torch.equal(Activations.load(tmp_path / "acts").values[SITE], whole[f"values/{SITE}"])
