"""Damaged artifacts: bits flipped, files cut short, JSON values replaced. What is read is whole, or a LensSteerError.

Damages are drawn from a seed, and every file of every kind of artifact has its share of them.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch

from lens_steer.activations.activations import Activations
from lens_steer.activations.saved import shard_paths, write_activations
from lens_steer.activations.store import open_store
from lens_steer.activations.stored_values import StoredValues
from lens_steer.errors import LensSteerError, LensSteerWarning, MicroworldError
from lens_steer.host.fingerprint import ModelFingerprint, SiteReading
from lens_steer.host.scope import Scope
from lens_steer.host.sites import Site
from lens_steer.interventions.gated_map import Gated, LogisticGate
from lens_steer.interventions.intervention import Edit, Intervention
from lens_steer.interventions.low_rank import LowRankAffine
from lens_steer.interventions.maps import ActivationMap, Chain, DiagonalAffine
from lens_steer.interventions.project_out import ProjectOut
from lens_steer.interventions.resample import Resample
from lens_steer.interventions.row_gate import RowGate
from lens_steer.microworld.checkpoint import check_checkpoint, embedded_checkpoint
from lens_steer.report.page import write_report
from lens_steer.report.run_folder import read_run
from lens_steer.report.study import Study
from lens_steer.report.token_view import TokenText, TokenView, UnitTokens
from lens_steer.texts.contrast import ContrastSet

WIDTH = 4
SITE = Site("blocks.0.mlp.hook_post", 0, "mlp.hook_post", WIDTH)
STRANGE = [
    None,
    True,
    -1,
    0,
    1.5,
    10**30,
    "",
    "x",
    "\ud800",
    "../x",
    "a\0b",
    [],
    [[]],
    [1],
    {},
    {"a": 1},
    [{"kind": "x"}],
]
DAMAGES = {"interventions": 500, "activations": 400, "runs": 300, "stores": 100}


def diagonal() -> DiagonalAffine:
    return DiagonalAffine(torch.ones(WIDTH), torch.arange(WIDTH).float())


def maps() -> dict[str, ActivationMap]:
    rotation = torch.eye(WIDTH)[:2]
    return {
        "diagonal": diagonal(),
        "bounded": DiagonalAffine(
            torch.ones(WIDTH), torch.ones(WIDTH), low=torch.zeros(WIDTH), high=torch.full((WIDTH,), torch.inf)
        ),
        "projection": ProjectOut(torch.ones(WIDTH), 0.5),
        "low rank": LowRankAffine(rotation, rotation * 2, torch.ones(2)),
        "gated": Gated(diagonal(), LogisticGate(torch.ones(WIDTH), torch.tensor(0.1)), 0.7),
        "resampled": Resample(WIDTH, torch.tensor([1, 3]), torch.ones(3, 2), seed=5),
        "chain": Chain((ProjectOut(torch.ones(WIDTH)), diagonal()), 0.5),
    }


def intervention() -> Intervention:
    gate = RowGate(SITE, torch.ones(WIDTH), 0.5, tokens=Scope("prompt"))
    edits = [Edit(SITE, made, Scope("tokens", tokens=(1, 2))) for made in maps().values()]
    reading = SiteReading(0.1, 1.0, (0.1, 0.2), (0.3,))
    about = {"method": "many", "settings": {"lr": 0.1}, "history": [{"step": 1, "loss": 0.5}], "dtype": "float32"}
    return Intervention((*edits, Edit(SITE, diagonal(), Scope(), gate)), about, {SITE.name: reading})


def save_intervention(place: Path) -> None:
    intervention().save(place)


def save_activations(place: Path) -> None:
    rng = np.random.default_rng(0)
    sides = [{name: rng.normal(size=(5, WIDTH)) for name in (SITE.name, "blocks.1.mlp.hook_post")} for _ in range(2)]
    Activations.from_arrays(source=sides[0], target=sides[1]).save(place)


READING = SiteReading(0.1, 1.0, (0.1, 0.2), (0.3,))
PLAN = {
    "sites": [SITE.name],
    "settings": {"bos": True},
    "fingerprint": ModelFingerprint({SITE.name: READING}, "float32", ()).content(),
}


def save_store(place: Path) -> None:
    with open_store(place, PLAN, 3) as store:
        for number, rows in enumerate(([0, 1, 2], [3, 4, 5])):
            store.write(
                f"shard-{number:08d}", {"rows": torch.tensor(rows), f"values/{SITE.name}": torch.ones(3, WIDTH)}
            )
        labels = torch.tensor([[1], [0]] * 3, dtype=torch.int8)
        paths = shard_paths(place, 2)
        values = StoredValues((SITE,), paths, torch.arange(6))
        write_activations(Activations(values, labels, ("a",), "max"), place, paths)
    (place / ".lock").unlink()  # empty


def save_run(place: Path, model: Any) -> None:
    texts = (TokenText((" the", " dog"), (0.0, 1.5), "source", cut_after=True),)
    study = Study(
        frames={"experts": pd.DataFrame({"unit": [3, 1], "auroc": [0.9, 0.5], "text": ["a", "b"]})},
        figures={"experts": go.Figure(go.Bar(x=["a", "b"], y=[1, 2]))},
        summary=["Units were found", "and more"],
        captions={"experts": "What they tell apart."},
        tokens={"best": TokenView((UnitTokens(f"{SITE.name}[3]", -0.5, 1.5, texts),))},
        interventions={"edit": Intervention((Edit(SITE, diagonal()),), {"method": "x"})},
    )
    contrast = ContrastSet(["a b"], ["c d"])
    study.save(place, name="a_study", model=model, contrast=contrast, seed=7, settings={"k": 3, "path": {"a": [1.0]}})


def use_intervention(place: Path) -> None:
    loaded = Intervention.load(place)
    _ = repr(loaded), loaded.support(), loaded.sites, loaded == loaded
    for edit in loaded.edits:
        edit.map(torch.ones(1, 2, WIDTH))


def use_activations(place: Path) -> None:
    loaded = Activations.load(place)
    _ = repr(loaded), loaded.sites
    for site in loaded.sites:
        _ = loaded.source[site].shape, loaded.target[site].shape, loaded.values[site].sum()
    if loaded.moments is not None:
        _ = loaded.token_mean(loaded.sites[0], "all")


def use_store(place: Path) -> None:
    with open_store(place, PLAN, 3) as store, warnings.catch_warnings():
        warnings.simplefilter("ignore", LensSteerWarning)
        _ = [store.whole(path.stem) for path in shard_paths(place, 2)]
    (place / ".lock").unlink()
    use_activations(place)


def use_run(place: Path) -> None:
    run = read_run(place)
    _ = repr(run.study), run.study._repr_markdown_(), run.name


def damaged_json(content: Any, rng: np.random.Generator) -> Any:
    """The content with one value, anywhere in it, replaced, taken away or doubled."""
    if not isinstance(content, dict | list) or not content or rng.random() < 0.15:
        return STRANGE[rng.integers(len(STRANGE))]
    copy = dict(content) if isinstance(content, dict) else list(content)
    key: Any = list(copy)[rng.integers(len(copy))] if isinstance(copy, dict) else int(rng.integers(len(copy)))
    kind = rng.random()
    if kind < 0.1:
        del copy[key]
    elif kind < 0.15 and isinstance(copy, list):
        copy.append(copy[key])
    else:
        copy[key] = damaged_json(copy[key], rng)
    return copy


def damage(path: Path, rng: np.random.Generator) -> str:
    """Damage a file and say how."""
    content = path.read_bytes()
    kind = rng.random()
    if path.suffix == ".json" and kind < 0.6:
        text = json.dumps(damaged_json(json.loads(content), rng), allow_nan=True)
        path.write_text(text)
        return f"{path.name}: {text[:400]}"
    if kind < 0.8 or not content:
        flipped = bytearray(content)
        places = rng.integers(len(flipped), size=rng.integers(1, 4)).tolist()
        for place in places:
            flipped[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(flipped))
        return f"{path.name}: bits flipped at {places}"
    if kind < 0.97:
        end = int(rng.integers(len(content)))
        path.write_bytes(content[:end])
        return f"{path.name}: cut at {end}"
    path.unlink()
    if kind < 0.985:
        path.mkdir()
    return f"{path.name}: gone, or a folder"


def damages(place: Path, count: int, seed: int) -> Iterator[str]:
    """Yield how one file in `place`, each in turn, was damaged; all are whole again afterwards."""
    rng = np.random.default_rng(seed)
    whole = {path: path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}
    for number in range(count):
        yield damage(list(whole)[number % len(whole)], rng)
        for path, content in whole.items():  # a store takes away shards that its damaged sums do not hold
            if path.is_dir():
                path.rmdir()
            if not path.is_file() or path.read_bytes() != content:
                path.write_bytes(content)


KINDS: dict[str, tuple[Callable[..., None], Callable[[Path], None]]] = {
    "interventions": (save_intervention, use_intervention),
    "activations": (save_activations, use_activations),
    "runs": (save_run, use_run),
    "stores": (save_store, use_store),
}


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_a_lens_steer_error_or_still_valid(kind: str, tmp_path: Path, tiny: Any) -> None:
    save, use = KINDS[kind]
    place = tmp_path / kind
    save(place, *([tiny] if kind == "runs" else []))
    use(place)
    refused = 0
    for what in damages(place, DAMAGES[kind], seed=len(kind)):
        try:
            use(place)
        except LensSteerError as error:
            refused += 1
            assert str(error), what
        except Exception as error:
            raise AssertionError(f"{type(error).__name__} for {what}") from error
    assert refused > DAMAGES[kind] / 3
    use(place)


@pytest.mark.parametrize(
    ("key", "value"),
    [("time", "yesterday"), ("contrast", "x"), ("contrast", {"name": "x"}), ("model", "m"), ("model", {"model": 3}),
     ("settings", [1]), ("summary", [1]), ("seed", "1"), ("name", 3), ("versions", {"torch": 2}),
     ("captions", {"experts": None})],
)  # fmt: skip
def test_a_run_json_of_other_types_is_named(key: str, value: Any, tmp_path: Path, tiny: Any) -> None:
    save_run(tmp_path / "run", tiny)
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**about, key: value}))
    with pytest.raises(LensSteerError, match=rf"run\.json is damaged: {key}"):
        write_report(tmp_path / "report.html", [tmp_path / "run"])


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_a_damaged_checkpoint_is_named(file: str, tmp_path: Path) -> None:
    place = tmp_path / "embedded"
    shutil.copytree(embedded_checkpoint(), place)
    content, rng = (place / file).read_bytes(), np.random.default_rng(1)
    for _ in range(20):
        (place / file).write_bytes(content)
        damage(place / file, rng)
        with contextlib.suppress(MicroworldError):
            check_checkpoint(place)
        if (place / file).is_dir():
            (place / file).rmdir()
