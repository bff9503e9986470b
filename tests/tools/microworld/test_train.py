import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from lens_steer.errors import MicroworldError, OutputError
from lens_steer.microworld.checkpoint import check_checkpoint, read_checkpoint
from lens_steer.microworld.english import english
from lens_steer.microworld.sampler import sample
from lens_steer.microworld.tokenizer import build_tokenizer
from tools.microworld.train import Training, main, new_model, train
from tools.microworld.training_data import CHUNK, chunk_batches, stream_batches

SHORT = Training(size="tiny", steps=6, batch_tokens=512, warmup=2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return train(SHORT, tmp_path_factory.mktemp("whole"), save_every=2)


def test_an_interrupted_training_ends_with_the_same_weights(checkpoint, tmp_path):
    assert train(SHORT, tmp_path, stop_after=3) is None
    with pytest.raises(OutputError, match="--resume"):
        train(SHORT, tmp_path)
    with pytest.raises(MicroworldError, match="other settings"):
        train(Training(size="tiny", steps=7, batch_tokens=512, warmup=2), tmp_path, resume=True)
    resumed = train(SHORT, tmp_path, resume=True)
    assert (resumed / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()
    assert not (resumed / "training.safetensors").exists()
    with pytest.raises(OutputError, match="already holds"):
        train(SHORT, resumed)


def test_a_damaged_training_state_is_named(tmp_path):
    (tmp_path / "training.safetensors").write_bytes(b"nonsense")
    with pytest.raises(MicroworldError, match="damaged"):
        train(SHORT, tmp_path, resume=True)


def test_nothing_to_resume(tmp_path):
    with pytest.raises(OutputError, match="no training to resume"):
        train(SHORT, tmp_path, resume=True)


def test_training_changes_the_weights_and_lowers_the_loss(tmp_path):
    begun = new_model(SHORT)
    folder = train(Training(size="tiny", steps=40, batch_tokens=2048, warmup=5, learning_rate=1e-2), tmp_path)
    batch = torch.from_numpy(chunk_batches(1, 0, 2048)[0].ids).long()

    def loss(model):
        with torch.no_grad():
            logits = model(batch[:, :-1], attention_mask=torch.ones_like(batch[:, :-1])).logits
        return float(
            torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), batch[:, 1:].flatten(), ignore_index=english().ids["<pad>"]
            )
        )

    assert loss(read_checkpoint(folder)) < loss(begun.eval()) - 1


def test_the_tokenizer_gives_the_very_text_back(checkpoint):
    from transformers import AutoTokenizer

    for tokenizer in (build_tokenizer(), AutoTokenizer.from_pretrained(checkpoint)):
        for document in sample(20, seed=3):
            ids = tokenizer(document.text)["input_ids"]
            assert len(ids) == len(document.text.split())
            assert tokenizer.decode(ids) == document.text
        assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<bos>", "<eos>", "<pad>")
        assert tokenizer.convert_ids_to_tokens(tokenizer("blorp")["input_ids"]) == ["<unk>"]


def test_batches_hold_every_document_of_a_chunk_once():
    batches = chunk_batches(0, 0, 4096)
    ids = [batch.ids for batch in batches]
    assert sum(map(len, ids)) == CHUNK
    assert all(each.size <= 4096 for each in ids)
    assert all((each[:, 0] == english().ids["<bos>"]).all() for each in ids)
    assert all(((each == english().ids["<eos>"]).sum(-1) == 1).all() for each in ids)
    stream = stream_batches(0, 4096, skip=len(batches) + 2)
    assert (next(stream).ids == chunk_batches(0, 1, 4096)[2].ids).all()


def test_fresh_documents_are_not_those_of_the_training():
    def texts(ids):
        return [row[row >= 4].tobytes() for row in ids]  # without <bos>, <eos>, <pad>

    trained = {text for chunk in range(3) for batch in chunk_batches(0, chunk, 4096) for text in texts(batch.ids)}
    words = english().ids
    fresh = [np.array([words[word] for word in each.text.split()], np.int16).tobytes() for each in sample(2000, seed=8)]
    assert len(trained) > 2.9 * CHUNK
    assert np.mean([text in trained for text in fresh]) < 0.01


def test_siblings_without_norm_are_read_back(tmp_path):
    training = Training(size="tiny", norm=False, steps=2, batch_tokens=256, warmup=1)
    folder = train(training, tmp_path)
    assert not any("ln_" in name for name, _ in read_checkpoint(folder).named_parameters())
    assert json.loads((folder / "config.json").read_text())["microworld_norm"] is False


@pytest.mark.parametrize("damage", ["missing", "cut", "config", "vocabulary", "shape"])
def test_damaged_checkpoints_are_named(checkpoint, tmp_path, damage):
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    if damage == "missing":
        (tmp_path / "model.safetensors").unlink()
    elif damage == "cut":
        (tmp_path / "model.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes()[:5000])
    elif damage == "config":
        (tmp_path / "config.json").write_text("{")
    elif damage == "vocabulary":
        (tmp_path / "tokenizer.json").write_text(
            (checkpoint / "tokenizer.json").read_text().replace('"lazy"', '"lazzy"')
        )
    else:
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "n_layer": 5}))
    with pytest.raises(MicroworldError, match="checkpoint"):
        check_checkpoint(tmp_path)


def test_the_command_line(tmp_path, capsys):
    main(["--out", str(tmp_path / "x"), "--size", "tiny", "--steps", "1", "--batch-tokens", "256", "--device", "cpu"])
    assert check_checkpoint(tmp_path / "x")
    assert json.loads((tmp_path / "x" / "training.json").read_text())["steps"] == 1


def test_the_default_model_fits_into_eight_megabytes():
    assert sum(each.numel() for each in new_model(Training()).parameters()) * 4 < 7_900_000


def test_importing_the_room_needs_no_torch():
    code = "import sys, lens_steer.microworld; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_worker_processes_draw_the_same_batches():
    stream = stream_batches(3, 4096, workers=1)
    inline = stream_batches(3, 4096)
    assert all((next(stream).ids == next(inline).ids).all() for _ in range(3))
    stream.close()
