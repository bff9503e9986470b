"""The command line, run as a user would: on a model directory and text files, with right and wrong input."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from lens_steer import cli
from lens_steer.errors import LensSteerError
from lens_steer.host.load import load_model
from lens_steer.interventions.intervention import Intervention
from lens_steer.texts.readers import read_contrast
from tests.families import save_tiny, sentences


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model directory, two text files and prompts."""
    folder = tmp_path_factory.mktemp("user")
    save_tiny("gpt2", folder / "model")
    (folder / "sad.txt").write_text("\n".join(sentences(16, seed=1, must="sad")))
    (folder / "other.txt").write_text("\n".join(sentences(16, seed=2, must="happy")))
    (folder / "prompts.txt").write_text("the dog\n\na cat sat\n")
    table = pd.DataFrame(
        {"comment": sentences(16, seed=1, must="sad") + sentences(16, seed=2), "toxic": [1] * 16 + [0] * 16}
    )
    table.to_csv(folder / "comments.csv", index=False)
    return folder


def lens_steer(place: Path, command: str) -> str:
    """Run a command in the user's folder; errors come out as they are."""
    words = [word.replace("@", str(place) + "/") for word in command.split()]
    result = CliRunner().invoke(cli.app, words)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


TEXTS = "--model @model --texts @sad.txt --texts @other.txt"


def test_the_main_job(place: Path) -> None:
    said = lens_steer(place, f"rank {TEXTS} --out @rank --top 3")
    experts = pd.read_csv(place / "rank" / "experts.csv")
    assert len(experts) == 256
    assert f"{experts.site[0]}" in said
    assert {"site", "unit", "width", "heldout_auroc"} <= set(experts.columns)
    assert len(pd.read_parquet(place / "rank" / "tables" / "experts.parquet")) == 256
    run = json.loads((place / "rank" / "run.json").read_text())
    assert run["name"] == "rank"
    assert run["summary"][0].startswith("The best expert unit")
    assert run["settings"]["seed"] == 0
    assert run["settings"]["top"] == 3
    assert "torch" in run["versions"]

    said = lens_steer(place, f"ablate {TEXTS} --units @rank/experts.csv --top 20 --max-new-tokens 4 --out @ablate")
    assert "20 units moved" in said
    settings = json.loads((place / "ablate" / "run.json").read_text())["settings"]
    assert set(settings) == set(inspect.signature(cli.ablate).parameters)
    scores = pd.read_csv(place / "ablate" / "scores.csv")
    assert scores.measure.tolist() == ["effect", "cost"]
    assert len(Intervention.load(place / "ablate" / "interventions" / "ablate zero").units()) == 20
    for mode in ("mean", "target_mean"):
        command = f"ablate {TEXTS} --units @rank/experts.csv --top 5 --mode {mode} --max-new-tokens 2 --out @{mode}"
        lens_steer(place, command)

    lens_steer(place, f"fit {TEXTS} --steps 4 --lr 0.001 --gamma-share 0.5 --out @edit")
    edit = Intervention.load(place / "edit")
    assert edit.provenance["settings"]["steps"] == 4
    assert edit.provenance["settings"]["gamma"] > 0

    lens_steer(
        place, "generate --model @model --prompts @prompts.txt --intervention @edit --max-new-tokens 4 --out @texts"
    )
    texts = pd.read_csv(place / "texts" / "texts.csv")
    assert texts.prompt.tolist() == ["the dog", "a cat sat"]
    assert list(texts.columns) == ["prompt", "plain", "edited"]

    command = (
        f"evaluate {TEXTS} --intervention @edit --words sad,cried --prompts @prompts.txt --max-new-tokens 4 --out @eval"
    )
    assert "effect" in lens_steer(place, command)
    assert (pd.read_csv(place / "eval" / "texts.csv").prompt == ["the dog", "a cat sat"]).all()


def test_a_labelled_table_and_aura(place: Path) -> None:
    table = "--model @model --texts @comments.csv --text comment --label toxic --source 1"
    lens_steer(place, f"fit {table} --method aura --sites mlp.hook_post,hook_mlp_out --out @aura")
    kinds = {site.kind for site in Intervention.load(place / "aura").sites}
    assert kinds == {"mlp.hook_post", "hook_mlp_out"}


def test_bake(place: Path) -> None:
    lens_steer(place, f"fit {TEXTS} --method aura --out @bakeable")
    lens_steer(place, "bake --model @model --intervention @bakeable --out @baked")
    plain = AutoModelForCausalLM.from_pretrained(place / "baked")
    ids = AutoTokenizer.from_pretrained(place / "baked")("the dog was sad", return_tensors="pt").input_ids
    hosted = load_model(place / "model")
    with Intervention.load(place / "bakeable").on(hosted):
        expected = hosted(ids)
    torch.testing.assert_close(plain(ids).logits, expected, rtol=1e-4, atol=1e-4)


def test_sites(place: Path) -> None:
    said = lens_steer(place, "sites --model @model")
    assert "mlp.hook_post" in said
    assert "attn.hook_z" in said
    assert "blocks.1.mlp.hook_pre" in lens_steer(place, "sites --model @model --pattern paper:aura --out @sites")
    assert len(pd.read_csv(place / "sites" / "sites.csv")) == 4


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("rank --model @nowhere --texts @sad.txt --texts @other.txt --out @x1", "is not a model directory"),
        ("rank --model @model --texts @missing.txt --texts @other.txt --out @x2", "missing.txt"),
        (f"rank {TEXTS} --sites mlp.hook_pots --out @x3", "mlp.hook_post"),
        (f"rank {TEXTS} --pool median --out @x4", "no pool is named"),
        (f"fit {TEXTS} --method lora --out @x5", "there are aura and lineas"),
        (f"fit {TEXTS} --dtype float8 --out @x6", "dtype is float32"),
        (f"ablate {TEXTS} --units @missing.csv --out @x7", "there is no file"),
        (f"ablate {TEXTS} --units @comments.csv --out @x8", "columns site and unit"),
        (f"evaluate {TEXTS} --intervention @model --out @x9", "not a directory that lens_steer wrote"),
        (f"rank {TEXTS} --out @model", "already holds other results"),
        ("generate --model @model --prompts @missing.txt --out @x10", "there is no file"),
        ("rank --model @model --texts @sad.txt --texts @other.txt --texts @sad.txt --out @x11", "once"),
    ],
)
def test_wrong_input_is_one_message_and_leaves_nothing(place: Path, command: str, says: str) -> None:
    before = set(place.rglob("*"))
    with pytest.raises(LensSteerError, match=says):
        lens_steer(place, command)
    assert set(place.rglob("*")) == before


def test_main_turns_an_error_into_one_line(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["lens-steer", "sites", "--model", str(place / "nowhere")])
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    said = capsys.readouterr().err.strip()
    assert said.startswith("lens-steer: ")
    assert "\n" not in said


def test_evaluate_scores_on_texts_that_fit_has_not_seen(place: Path) -> None:
    lens_steer(place, f"fit {TEXTS} --method aura --seed 3 --out @half")
    lens_steer(place, f"evaluate {TEXTS} --intervention @half --seed 3 --max-new-tokens 2 --out @unseen")
    contrast = read_contrast((place / "sad.txt", place / "other.txt"))
    first, second = contrast.split(test=0.5, seed=3)
    assert Intervention.load(place / "half").provenance["data"] == first.data_hash
    prompts = set(pd.read_csv(place / "unseen" / "texts.csv").prompt)
    assert prompts == {" ".join(str(text).split()[:4]) for text in second.source}
