"""Steering vectors in and out: the layer numbering against transformers itself, round trips, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from lens_steer.errors import ArtifactError, LensSteerError, MapError, ModelError, OutputError, SettingError, SiteError
from lens_steer.host.sites import find_sites
from lens_steer.interventions.edit import Edit
from lens_steer.interventions.intervention import Intervention
from lens_steer.interventions.maps import DiagonalAffine
from lens_steer.interventions.vectors import read_vectors, write_vectors

IDS = torch.tensor([[1, 5, 9, 17, 30]])
VECTORS = {layer: np.random.default_rng(layer).normal(size=32).astype(np.float32) for layer in (0, 1)}
LATER = {1: VECTORS[1]}


def logits(model: Any, edit: Intervention | None = None, strength: float = 1.0) -> torch.Tensor:
    with torch.no_grad():
        if edit is None:
            return model(IDS)
        with edit.on(model, strength):
            return model(IDS)


def added_by_torch(model: Any, vectors: dict[int, np.ndarray], strength: float = 1.0) -> torch.Tensor:
    """Logits of the plain Hugging Face model with a vector added to the output of `layers[N]`, as repeng adds it."""
    plain = model.original_model
    layers = plain.transformer.h if hasattr(plain, "transformer") else plain.model.layers

    def adding(vector: np.ndarray) -> Callable[..., Any]:
        shift = strength * torch.from_numpy(vector)

        def hook(module: Any, given: Any, output: Any) -> Any:
            return (output[0] + shift, *output[1:]) if isinstance(output, tuple) else output + shift

        return hook

    handles = [layers[layer].register_forward_hook(adding(vector)) for layer, vector in vectors.items()]
    try:
        with torch.no_grad():
            return plain(IDS).logits
    finally:
        for handle in handles:
            handle.remove()


def written(folder: Path, suffix: str, vectors: dict[int, np.ndarray]) -> Path:
    """A file of vectors as another library would write it."""
    path = folder / f"given{suffix}"
    if suffix == ".gguf":
        gguf = pytest.importorskip("gguf")
        writer = gguf.GGUFWriter(str(path), "controlvector")
        writer.add_string("controlvector.model_hint", "gpt2")
        writer.add_uint32("controlvector.layer_count", len(vectors))
        for layer, vector in vectors.items():
            writer.add_tensor(f"direction.{layer}", vector)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    elif suffix == ".safetensors":
        save_file({f"layers.{layer}": vector for layer, vector in vectors.items()}, path)
    elif suffix == ".npz":
        np.savez(path, **{str(layer): vector for layer, vector in vectors.items()})
    else:
        held = {str(layer): vector.tolist() for layer, vector in vectors.items()}
        path.write_text(json.dumps({"layer_activations": held, "layer_type": "decoder_block"}))
    return path


@pytest.mark.parametrize("family_name", ["gpt2", "llama"])
def test_the_vector_of_a_layer_is_added_to_its_output(family_name: str) -> None:
    from tests.families import make_tiny

    model = make_tiny(family_name)
    for vectors in ({0: VECTORS[0]}, LATER, VECTORS):
        edit = read_vectors(vectors, model)
        assert not torch.allclose(logits(model, edit), logits(model), atol=1e-2)
        torch.testing.assert_close(logits(model, edit, 0.7), added_by_torch(model, vectors, 0.7), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("suffix", [".gguf", ".safetensors", ".npz", ".json"])
def test_every_kind_of_file_is_read_alike(tiny: Any, tmp_path: Path, suffix: str) -> None:
    edit = read_vectors(written(tmp_path, suffix, VECTORS), tiny)
    assert edit == read_vectors(VECTORS, tiny)
    assert edit.provenance["file"] == f"given{suffix}"
    assert edit.provenance["method"] == "read_vectors"
    assert edit.fingerprint.keys() == {"blocks.0.hook_resid_post", "blocks.1.hook_resid_post"}
    assert edit.provenance.get("model_hint") == ("gpt2" if suffix == ".gguf" else None)


def test_objects_of_other_libraries_are_read_by_what_they_hold(tiny: Any) -> None:
    wanted = read_vectors(VECTORS, tiny)
    tensors = {layer: torch.from_numpy(vector).bfloat16() for layer, vector in VECTORS.items()}
    control = SimpleNamespace(model_type="gpt2", directions=VECTORS)
    assert read_vectors(control, tiny) == wanted
    steering = SimpleNamespace(layer_activations=tensors, layer_type="decoder_block")
    rounded = {layer: tensor.float().numpy() for layer, tensor in tensors.items()}
    assert read_vectors(steering, tiny) == read_vectors(rounded, tiny)
    steering.layer_type = "mlp"
    with pytest.raises(SiteError, match=r"'mlp': say at which hooks they are added, kind='hook_mlp_out'"):
        read_vectors(steering, tiny)
    assert [site.kind for site in read_vectors(steering, tiny, kind="hook_mlp_out").sites] == ["hook_mlp_out"] * 2


def test_negative_layers_count_from_the_last(tiny: Any) -> None:
    assert read_vectors({-1: VECTORS[1], -2: VECTORS[0]}, tiny) == read_vectors(VECTORS, tiny)
    with pytest.raises(ArtifactError, match="two vectors for layer 1, of which one is called -1"):
        read_vectors({-1: VECTORS[1], 1: VECTORS[0]}, tiny)


@pytest.mark.parametrize("suffix", [".gguf", ".safetensors"])
def test_a_round_trip_gives_the_same_logits(tiny: Any, tmp_path: Path, suffix: str) -> None:
    edit = read_vectors(LATER if suffix == ".gguf" else VECTORS, tiny)
    again = read_vectors(write_vectors(edit, tmp_path / f"out{suffix}"), tiny)
    assert again == edit
    assert torch.equal(logits(tiny, again), logits(tiny, edit))
    half = read_vectors(write_vectors(edit, tmp_path / f"half{suffix}", strength=0.5), tiny)
    torch.testing.assert_close(logits(tiny, half), logits(tiny, edit, 0.5), atol=1e-5, rtol=1e-5)


def test_a_control_vector_is_one_by_the_format(tiny: Any, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    write_vectors(read_vectors(LATER, tiny), tmp_path / "out.gguf")
    reader = gguf.GGUFReader(str(tmp_path / "out.gguf"))
    assert reader.fields["general.architecture"].contents() == "controlvector"
    assert reader.fields["controlvector.layer_count"].contents() == 1
    assert reader.fields["controlvector.model_hint"].contents()
    (tensor,) = reader.tensors
    assert (tensor.name, tensor.tensor_type.name) == ("direction.1", "F32")
    assert np.array_equal(tensor.data, VECTORS[1])


def test_safetensors_say_what_they_are(tiny: Any, tmp_path: Path) -> None:
    write_vectors(read_vectors(VECTORS, tiny), tmp_path / "out.safetensors")
    with safe_open(str(tmp_path / "out.safetensors"), framework="np") as file:
        assert sorted(file.keys()) == ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
        assert file.metadata()["lens_steer_vectors"] == "1"
        assert file.metadata()["layer_type"] == "decoder_block"
    with pytest.raises(SiteError, match="are for hook_resid_post, not for hook_mlp_out"):
        read_vectors(tmp_path / "out.safetensors", tiny, kind="hook_mlp_out")


def test_shifts_of_one_layer_are_added_up(tiny: Any, tmp_path: Path) -> None:
    one, other = read_vectors(VECTORS, tiny), read_vectors({1: VECTORS[0]}, tiny)
    both = Intervention(one.edits + other.edits, one.provenance)
    again = read_vectors(write_vectors(both, tmp_path / "sum.safetensors"), tiny)
    torch.testing.assert_close(logits(tiny, again), logits(tiny, both), atol=1e-5, rtol=1e-5)


def shift(model: Any, kind: str = "hook_resid_post", **bounds: torch.Tensor) -> Intervention:
    site = find_sites(model, kind)[1]
    return Intervention((Edit(site, DiagonalAffine(torch.ones(site.width), torch.ones(site.width), **bounds)),))


def test_what_is_no_shift_of_all_tokens_is_refused(tiny: Any, tmp_path: Path) -> None:
    plain = shift(tiny)
    scaled = Intervention((replace(plain.edits[0], map=DiagonalAffine(torch.full((32,), 1.1), torch.ones(32))),))
    bounded = shift(tiny, low=torch.zeros(32), high=torch.ones(32))
    refused = {
        "32 units are scaled": scaled,
        "not the output of a layer": shift(tiny, "hook_mlp_out"),
        "inside an interval only": bounded,
        "for the tokens 'generated' only": plain.scoped("generated"),
    }
    for message, edit in refused.items():
        for suffix in (".gguf", ".safetensors"):
            with pytest.raises(MapError, match=message):
                write_vectors(edit, tmp_path / f"out{suffix}")
    assert list(tmp_path.iterdir()) == []


def test_llama_cpp_has_no_place_for_layer_0(tiny: Any, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    with pytest.raises(SettingError, match=r"output of layer 0.*write \.safetensors"):
        write_vectors(read_vectors(VECTORS, tiny), tmp_path / "out.gguf")
    with pytest.raises(SettingError, match="no vector for a layer after 0"):
        write_vectors(read_vectors({0: np.zeros(32)}, tiny), tmp_path / "out.gguf")
    zero = read_vectors({0: np.zeros(32), 1: VECTORS[1]}, tiny)
    assert read_vectors(write_vectors(zero, tmp_path / "out.gguf"), tiny) == read_vectors(LATER, tiny)


def test_places_that_cannot_be_written_are_refused(tiny: Any, tmp_path: Path) -> None:
    edit = read_vectors(LATER, tiny)
    with pytest.raises(SettingError, match=r"\.gguf .* or \.safetensors"):
        write_vectors(edit, tmp_path / "out.pt")
    with pytest.raises(SettingError, match="finite"):
        write_vectors(edit, tmp_path / "out.gguf", strength=float("nan"))
    (tmp_path / "there.safetensors").write_text("mine")
    with pytest.raises(OutputError, match="already exists"):
        write_vectors(edit, tmp_path / "there.safetensors")
    assert (tmp_path / "there.safetensors").read_text() == "mine"


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({}, ArtifactError, "holds no vector"),
        ({"three": [0.0]}, ArtifactError, "'three' names no layer"),
        ({1: [0.0], "layers.1": [0.0]}, ArtifactError, "two vectors for layer 1"),
        ({1: [[0.0] * 32] * 2}, ArtifactError, r"shape \(2, 32\)"),
        ({1: [float("nan")] * 32}, ArtifactError, "not finite"),
        ({1: ["a"] * 32}, ArtifactError, "no vector of numbers"),
        ({1: [0.0] * 16}, ArtifactError, "has 16 numbers, blocks.1.hook_resid_post has 32 units"),
        ({2: [0.0] * 32}, SiteError, "a vector for layer 2; this model has 2 layers"),
        ({"blocks.0.hook_mlp_out": [0.0], "blocks.1.hook_resid_post": [0.0]}, ArtifactError, "several kinds"),
        (7, ArtifactError, "cannot be read from int"),
        ("nowhere.gguf", ArtifactError, "does not exist"),
        ("vector.pt", ArtifactError, "can run code when opened"),
        ("vector.txt", ArtifactError, "are read from .gguf, .safetensors, .json, .npz"),
    ],
)
def test_sources_that_cannot_be_read_are_refused(
    tiny: Any, given: Any, error: type[LensSteerError], message: str
) -> None:
    with pytest.raises(error, match=message):
        read_vectors(given, tiny)


@pytest.mark.parametrize("suffix", [".gguf", ".safetensors", ".npz", ".json"])
@pytest.mark.parametrize("kept", [0, 10, 100])
def test_damaged_files_are_named(tiny: Any, tmp_path: Path, suffix: str, kept: int) -> None:
    path = written(tmp_path, suffix, VECTORS)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises((ArtifactError, ModelError), match="given"):
        read_vectors(path, tiny)


def test_a_pickle_in_an_npz_is_not_opened(tiny: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "given.npz", **{"1": np.array([{}], dtype=object)})
    with pytest.raises(ArtifactError, match="no npz file of plain arrays"):
        read_vectors(tmp_path / "given.npz", tiny)


def test_another_gguf_file_is_no_control_vector(tiny: Any, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(str(tmp_path / "given.gguf"), "llama")
    writer.add_tensor("direction.1", VECTORS[1])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ArtifactError, match="architecture 'llama', not a control vector"):
        read_vectors(tmp_path / "given.gguf", tiny)


@pytest.mark.compat
def test_each_host_adds_the_same(embedded_host: Any, embedded: Any, tmp_path: Path) -> None:
    width = find_sites(embedded, "hook_resid_post")[0].width
    vectors = {layer: np.random.default_rng(layer).normal(size=width).astype(np.float32) for layer in (0, 2)}
    edit = read_vectors(vectors, embedded_host)
    wanted = added_by_torch(embedded, vectors)
    torch.testing.assert_close(logits(embedded_host, edit), wanted, atol=1e-3, rtol=1e-3)
    assert read_vectors(write_vectors(edit, tmp_path / "out.safetensors"), embedded_host) == edit
