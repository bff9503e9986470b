"""Interventions on a hub that is a folder: what goes up comes down, and a hub that refuses is named."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError

from lens_steer.errors import ArtifactError, OutputError
from lens_steer.interventions.hub import load_from_hub, push_to_hub
from lens_steer.interventions.intervention import Intervention
from lens_steer.interventions.vectors import read_vectors


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the hub."""
    folder = tmp_path / "hub"

    def create(api: Any, repo: str, *, private: bool | None, exist_ok: bool) -> str:
        (folder / repo).mkdir(parents=True, exist_ok=exist_ok)
        return f"https://hub.test/{repo}"

    def upload(api: Any, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        shutil.copytree(folder_path, folder / repo_id, dirs_exist_ok=True)

    def download(repo: str, *, revision: str | None, token: str | None, allow_patterns: list[str]) -> str:
        if not (folder / repo).is_dir():
            raise FileNotFoundError(f"404: {repo}")
        fetched = tmp_path / "cache" / repo
        fetched.mkdir(parents=True)
        for name in allow_patterns:
            shutil.copy(folder / repo / name, fetched)
        return str(fetched)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return folder


@pytest.fixture
def edit(tiny: Any) -> Intervention:
    made = read_vectors({1: torch.ones(32)}, tiny)
    return replace(made, provenance={**made.provenance, "model": "someone/their-model"}, strengths=(0.0, 1.5))


def test_what_goes_up_comes_down(hub: Path, edit: Intervention) -> None:
    assert push_to_hub(edit, "me/happy") == "https://hub.test/me/happy"
    assert {file.name for file in (hub / "me/happy").iterdir()} == {
        "README.md",
        "intervention.json",
        "maps.safetensors",
    }
    loaded = load_from_hub("me/happy")
    assert loaded == edit
    assert loaded.strengths == edit.strengths
    assert loaded.fingerprint == edit.fingerprint


def test_the_page_says_what_it_is_and_how_to_use_it(hub: Path, edit: Intervention) -> None:
    push_to_hub(edit, "me/happy")
    page = (hub / "me/happy/README.md").read_text()
    assert page.startswith("---\nlibrary_name: lens_steer\n")
    assert "base_model: someone/their-model\n" in page
    assert "| `blocks.1.hook_resid_post` | 32 | 32 | all |" in page
    assert "Strengths from 0 to 1.5 were measured" in page
    assert 'ls.load_from_hub("me/happy")' in page


def test_a_path_of_a_model_is_not_told_on_the_page(hub: Path, edit: Intervention, tmp_path: Path) -> None:
    local = replace(edit, provenance={**edit.provenance, "model": str(tmp_path / "model")}, strengths=None)
    push_to_hub(local, "me/happy")
    page = (hub / "me/happy/README.md").read_text()
    assert str(tmp_path) not in page
    assert "base_model" not in page
    assert "was not measured" in page


def test_a_page_of_ones_own(hub: Path, edit: Intervention) -> None:
    push_to_hub(edit, "me/happy", readme="# Mine\n")
    assert (hub / "me/happy/README.md").read_text() == "# Mine\n"


def test_what_the_hub_refuses_is_named(hub: Path, edit: Intervention, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match="names no repository"):
        push_to_hub(edit, "happy")
    with pytest.raises(ArtifactError, match="me/nothing cannot be had from the hub: 404"):
        load_from_hub("me/nothing")

    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(OutputError, match="the hub does not take me/happy: no network"):
        push_to_hub(edit, "me/happy")


def test_a_foreign_repository_is_no_intervention(hub: Path, edit: Intervention) -> None:
    push_to_hub(edit, "me/happy")
    (hub / "me/happy/maps.safetensors").write_bytes(b"other")
    with pytest.raises(ArtifactError, match="damaged"):
        load_from_hub("me/happy")


@pytest.mark.parametrize("name", ["me/there-is-none", "../..", ""])
def test_the_real_client_offline_is_one_error(edit: Intervention, name: str) -> None:
    """HF_HUB_OFFLINE is set in tests: the client's own exceptions come out as ours."""
    with pytest.raises(ArtifactError, match="cannot be had from the hub"):
        load_from_hub(name)
    assert issubclass(RepositoryNotFoundError, OSError)


def test_the_real_client_offline_takes_nothing(edit: Intervention) -> None:
    with pytest.raises(OutputError, match="the hub does not take me/happy"):
        push_to_hub(edit, "me/happy", token="hf_none")
