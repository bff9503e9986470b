"""`lens-steer doctor`: on a healthy setup nothing is wrong; whatever is sabotaged is named."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lens_steer import cli
from lens_steer.cli.doctor import costs as costs_module
from lens_steer.cli.doctor import installation
from lens_steer.cli.doctor.check import Check, verdict
from lens_steer.cli.doctor.command import as_markdown
from lens_steer.cli.doctor.costs import Costs, check_costs
from lens_steer.cli.doctor.installation import check_cache, check_device, check_versions
from lens_steer.cli.doctor.model import check_edit, check_sites, check_tokenizer, check_traps
from lens_steer.cli.json_result import JsonResult
from lens_steer.cli.running import status_of
from lens_steer.host.adapter import BridgeHost, Host, host_of
from lens_steer.host.load import load_model
from tests.families import make_tiny, make_tokenizer, random_model, save_tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("user")
    save_tiny("gpt2", folder / "private-name")
    return folder


@pytest.fixture(autouse=True)
def _healthy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENS_STEER_MODELS", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(torch.version, "cuda", None)


def states(checks: Iterator[Check]) -> dict[str, str]:
    return {check.name: check.state for check in checks if check.state != "ok"}


def told(checks: Iterator[Check], state: str) -> str:
    return " | ".join(f"{check.name}: {check.detail}" for check in checks if check.state == state)


@pytest.fixture(scope="module")
def healthy(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[int, str]]:
    """Run the command on the tiny model and return its status and what stands on stdout."""
    import io
    from contextlib import redirect_stdout

    def run(words: str) -> tuple[int, str]:
        written = io.StringIO()
        with redirect_stdout(written):
            status = status_of(cli.app, "lens-steer", ["doctor", *words.split()])
        return status, written.getvalue()

    return run


def test_on_a_healthy_setup_nothing_is_wrong(
    place: Path, healthy: Callable[[str], tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    step_seconds = costs_module._step_seconds
    monkeypatch.setattr(costs_module.psutil, "getloadavg", lambda: (0.1, 0.1, 0.1))
    monkeypatch.setattr(
        costs_module, "_step_seconds", lambda model: max(1e-6, step_seconds(model))
    )  # on a busy machine
    status, out = healthy(f"{place}/private-name --json")
    result = JsonResult.model_validate_json(out, strict=True)
    assert status == 0
    assert result.verdicts["setup"] == "nothing is wrong"
    assert {row["state"] for row in result.tables["checks"]} == {"ok"}
    costs: Any = result.values["costs"]
    assert costs["forward_seconds"] > 0
    assert costs["step_seconds"] > 0
    assert 0 < costs["weights_bytes"] < costs["forward_bytes"] < costs["step_bytes"]
    assert set(result.values["versions"]) >= {"python", "torch", "transformers", "transformer-lens", "lens-steer"}  # type: ignore[arg-type]


def test_the_block_for_a_bug_report_has_no_private_paths(
    place: Path, healthy: Callable[[str], tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LENS_STEER_MODELS", "/proc/of-somebody/models")  # a fault, whose message holds the path
    monkeypatch.setattr(costs_module, "_step_seconds", lambda model: 0.1)
    status, out = healthy(f"{place}/private-name --markdown")
    assert status == 6
    assert out.startswith("### lens-steer doctor")
    assert "1 fault: model cache" in out
    for private in (str(place), str(Path.home()), "/proc", "of-somebody", "private-name"):
        assert private not in out
    status, out = healthy("/home/somebody/no-model --markdown")
    assert status == 6
    assert "2 faults: model cache, model" in out
    assert "somebody" not in out


def test_paths_of_every_kind_are_cut() -> None:
    check = Check("x", "fault", r"at ~/a/b.txt, (/c/d), 'C:\e\f' and hub/name 1/2", "")
    assert as_markdown({"versions": {}}, [check], "said").endswith(r"at .../b.txt, (.../d), '.../f' and hub/name 1/2")


def test_hooks_that_do_nothing_are_named(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(Host, "hooks", lambda self, pairs: nullcontext())
        host_of(tiny).checked_sites.clear()
        assert "hook_resid_post cannot be written: blocks.0.hook_resid_post fired 0 times" in told(
            check_sites(tiny), "fault"
        )
    with monkeypatch.context() as broken:
        broken.setattr("lens_steer.interventions.intervention.attach", lambda model, writes: nullcontext())
        assert "does not move the logits" in told(check_edit(tiny), "fault")
    assert states(check_sites(tiny)) == states(check_edit(tiny)) == {}


def test_an_edit_that_stays_or_acts_at_strength_0_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_tiny("gpt2", seed=3)
    bias = model.original_model.transformer.ln_f.bias

    @contextmanager
    def leaves_a_trace(hosted: Any, writes: Any) -> Iterator[None]:
        bias.data += 1
        yield

    with monkeypatch.context() as broken:
        broken.setattr("lens_steer.interventions.intervention.attach", leaves_a_trace)
        assert "acts at strength 0" in told(check_edit(model), "fault")
    calls: list[int] = []

    @contextmanager
    def leaves_it_later(hosted: Any, writes: Any) -> Iterator[None]:
        calls.append(1)
        bias.data += len(calls) - 1
        yield

    monkeypatch.setattr("lens_steer.interventions.intervention.attach", leaves_it_later)
    assert "still felt after it was left" in told(check_edit(model), "fault")


def test_a_model_whose_sites_cannot_be_written_is_named() -> None:
    model = load_model(random_model("gpt2"), tokenizer=make_tokenizer())
    model.original_model.lm_head.weight.data.zero_()
    assert "does not move the logits" in told(check_sites(model), "fault")


def test_what_is_wrong_with_the_cache_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert states(check_cache()) == {}
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=2**20))
        assert "no space is left" in told(check_cache(), "fault")
        full.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=2**29))
        assert states(check_cache()) == {"model cache": "note"}
    (tmp_path / "cache" / "smollm2").mkdir(parents=True)
    assert "damaged or only half there" in told(check_cache(), "fault")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in told(check_cache(), "note")


def test_what_is_wrong_with_the_installation_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {name: state for name, state in states(check_versions()).items() if name != "transformer-lens"}
    assert found == {}
    version = installation.version
    with monkeypatch.context() as old:
        old.setattr(installation, "version", lambda name: "1.0" if name == "transformers" else version(name))
        assert "transformers 1.0 (needed" in told(check_versions(), "fault")
        old.setattr(installation, "version", lambda name: "3.9.0" if name == "transformer-lens" else version(name))
        assert states(check_versions()) == {"transformer-lens": "note"}
    cpu = torch.device("cpu")
    assert "CUDA" not in states(check_device(cpu))
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 999)
    assert states(check_device(cpu)) == {"CUDA": "note", "threads": "note"}


def test_pads_that_are_felt_and_bos_twice_are_named(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert states(check_tokenizer(tiny)) == {}
    logits = BridgeHost.logits
    with monkeypatch.context() as broken:
        broken.setattr(BridgeHost, "logits", lambda self, ids, mask: logits(self, ids, torch.ones_like(mask)))
        assert "padded on the left" in told(check_tokenizer(tiny), "fault")
    module = sys.modules["lens_steer.cli.doctor.model"]
    twice = SimpleNamespace(ids=[(tiny.tokenizer.bos_token_id, tiny.tokenizer.bos_token_id, 5)])
    monkeypatch.setattr(module, "tokenize", lambda *given, **settings: twice)
    assert "begin with two BOS tokens" in told(check_tokenizer(tiny), "fault")


def test_traps_are_notes(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert states(check_traps(tiny)) == {}
    monkeypatch.setattr(tiny.original_model.config, "num_local_experts", 8, raising=False)
    monkeypatch.setattr(BridgeHost, "weight_processing", "compatibility mode")
    monkeypatch.setattr(BridgeHost, "dtype", torch.bfloat16)
    assert states(check_traps(tiny)) == {"mixture of experts": "note", "weights": "note", "precision": "note"}


def test_memory_that_does_not_suffice_is_named() -> None:
    enough = Costs(0.1, 0.2, weights=2**20, forward=2**21, step=2**30, available=2**31, load=0.5)
    assert states(check_costs(enough)) == {}
    assert states(check_costs(Costs(**{**vars(enough), "available": 2**25}))) == {"memory of a fit": "fault"}
    assert "nothing is wrong" in verdict(list(check_costs(enough)))
    assert states(check_costs(Costs(**{**vars(enough), "load": 7.0}))) == {"speed": "note"}
    unknown = Costs(**{**vars(enough), "step_seconds": math.nan})
    assert "no telling a LinEAS step" in told(check_costs(unknown), "note")
