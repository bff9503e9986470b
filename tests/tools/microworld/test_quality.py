import json
from pathlib import Path

import numpy as np
import pytest
import torch

import lens_steer.microworld
from lens_steer.microworld.checkpoint import embedded_checkpoint, read_checkpoint
from lens_steer.microworld.sampler import sample
from tools.microworld.quality import best_heldout, main, measure, read_documents, sample_texts
from tools.microworld.train import Training, new_model, train

EMBEDDED = Path(lens_steer.microworld.__file__).parent / "embedded"


def test_the_best_unit_is_chosen_on_one_half_and_measured_on_the_other():
    rng = np.random.default_rng(1)
    shows = torch.from_numpy(rng.random(400) < 0.5)
    noise = torch.from_numpy(rng.normal(size=(400, 200)))
    assert 0.35 < best_heldout(noise, shows)[1] < 0.65
    noise[:, 17] += 3 * shows
    unit, score = best_heldout(noise, shows)
    assert unit == 17
    assert score > 0.95


def test_a_fresh_model_has_the_loss_of_no_knowledge_and_few_grammatical_sentences(tmp_path):
    model = new_model(Training(size="tiny")).eval()
    found = measure(model, documents=60, samples=4)
    assert found.loss == pytest.approx(np.log(1201), abs=0.15)
    assert found.ratio == pytest.approx(found.loss / found.oracle)
    assert found.grammatical_sentences < 0.2
    assert len(found.units) == 12 + 3 + 3 + 3 + 2 + 2
    assert len(found.told()) < 5


def test_loss_does_not_depend_on_the_batch():
    model, drawn = new_model(Training(size="tiny")).eval(), sample(12, seed=4)
    together, alone = read_documents(model, drawn), read_documents(model, drawn, batch_size=1)
    assert together[0] == pytest.approx(alone[0], rel=1e-5)
    np.testing.assert_allclose(together[1][0], alone[1][0], rtol=1e-4, atol=1e-6)


def test_sampled_texts_follow_the_seed():
    model = new_model(Training(size="tiny")).eval()
    assert sample_texts(model, 2, seed=1) == sample_texts(model, 2, seed=1)


def test_the_command_line(tmp_path):
    folder = train(Training(size="tiny", steps=1, batch_tokens=256), tmp_path / "model")
    main([str(folder), "--documents", "40", "--samples", "2", "--out", str(tmp_path / "quality.json")])
    assert json.loads((tmp_path / "quality.json").read_text())["documents"] == 40


@pytest.mark.plain
@pytest.mark.skipif(not EMBEDDED.is_dir(), reason="no embedded checkpoint yet")
def test_the_embedded_checkpoint_is_good():
    folder = embedded_checkpoint()
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 8_000_000
    found = measure(read_checkpoint(folder), documents=600, samples=100)
    assert found.ratio <= 1.03
    assert found.grammatical_sentences >= 0.97
    assert len(found.told(0.95)) >= 10
