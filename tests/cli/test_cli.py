"""The command line, run as a user would: on a model directory and text files, with right and wrong input."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import threading
import warnings
from contextlib import redirect_stdout
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lens_steer import cli
from lens_steer.cli.running import status_of
from lens_steer.errors import ContrastError, LensSteerError, LensSteerWarning, OutputError, SettingError, UnitError
from lens_steer.host.load import load_model
from lens_steer.interventions.ablation import ablate
from lens_steer.interventions.intervention import Intervention
from lens_steer.methods.aura import AurA
from lens_steer.methods.quasi_newton_descent import QuasiNewtonRun
from lens_steer.texts.beginnings import beginnings
from lens_steer.texts.readers import read_contrast
from lens_steer.texts.seen import seen_in, was_seen
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
    written = io.StringIO()
    with redirect_stdout(written):
        cli.app(words)
    return written.getvalue()


TEXTS = "--model @model --texts @sad.txt --texts @other.txt"


def test_the_main_job(place: Path) -> None:
    printed = lens_steer(place, f"rank {TEXTS} --out @rank --top 3")
    experts = pd.read_csv(place / "rank" / "experts.csv")
    assert len(experts) == 256
    assert f"{experts.site[0]}" in printed
    assert {"site", "unit", "width", "heldout_auroc"} <= set(experts.columns)
    assert experts.selection_auroc.is_monotonic_decreasing
    assert printed.split()[:4] == ["site", "unit", "selection_auroc", "heldout_auroc"]
    assert "of 256 units differ between source and target texts (q < 0.05" in printed
    assert len(pd.read_parquet(place / "rank" / "tables" / "experts.parquet")) == 256
    run = json.loads((place / "rank" / "run.json").read_text())
    assert run["name"] == "rank"
    assert run["summary"][0].startswith("The best expert unit")
    assert run["settings"]["seed"] == 0
    assert run["settings"]["top"] == 3
    assert "torch" in run["versions"]

    printed = lens_steer(place, f"ablate {TEXTS} --units @rank/experts.csv --top 20 --max-new-tokens 4 --out @ablate")
    assert "20 units moved" in printed
    assert printed.count("  before: ") == printed.count("  after:  ") == 3
    assert "Editing 20 units at" in printed
    settings = json.loads((place / "ablate" / "run.json").read_text())["settings"]
    assert {"model", "texts", "holdout", "words", "strength", "samples", "units", "mode", "seed"} <= set(settings)
    scores = pd.read_csv(place / "ablate" / "scores.csv")
    assert scores.measure.tolist() == ["effect", "cost"]
    assert len(Intervention.load(place / "ablate" / "interventions" / "ablate zero").units()) == 20
    for mode in ("mean", "target_mean"):
        command = f"ablate {TEXTS} --units @rank/experts.csv --top 5 --mode {mode} --max-new-tokens 2 --out @{mode}"
        lens_steer(place, command)

    lens_steer(place, f"fit {TEXTS} --steps 4 --gamma-share 0.5 --out @edit")
    edit = Intervention.load(place / "edit")
    assert edit.provenance["settings"]["steps"] == 4
    assert edit.provenance["settings"]["gamma_share"] == 0.5

    lens_steer(
        place, "generate --model @model --prompts @prompts.txt --intervention @edit --max-new-tokens 4 --out @texts"
    )
    texts = pd.read_csv(place / "texts" / "texts.csv")
    assert texts.prompt.tolist() == ["the dog", "a cat sat"]
    assert list(texts.columns) == ["prompt", "plain", "edited"]

    command = (
        f"evaluate {TEXTS} --intervention @edit --words sad,cried --prompts @prompts.txt --max-new-tokens 4 --out @eval"
    )
    printed = lens_steer(place, command)
    assert "effect" in printed
    assert printed.count("  before: ") == printed.count("  after:  ") == 2  # as many as there are prompts, up to three
    assert (pd.read_csv(place / "eval" / "texts.csv").prompt == ["the dog", "a cat sat"]).all()


def test_rank_tells_universal_units(place: Path) -> None:
    (place / "neutral.txt").write_text("\n".join(sentences(9, seed=5)))
    printed = lens_steer(place, f"rank {TEXTS} --unrelated @neutral.txt --out @universal --top 3")
    assert printed.split()[8] == "universal"
    assert "256 units are universal: shown, by 9 unrelated texts," in printed
    experts = pd.read_parquet(place / "universal" / "tables" / "experts.parquet")
    assert {"universal", "top_share"} <= set(experts.columns)
    assert f"{experts['universal'].sum()} of 256" in printed
    (place / "neutral.txt").write_text("the cat\n" * 4)
    with pytest.raises(SettingError, match="has 4 texts: give 5 or more"):
        lens_steer(place, f"rank {TEXTS} --unrelated @neutral.txt --out @few")


@pytest.mark.filterwarnings("ignore:.*has no units of the scale")
def test_a_unit_becomes_a_page_or_a_run_folder(place: Path) -> None:
    lens_steer(place, f"unit blocks.0.mlp.hook_post[3] {TEXTS} --top 3 --out @unit")
    run = json.loads((place / "unit" / "run.json").read_text())
    assert run["settings"]["unit"] == "blocks.0.mlp.hook_post[3]"
    assert run["contrast"]["texts"] == {"source": 16, "target": 16}
    lens_steer(place, "report @unit --out @unit-report.html")
    assert "blocks.0.mlp.hook_post[3]" in (place / "unit-report.html").read_text(encoding="utf-8")


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
    printed = lens_steer(place, "sites --model @model")
    assert "mlp.hook_post" in printed
    assert "attn.hook_z" in printed
    assert "blocks.1.mlp.hook_pre" in lens_steer(place, "sites --model @model --pattern paper:aura --out @sites")
    assert len(pd.read_csv(place / "sites" / "sites.csv")) == 4


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("rank --model @nowhere --texts @sad.txt --texts @other.txt --out @x1", "is not a model directory"),
        ("rank --model @model --texts @missing.txt --texts @other.txt --out @x2", "missing.txt"),
        (f"rank {TEXTS} --sites mlp.hook_pots --out @x3", "mlp.hook_post"),
        (f"ablate {TEXTS} --units @comments.csv --out @x8", "no column site, unit, width"),
        (f"evaluate {TEXTS} --intervention @model --out @x9", "not a directory that lens_steer wrote"),
        (f"rank {TEXTS} --out @model", "already holds other results"),
        (f"rank {TEXTS} --texts @sad.txt --out @x11", "once"),
        ("rank --model @model --out @x12", "neither was given"),
        (f"rank {TEXTS} --contrast microworld:rude --out @x13", "both were given"),
        (f"rank {TEXTS} --source sad --out @x14", "--source: two text files have no columns"),
        (
            f"rank {TEXTS} --n 9 --out @x15",
            "--n 9 of 16 source and 16 target texts: half is held out, here 8 source and 8 target texts are left",
        ),
        (
            f"fit {TEXTS} --method aura --steps 3 --gamma-share 0.5 --out @x16",
            "--gamma-share, --steps: not for --method aura, which takes --sites, --layers, --pool",
        ),
        ("generate --model @model --prompts @prompts.txt --strength 9 --out @x17", "no --intervention"),
        (f"evaluate {TEXTS} --words , --intervention @model --out @x18", "--words is empty|that lens_steer wrote"),
        (f"rank {TEXTS} --device potato --out @x19", "--device potato: this machine has cpu"),
        (f"rank {TEXTS} --out @sad.txt/below", "sad.txt/below"),
        (f"rank {TEXTS} --out /proc/results", "/proc/results"),
    ],
)
def test_wrong_input_is_one_message_and_leaves_nothing(
    place: Path, command: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(place.rglob("*"))
    if says not in ("is not a model directory", "mlp.hook_post"):  # what only the model can tell

        def load(*_: object, **__: object) -> None:
            raise AssertionError("the model was loaded first")

        monkeypatch.setattr("lens_steer.host.load.load_model", load)
    with pytest.raises(LensSteerError, match=says):
        lens_steer(place, command)
    assert set(place.rglob("*")) == before


def test_an_edit_of_nothing_is_warned_of(place: Path) -> None:
    with pytest.warns(LensSteerWarning, match="moved nothing"):
        lens_steer(place, f"fit {TEXTS} --steps 2 --gamma-share 1 --out @nothing")


def test_means_of_an_ablation_are_of_the_half_that_is_not_scored(place: Path) -> None:
    lens_steer(place, f"rank {TEXTS} --out @ranked --top 3")
    command = f"ablate {TEXTS} --units @ranked/experts.csv --top 5 --mode mean --max-new-tokens 2 --out @means"
    lens_steer(place, command)
    train, held = read_contrast((place / "sad.txt", place / "other.txt")).split(test=0.5, seed=0)
    edit = Intervention.load(place / "means" / "interventions" / "ablate mean")
    assert edit.provenance["activations"]["data"] == train.labelled.data_hash
    scored = json.loads((place / "means" / "run.json").read_text())["contrast"]
    assert scored["data"] == held.data_hash
    chosen = seen_in(json.loads((place / "ranked" / "run.json").read_text()))
    assert was_seen(train.source + train.target, chosen).all()
    assert not was_seen(held.source + held.target, chosen).any()


def test_bake_of_the_embedded_model(tmp_path: Path, embedded: Any) -> None:
    contrast = read_contrast("microworld:rude", n=8)
    AurA(sites="mlp.hook_post").fit(embedded, contrast).save(tmp_path / "edit")
    lens_steer(tmp_path, "bake --model microworld --intervention @edit --out @baked")
    assert AutoTokenizer.from_pretrained(tmp_path / "baked").name_or_path
    assert (tmp_path / "baked" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("raised", "status", "line"),
    [
        (SettingError("give\nanother"), 2, "lens-steer: give another"),
        (OSError(28, "No space left on device", "x.parquet"), 5, "lens-steer: No space left on device: x.parquet"),
        (KeyboardInterrupt(), 130, "lens-steer: interrupted; nothing unfinished was published"),
    ],
)
def test_an_error_is_one_line_and_an_exit_status(
    raised: BaseException,
    status: int,
    line: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def load(*_: object, **__: object) -> None:
        warnings.warn("a warning\nof ours", LensSteerWarning, stacklevel=1)
        raise raised

    monkeypatch.setattr("lens_steer.host.load.load_model", load)
    monkeypatch.setattr("sys.argv", ["lens-steer", "sites", "--model", "any", "--out", str(place / "x20")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == status
    assert capsys.readouterr().err.splitlines() == ["warning: a warning of ours", line]
    assert not (place / "x20").exists()


@pytest.mark.parametrize("command", ["--version", "rank --help", "fit --help", "ablate --help", "study"])
def test_help_and_version_load_nothing_heavy(command: str) -> None:
    code = f"from lens_steer import cli; cli.app({command.split()}); import sys; assert 'torch' not in sys.modules"
    if command == "study":
        code = code.partition("; import sys")[0]
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert version("lens-steer") in printed or "Example: lens-steer" in printed or "expert_ranking" in printed


def test_an_interrupted_fit_keeps_nothing(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step, steps = QuasiNewtonRun.step, []

    def interrupted(self: Any, *given: Any) -> str:
        steps.append(given)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return step(self, *given)

    monkeypatch.setattr(QuasiNewtonRun, "step", interrupted)
    monkeypatch.setattr("sys.ps1", ">>> ", raising=False)  # an interactive session would keep the best map so far
    words = f"fit {TEXTS} --steps 9 --gamma-share 0 --out {tmp_path}/edit".replace("@", f"{place}/").split()
    assert status_of(cli.app, "lens-steer", words) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "lens-steer: interrupted; nothing unfinished was published"
    assert len(steps) == 3
    assert list(tmp_path.iterdir()) == []


_SAYS_WHEN_IT_FITS = """
from lens_steer import cli
from lens_steer.methods.gradient_descent import GradientRun

