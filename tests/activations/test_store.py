"""Stores: what is on disk, what a kill, a full disk or a damage leaves, what resumes, and who shares the work."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lens_steer.activations import saved as saved_module
from lens_steer.activations import sketch_pass as sketch_module
from lens_steer.activations import store as store_module
from lens_steer.activations.activations import Activations
from lens_steer.activations.collect import collect
from lens_steer.activations.sketch import ActivationSketch, Sketching
from lens_steer.activations.store import shards_of
from lens_steer.activations.tensor_file import read_columns, read_tensors, write_tensors
from lens_steer.errors import ActivationError, ArtifactError, LensSteerWarning, OutputError, TokenError
from lens_steer.ranking.experts import rank_experts
from lens_steer.texts.contrast import ContrastSet, LabelledTexts
from tests.activations.processes import leave_shared_locks, together
from tests.benchmarks.memory import touched_bytes
from tests.families import make_tiny, sentences

SITE = "blocks.0.mlp.hook_post"
CONTRAST = ContrastSet(sentences(10, seed=1), sentences(10, seed=2))
SKETCHING = Sketching(bins=8, pilot=6, holdout=None)


@pytest.fixture(autouse=True)
def a_shard_per_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_SHARD_BATCHES", 1)
    monkeypatch.setattr(store_module, "_ROWS_PER_GROUP", 0)
    monkeypatch.setattr(sketch_module, "_SAVE_SECONDS", 0.0)
    monkeypatch.setattr(sketch_module, "_SAVE_SHARE", float("inf"))


@contextmanager
def stopped(model: Any, after: int, stop: Callable[[], object]) -> Iterator[None]:
    """Call `stop` in the pass behind so many (the fingerprint's is one more)."""
    passes: list[int] = []

    def hook_function(tensor: Any, hook: Any) -> None:
        passes.append(1)
        if len(passes) > after + 1:
            stop()

    with model.hooks(fwd_hooks=[("blocks.0.hook_in", hook_function)]):
        yield


def interrupt(model: Any, after: int, texts: Any, **settings: Any) -> None:
    """Collect, and stop after some passes."""

    def stop() -> None:
        raise KeyboardInterrupt

    with stopped(model, after, stop), pytest.raises(KeyboardInterrupt):
        collect(model, texts, **settings)


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def same(one: Activations, other: Activations) -> bool:
    moments = [
        torch.allclose(one.token_std(site, side), other.token_std(site, side), rtol=1e-5, atol=1e-6)  # type: ignore[arg-type]
        for site in one.sites
        for side in ("source", "target")
    ]
    return all(
        torch.allclose(one.values[site], other.values[site], rtol=1e-5, atol=1e-6) for site in one.sites
    ) and all(moments)


@pytest.fixture(scope="module")
def whole(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that was filled in one go, a batch of 4 texts to a shard."""
    place = tmp_path_factory.mktemp("stores") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "_SHARD_BATCHES", 1)
        patch.setattr(store_module, "_ROWS_PER_GROUP", 0)
        collect(tiny, CONTRAST, batch_size=4, store=place)
    return place


def test_a_store_holds_what_is_collected_without_one(tiny: Any, whole: Path) -> None:
    expected, stored = collect(tiny, CONTRAST, batch_size=4), Activations.load(whole)
    assert same(stored, expected)
    assert all(torch.equal(stored.values[site], expected.values[site]) for site in expected.sites)
    for units in (slice(3, 9), slice(None, None), slice(120, 400)):
        assert torch.equal(stored.units(SITE, units), expected.values[SITE][:, units])
        assert torch.equal(expected.units(SITE, units), expected.values[SITE][:, units])
    names = {"manifest.json", ".lock", "activations.json", "activations.safetensors"}
    assert {path.name for path in whole.iterdir()} == names | {f"shard-{number:08d}.safetensors" for number in range(5)}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_values_may_be_stored_in_half_the_room(tiny: Any, whole: Path, tmp_path: Path, dtype: Any) -> None:
    stored = collect(tiny, CONTRAST, batch_size=4, store=tmp_path, store_dtype=dtype)
    exact = Activations.load(whole).values[SITE]
    assert torch.equal(stored.values[SITE], exact.to(getattr(torch, dtype)).float())
    with pytest.raises(OutputError, match="stored as: 'b?float16' there, 'float32' here"):
        collect(tiny, CONTRAST, batch_size=4, store=tmp_path)


def test_another_tokenizer_is_refused(whole: Path) -> None:
    model = make_tiny("gpt2")
    original = model.tokenizer.__class__.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            model.tokenizer.__class__, "__call__", lambda self, text, **how: original(self, exchanged(text), **how)
        )
        with pytest.raises(OutputError, match="tokens: '[0-9a-f]{64}' there, '[0-9a-f]{64}' here"):
            collect(model, CONTRAST, batch_size=4, store=whole)


def exchanged(text: Any) -> Any:
    if not isinstance(text, str):
        return [exchanged(one) for one in text]
    return " ".join({"dog": "cat", "cat": "dog"}.get(word, word) for word in text.split(" "))


def test_a_value_beyond_float16_is_named(tiny: Any, tmp_path: Path) -> None:
    with tiny.hooks(fwd_hooks=[(SITE, lambda tensor, hook: tensor * 1e6)]):
        with pytest.raises(ActivationError, match=rf"{SITE}\[\d+\] is .* too large for torch.float16: store it as bf"):
            collect(tiny, CONTRAST, SITE, store=tmp_path, store_dtype="float16")
        collect(tiny, CONTRAST, SITE, store=tmp_path / "b", store_dtype="bfloat16")


def test_sums_take_at_most_half_the_room_of_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the shards of the module's fixture
    batches = [[4 * number + place for place in range(4)] for number in range(1000)]
    for concepts in (1, 50):
        for width in (100, 10**6):
            shards = shards_of(batches, 4 * width, 2 * concepts)
            assert [row for shard in shards for row in shard] == list(range(4000))
            assert all(16 * 2 * concepts <= 0.5 * 4 * len(shard) for shard in shards[:-1])
    assert len(shards_of([[row] for row in range(10**5)], 400, 2)) <= 1024


@pytest.mark.parametrize("batch_size", [2, 3, 7, 20])
def test_a_pass_resumes_with_any_batch_size(tiny: Any, whole: Path, tmp_path: Path, batch_size: int) -> None:
    interrupt(tiny, 2, CONTRAST, batch_size=4, store=tmp_path)
    assert same(collect(tiny, CONTRAST, batch_size=batch_size, store=tmp_path), Activations.load(whole))


def test_a_pass_that_is_killed_ten_times_ends_with_the_same_bytes(tiny: Any, whole: Path, tmp_path: Path) -> None:
    """kill -9 of a fork, at moments that a seed draws: in passes, between them, and while files are written."""
    rng = np.random.default_rng(0)
    place = tmp_path / "killed"
    texts = ContrastSet(sentences(12, seed=1), sentences(12, seed=2))
    collect(tiny, texts, batch_size=1, store=tmp_path / "whole")
    killed = 0

    def work() -> None:
        leave_shared_locks()
        tiny.get_submodule("embed.hook_out").register_forward_hook(lambda *_: time.sleep(0.01))
        collect(tiny, texts, batch_size=1, store=place, progress=False)

    # 24 batches of 10 ms and more take longer than any wait, so a pass that begins afresh is always killed.
    while killed < 10:
        child = multiprocessing.get_context("fork").Process(target=work)
        child.start()
        time.sleep(rng.uniform(0.02, 0.2))
        os.kill(child.pid, signal.SIGKILL)  # type: ignore[arg-type]
        child.join()
        if child.exitcode == -signal.SIGKILL:
            killed += 1
        else:
            assert content(place) == content(tmp_path / "whole")
            shutil.rmtree(place)
    collect(tiny, texts, batch_size=1, store=place)
    assert content(place) == content(tmp_path / "whole")


@pytest.mark.parametrize("name", [".manifest.json-x1", ".shard-00000001.safetensors-x", ".activations.json-x"])
def test_what_a_kill_leaves_is_no_other_result(tiny: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / ".tmpx1").write_text("half")
    collect(tiny, CONTRAST, store=tmp_path)
    assert not (tmp_path / name).exists()


def test_a_kill_while_a_tensor_file_is_written_leaves_what_the_next_call_takes_away(
    tiny: Any, whole: Path, tmp_path: Path
) -> None:
    """safetensors writes a file of a name of its own and renames it: a kill in between is a kill in the rename."""

    def work() -> None:
        leave_shared_locks()
        written: list[Path] = []

        def killed(tensors: Any, place: Path, **settings: Any) -> None:
            written.append(place)
            if len(written) == 3:
                (place.parent / ".tmpx1").write_text("half")
                os.kill(os.getpid(), signal.SIGKILL)
            save_file(tensors, place, **settings)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("lens_steer.activations.tensor_file.save_file", killed)
            collect(tiny, CONTRAST, batch_size=4, store=tmp_path, progress=False)

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert [*tmp_path.rglob(".tmpx1")]
    collect(tiny, CONTRAST, batch_size=4, store=tmp_path)
    assert content(tmp_path) == content(whole)


def test_what_is_not_ours_is_left_alone(tiny: Any, tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("*")
    with pytest.raises(OutputError, match="already holds other results"):
        collect(tiny, CONTRAST, store=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".gitignore"}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    """Flip the lowest bit of a value: still a number, and next to the one that was written."""
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
@pytest.mark.parametrize("finished", [True, False])
def test_only_a_damaged_shard_is_run_again(
    tiny: Any, whole: Path, tmp_path: Path, damage: Callable[[Path], None], finished: bool
) -> None:
    if finished:
        collect(tiny, CONTRAST, batch_size=4, store=tmp_path)
    else:
        interrupt(tiny, 4, CONTRAST, batch_size=4, store=tmp_path)
    damage(tmp_path / "shard-00000002.safetensors")
    if finished:
        with pytest.raises(ArtifactError, match="shard-00000002.safetensors"):
            stored = Activations.load(tmp_path)
            _ = [stored.values[site] for site in stored.sites], read_tensors(tmp_path / "shard-00000002.safetensors")
    ran: list[int] = []
    watch = [("blocks.0.hook_in", lambda tensor, hook: ran.append(len(tensor)))]
    expected = (
        pytest.warns(LensSteerWarning, match="run again") if damage is not Path.unlink else pytest.MonkeyPatch.context()
    )
    with tiny.hooks(fwd_hooks=watch), expected:
        collect(tiny, CONTRAST, batch_size=4, store=tmp_path)
    assert ran == [1, 4] if finished else ran == [1, 4, 4]  # the fingerprint's pass, then the shard's
    assert content(tmp_path) == content(whole)


def test_a_full_disk_is_said_and_the_pass_goes_on_where_there_is_room(
    tiny: Any, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a small tmpfs where one can be mounted, else by the error that a full disk gives."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24k", "none", place], capture_output=True).returncode
    if mounted:
        written: list[int] = []

        def full(*arguments: Any, **settings: Any) -> None:
            written.append(1)
            if len(written) > 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            save_file(*arguments, **settings)

        monkeypatch.setattr("lens_steer.activations.tensor_file.save_file", full)
    try:
        with pytest.raises(OutputError, match="No space left on device|cannot be written"):
            collect(tiny, CONTRAST, batch_size=4, store=place / "store")
        kept = content(place / "store")
        assert {"shard-00000000.safetensors"} <= kept.keys() < content(whole).keys()
        assert all(value == content(whole)[name] for name, value in kept.items())
        if not mounted:
            subprocess.run(["mount", "-o", "remount,size=1m", place], check=True, capture_output=True)
        monkeypatch.setattr("lens_steer.activations.tensor_file.save_file", save_file)
        collect(tiny, CONTRAST, batch_size=4, store=place / "store")
        assert content(place / "store") == content(whole)
    finally:
        if not mounted:
            subprocess.run(["umount", "--lazy", place], check=True)  # what is read stays mapped


def test_a_second_run_on_one_store_is_refused(tiny: Any, tmp_path: Path) -> None:
    """Locks are the system's: that of a run that was killed is free."""
    seen: list[str] = []

    def second() -> None:
        with pytest.raises(OutputError, match="another run is at work"):
            collect(make_tiny("gpt2"), CONTRAST, batch_size=4, store=tmp_path)
        seen.append("refused")

    with stopped(tiny, 2, lambda: seen or second()):
        collect(tiny, CONTRAST, batch_size=4, store=tmp_path)
    assert seen == ["refused"]
    assert collect(tiny, CONTRAST, batch_size=4, store=tmp_path).labels.shape == (20, 1)


@pytest.mark.parametrize("reduce", [None, SKETCHING])
def test_what_is_not_finite_is_named_and_what_was_done_is_kept(tiny: Any, tmp_path: Path, reduce: Any) -> None:
    passes: list[int] = []

    def overflow(tensor: Any, hook: Any) -> Any:
        passes.append(1)
        return tensor * float("nan") if len(passes) > 4 else tensor

    with (
        tiny.hooks(fwd_hooks=[(SITE, overflow)]),
        pytest.raises(ActivationError, match=rf"{SITE}\[\d+\] is nan .*text"),
    ):
        collect(tiny, CONTRAST, SITE, batch_size=4, store=tmp_path, reduce=reduce)
    assert len(list(tmp_path.glob("shard-*" if reduce is None else "p*"))) >= 2


@pytest.mark.parametrize("reduce", [None, SKETCHING])
def test_a_text_without_tokens_is_named_and_nothing_is_stored(tiny: Any, tmp_path: Path, reduce: Any) -> None:
    texts = ContrastSet([*CONTRAST.source, "</s>"], CONTRAST.target)
    with pytest.raises(TokenError, match="text 10 has no token that a pool may read"):
        collect(tiny, texts, SITE, store=tmp_path, reduce=reduce)
    assert not content(tmp_path)


class TestSketches:
    @pytest.fixture(scope="class")
    def sketch(self, tiny: Any) -> ActivationSketch:
        return collect(tiny, CONTRAST, batch_size=2, reduce=SKETCHING)

    def test_a_saved_sketch_is_read_back_and_ranks_the_same(
        self, sketch: ActivationSketch, tiny: Any, tmp_path: Path
    ) -> None:
        back = ActivationSketch.load(sketch.save(tmp_path / "sketch"))
        assert_counts_equal(back, sketch)
        frame, expected = (rank_experts(one, holdout=None).frame for one in (back, sketch))
        assert frame.equals(expected)
        assert np.array_equal(rank_experts(back, holdout=None).seen, rank_experts(sketch, holdout=None).seen)
        others = ContrastSet(sentences(10, seed=5), sentences(10, seed=6))
        on_grid = Sketching(bins=8, holdout=None, grid=back)
        merged = back.merged(collect(tiny, others, reduce=on_grid, batch_size=2))
        assert int(merged.sketches[SITE].texts.sum()) == 40
        flip(tmp_path / "sketch" / "sketch.safetensors")
        with pytest.raises(ArtifactError, match="not what was written"):
            ActivationSketch.load(tmp_path / "sketch")

    @pytest.mark.parametrize("damaged", [None, "pilot", "part-00000"])
    def test_a_sketch_resumes_count_for_count(
        self, sketch: ActivationSketch, tiny: Any, tmp_path: Path, damaged: str | None
    ) -> None:
        settings: dict[str, Any] = {"batch_size": 2, "reduce": SKETCHING, "store": tmp_path}
        interrupt(tiny, 6, CONTRAST, **settings)
        assert {"pilot.safetensors", "part-00000.safetensors"} <= content(tmp_path).keys()
        if damaged is not None:
            flip(tmp_path / f"{damaged}.safetensors")
            with pytest.warns(LensSteerWarning, match="run again"):
                resumed = collect(tiny, CONTRAST, **settings)
        else:
            ran: list[int] = []
            with tiny.hooks(fwd_hooks=[("blocks.0.hook_in", lambda tensor, hook: ran.append(1))]):
                resumed = collect(tiny, CONTRAST, **settings)
            assert len(ran) == 1 + 4  # of 3 pilot batches and 7 others, 6 were done
        assert_counts_equal(resumed, sketch)
        assert content(tmp_path).keys() == {".lock", "manifest.json", "sketch.json", "sketch.safetensors"}
        assert_counts_equal(collect(tiny, CONTRAST, **settings), sketch)
        with pytest.raises(OutputError, match="sketch: .*'bins': 8.* there, .*'bins': 9.* here"):
            collect(tiny, CONTRAST, **{**settings, "reduce": Sketching(bins=9, pilot=6, holdout=None)})


def assert_counts_equal(one: ActivationSketch, other: ActivationSketch) -> None:
    for site in other.sites:
        mine, theirs = one.sketches[site], other.sketches[site]
        assert torch.equal(mine.grid.cuts, theirs.grid.cuts)
        for part in ("counts", "texts", "low", "high"):
            assert torch.equal(getattr(mine, part), getattr(theirs, part)), part
        torch.testing.assert_close(mine.mean, theirs.mean)
    for table in ("labels", "blocks", "hashes"):
        assert torch.equal(getattr(one.texts, table), getattr(other.texts, table))


class TestProcesses:
    def test_two_processes_store_the_bytes_of_one(self, tiny: Any, whole: Path, tmp_path: Path) -> None:
        assert together(lambda number: collect(tiny, CONTRAST, batch_size=4, store=tmp_path, progress=False)) == [0, 0]
        assert content(tmp_path) == content(whole)

    def test_two_processes_sketch_the_counts_of_one(self, tiny: Any, tmp_path: Path) -> None:
        settings: dict[str, Any] = {"batch_size": 2, "reduce": SKETCHING, "progress": False}
        assert together(lambda number: collect(tiny, CONTRAST, store=tmp_path, **settings)) == [0, 0]
        assert_counts_equal(ActivationSketch.load(tmp_path), collect(tiny, CONTRAST, **settings))

    @pytest.mark.parametrize("reduce", [None, SKETCHING])
    def test_when_one_dies_the_other_says_so_and_the_run_resumes(
        self, tiny: Any, whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], reduce: Any
    ) -> None:
        settings: dict[str, Any] = {"batch_size": 4, "store": tmp_path, "reduce": reduce, "progress": False}

        def work(number: int) -> None:
            def die() -> None:
                if number == 1:
                    os.kill(os.getpid(), signal.SIGKILL)

            with stopped(tiny, 1, die):
                collect(tiny, CONTRAST, **settings)

        began = time.monotonic()
        assert together(work, patience=10) == [1, -signal.SIGKILL]
        assert time.monotonic() - began < 40
        assert "start the same command again" in capfd.readouterr().err
        collect(tiny, CONTRAST, **settings)
        if reduce is None:
            assert content(tmp_path) == content(whole)
        else:
            assert_counts_equal(ActivationSketch.load(tmp_path), collect(tiny, CONTRAST, batch_size=4, reduce=reduce))


class TestBytes:
    def test_one_site_touches_its_bytes_only(self, tmp_path: Path) -> None:
        """Pages of the file that are in this process's memory when one site of eight is read."""
        path = tmp_path / "shard.safetensors"
        values = {f"values/{number}": torch.randn(1000, 1000) for number in range(8)}
        write_tensors(path, values)
        one = read_tensors(path, ["values/3"])["values/3"]
        assert torch.equal(one, values["values/3"])
        around = 2**18  # the header, and the pages that the system maps before and behind
        assert 4e6 <= touched_bytes(path) <= 4e6 + around
        assert torch.equal(read_columns(path, "values/5", slice(10, 20)), values["values/5"][:, 10:20])

    def test_no_two_files_of_one_content_differ(self, tmp_path: Path) -> None:
        tensors = {f"t{number}": torch.arange(number + 1) for number in range(20)}
        write_tensors(tmp_path / "a", tensors)
        write_tensors(tmp_path / "b", dict(reversed(tensors.items())))
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


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
    data = tmp_path / "acts" / saved_module._DATA
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


def test_concepts_share_one_store(tiny: Any, tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 2, (20, 5)).astype(np.int8)
    texts = LabelledTexts(tuple(sentences(20, seed=3)), labels, tuple(f"c{place}" for place in range(5)))
    stored, plain = collect(tiny, texts, SITE, batch_size=2, store=tmp_path), collect(tiny, texts, SITE, batch_size=2)
    assert same(stored.concept("c3"), plain.concept("c3"))