step = GradientRun.step

def first(self, *given):
    print("fitting", flush=True)
    return step(self, *given)

GradientRun.step = first
cli.main()
"""


def test_a_terminated_fit_keeps_nothing(place: Path, tmp_path: Path) -> None:
    words = f"fit {TEXTS} --paper --steps 100000 --gamma-share 0 --out {tmp_path}/edit".replace(
        "@", f"{place}/"
    ).split()
    command = [sys.executable, "-c", _SAYS_WHEN_IT_FITS, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "fitting\n" in iter(process.stdout.readline, "")  # behind what lint says of the texts
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert errors.splitlines()[-1] == "lens-steer: terminated; nothing unfinished was published"
    assert list(tmp_path.iterdir()) == []


def test_the_handler_of_sigterm_is_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert status_of(lambda _: None, "lens-steer", []) == 0
    assert signal.getsignal(signal.SIGTERM) is before
    worker = threading.Thread(target=status_of, args=(lambda _: None, "lens-steer", []))
    worker.start()
    worker.join()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("n", [None, 6])
@pytest.mark.parametrize("holdout", [0.5, 0.4])
def test_rank_fit_evaluate_and_ablate_part_the_texts_alike(
    place: Path, tmp_path: Path, n: int | None, holdout: float
) -> None:
    texts = (place / "sad.txt", place / "other.txt")
    split = f"--model {place}/model --texts {texts[0]} --texts {texts[1]} --seed 3 --holdout {holdout}"
    split += "" if n is None else f" --n {n}"
    lens_steer(tmp_path, f"rank {split} --out @rank --top 2")
    lens_steer(tmp_path, f"fit {split} --method aura --out @edit")
    lens_steer(tmp_path, f"evaluate {split} --words sad --intervention @edit --max-new-tokens 2 --out @effect")
    units = "--words sad --units @rank/experts.csv --top 3"
    lens_steer(tmp_path, f"ablate {split} {units} --max-new-tokens 2 --out @ablation")
    train, held = read_contrast(texts).split(test=holdout, seed=3)
    if n is not None:
        train, held = train.subsample(n, seed=3), held.subsample(min(n, len(held.source), len(held.target)), seed=3)
    assert Intervention.load(tmp_path / "edit").provenance["data"] == train.data_hash
    for folder in ("rank", "edit"):
        file = "intervention.json" if folder == "edit" else "run.json"
        seen = seen_in(json.loads((tmp_path / folder / file).read_text()))
        assert was_seen(train.source + train.target, seen).all()
        assert not was_seen(held.source + held.target, seen).any()
    for folder in ("effect", "ablation"):
        prompts = set(pd.read_csv(tmp_path / folder / "texts.csv").prompt)
        assert prompts == set(beginnings(held.source, words=4))
        assert json.loads((tmp_path / folder / "run.json").read_text())["contrast"]["data"] == held.data_hash


@pytest.mark.parametrize("made", ["fit", "rank"])
def test_texts_that_were_seen_are_left_out_and_named(place: Path, tmp_path: Path, made: str) -> None:
    texts = (place / "sad.txt", place / "other.txt")
    given = f"--model {place}/model --texts {texts[0]} --texts {texts[1]}"
    lens_steer(tmp_path, f"{made} {given} --seed 1 --out @made" + (" --method aura" if made == "fit" else ""))
    measure = "evaluate --intervention @made" if made == "fit" else "ablate --top 3 --units @made/experts.csv"
    with pytest.warns(LensSteerWarning, match="of the half that is to measure it: . of 8 source texts"):
        lens_steer(tmp_path, f"{measure} {given} --seed 0 --max-new-tokens 2 --out @effect")
    seen_by_fit, _ = read_contrast(texts).split(test=0.5, seed=1)
    prompts = set(pd.read_csv(tmp_path / "effect" / "texts.csv").prompt)
    assert prompts
    assert not prompts & set(beginnings(seen_by_fit.source, words=4))
    (tmp_path / "prompts.txt").write_text(str(seen_by_fit.source[0]))
    with pytest.raises(ContrastError, match="was made from 1 of these 1 texts"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lens_steer(tmp_path, f"{measure} {given} --seed 0 --prompts @prompts.txt --out @other")


@pytest.mark.parametrize(
    ("strength", "measured", "said"),
    [
        (-0.5, None, "--strength -0.5 is below 0: it goes away from the target"),
        (-0.5, (0.0, 1.0), "--strength -0.5 is below 0: it goes away from the target"),
        (1.75, (0.5, 1.5), "--strength 1.75 lies above the range that was measured to be of use, 0.5 to 1.5"),
        (1.5, (0.5, 1.5), None),
        (1.75, None, None),
        (0.0, (0.5, 1.5), None),
    ],
)
def test_a_strength_that_leads_elsewhere_is_told_in_one_line(
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    strength: float,
    measured: tuple[float, float] | None,
    said: str | None,
) -> None:
    hosted = load_model(place / "model")
    edit = ablate([("blocks.0.mlp.hook_post", 1)], model=hosted)
    replace(edit, strengths=measured).save(tmp_path / "edit")
    words = f"generate --model @model --prompts @prompts.txt --max-new-tokens 1 --strength {strength}"
    words = words.replace("@", f"{place}/") + f" --intervention {tmp_path}/edit --out {tmp_path}/texts"
    assert status_of(cli.app, "lens-steer", words.split()) == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warned) == (said is not None)
    assert all(str(said) in line for line in warned)


def test_a_scorer_that_cannot_judge_is_refused_before_the_model_is_loaded_unless_it_is_asked_for(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = f"--model {place}/model --texts {place}/sad.txt --texts {place}/other.txt --holdout 0.5 --seed 3"
    lens_steer(tmp_path, f"fit {given} --method aura --out @edit")
    words = f"evaluate {given} --intervention {tmp_path}/edit --max-new-tokens 1 --out {tmp_path}/effect".split()
    capsys.readouterr()
    with monkeypatch.context() as nothing_loads:
        nothing_loads.setattr("lens_steer.host.load.load_model", pytest.fail)
        assert status_of(cli.app, "lens-steer", words) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot judge: on 8 held-out texts" in line
    assert line.endswith("ask for it with --unproven")
    assert not (tmp_path / "effect").exists()
    assert status_of(cli.app, "lens-steer", [*words, "--unproven"]) == 0
    assert "warning: the sad vs other classifier cannot judge" in capsys.readouterr().err
    assert (tmp_path / "effect" / "run.json").is_file()


def test_a_page_of_one_unit(place: Path) -> None:
    printed = lens_steer(
        place,
        f"unit blocks.1.mlp.hook_post[3] {TEXTS} --unrelated @prompts.txt --words dog --top 3 --out @unit.html",
    )
    assert "blocks.1.mlp.hook_post[3]" in printed
    assert "the log-probability of the next tokens of its top texts" in printed
    assert "unrelated texts" in printed
    assert (place / "unit.html").read_text().startswith("<!doctype html>")
    (place / "plain.txt").write_text("\n".join(sentences(6, seed=3)))
    printed = lens_steer(place, "unit blocks.1.attn.hook_z[1,2] --model @model --texts @plain.txt --out @head.html")
    assert "blocks.1.attn.hook_z[1, 2]" in printed
    with pytest.raises(OutputError, match="already"):
        lens_steer(place, f"unit blocks.1.mlp.hook_post[3] {TEXTS} --out @unit.html")


def test_a_unit_is_read_before_the_model(place: Path) -> None:
    with pytest.raises(UnitError, match="is not a unit; write it as"):
        lens_steer(place, f"unit mlp.hook_post {TEXTS.replace('@model', 'nowhere')} --out @no.html")
    assert not (place / "no.html").exists()
