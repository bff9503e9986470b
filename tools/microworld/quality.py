"""Is a checkpoint good enough to be embedded? `python -m tools.microworld.quality DIR` measures it on fresh
documents.

Three questions: how close its loss comes to the oracle's own cross-entropy (nats per token, the end of the document
included), which share of the sentences it samples at temperature 1 is grammatical, and how well its best MLP unit
tells each attribute value.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch.nn import functional as F

from lens_steer.microworld.checkpoint import read_checkpoint
from lens_steer.microworld.english import english
from lens_steer.microworld.grammar import BOS, EOS, PAD
from lens_steer.microworld.oracle import Oracle
from lens_steer.microworld.sampler import Document, sample
from lens_steer.microworld.tokenizer import POSITIONS
from lens_steer.statistics.scores import auroc

FRESH_SEED = 20_260_101


@dataclass(frozen=True)
class Quality:
    """Losses in nats per token; `ratio` is loss over the oracle's; `units`: value -> layer, unit, held-out AUROC."""

    documents: int
    loss: float
    oracle: float
    ratio: float
    grammatical_sentences: float
    readable_texts: float
    sampled_sentences: int
    units: Mapping[str, tuple[int, int, float]]

    def told(self, threshold: float = 0.95) -> list[str]:
        """The attribute values that one unit tells with a held-out AUROC of at least `threshold`."""
        return [value for value, (_, _, score) in self.units.items() if score >= threshold]


def measure(model: Any, *, documents: int = 2000, samples: int = 500, seed: int = FRESH_SEED) -> Quality:
    """Measure a GPT2LMHeadModel of this vocabulary on `documents` fresh documents and `samples` sampled texts."""
    drawn = sample(documents, seed=seed)
    oracle = Oracle()
    likelihood = sum(oracle.log_likelihood(document.text) for document in drawn)
    tokens = sum(len(document.text.split()) + 1 for document in drawn)
    loss, activations = read_documents(model, drawn)
    texts = sample_texts(model, samples, seed=seed)
    sentences = [sentence for text in texts for sentence in oracle.sentences(text)]
    entropy = -likelihood / tokens
    return Quality(
        documents=documents,
        loss=loss,
        oracle=entropy,
        ratio=loss / entropy,
        grammatical_sentences=float(np.mean([sentence.grammatical for sentence in sentences])),
        readable_texts=float(np.mean([oracle.posterior(text).readable for text in texts])),
        sampled_sentences=len(sentences),
        units=best_units(activations, drawn),
    )


@torch.no_grad()
def read_documents(model: Any, drawn: Sequence[Document], *, batch_size: int = 100) -> tuple[float, list[np.ndarray]]:
    """The model's loss in nats per token, and per layer the MLP activations after the non-linearity, their maxima
    over the words.

    The activations have shape [text, unit]; `<bos>` and padding stay out.
    """
    ids = english().ids
    kept: list[torch.Tensor] = []
    handles = [
        block.mlp.act.register_forward_hook(lambda module, inputs, output: kept.append(output))
        for block in model.transformer.h
    ]
    total, tokens = 0.0, 0
    pooled: list[list[np.ndarray]] = [[] for _ in handles]
    try:
        for first in range(0, len(drawn), batch_size):
            rows = [
                [ids[BOS], *(ids[word] for word in document.text.split()), ids[EOS]]
                for document in drawn[first : first + batch_size]
            ]
            width = max(map(len, rows))
            batch = torch.tensor([row + [ids[PAD]] * (width - len(row)) for row in rows], device=model.device)
            mask = batch != ids[PAD]
            kept.clear()
            logits = model(batch, attention_mask=mask.long(), use_cache=False).logits[:, :-1].float()
            wanted = batch[:, 1:].masked_fill(~mask[:, 1:], -100)
            total += float(F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum"))
            tokens += int(mask[:, 1:].sum())
            words = mask & (batch != ids[BOS]) & (batch != ids[EOS])
            for layer, values in enumerate(kept):
                pooled[layer].append(values.float().masked_fill(~words[..., None], -torch.inf).amax(1).cpu().numpy())
    finally:
        for handle in handles:
            handle.remove()
    return total / tokens, [np.concatenate(layer) for layer in pooled]


def best_units(activations: Sequence[np.ndarray], drawn: Sequence[Document]) -> dict[str, tuple[int, int, float]]:
    """Per `attribute=value` the layer and unit chosen on half of the documents and its AUROC on the other half.

    The person of a talk does not show in it, so person is told among the stories; the speaker among the talks.
    """
    units = np.concatenate(activations, axis=-1)
    width = activations[0].shape[-1]
    talk = np.array([document.attributes["speaker"] != "none" for document in drawn])
    best: dict[str, tuple[int, int, float]] = {}
    for attribute in english().attributes:
        rows = {"person": ~talk, "speaker": talk}.get(attribute.name, np.ones(len(drawn), dtype=bool))
        drawn_values = np.array([document.attributes[attribute.name] for document in drawn])[rows]
        values = [value for value in attribute.values if value != "none"]
        for value in values:
            unit, score = best_heldout(torch.from_numpy(units[rows]), torch.from_numpy(drawn_values == value))
            best[f"{attribute.name}={value}"] = (unit // width, unit % width, score)
    return best


def best_heldout(
    activations: Float[torch.Tensor, "text unit"], shows: Bool[torch.Tensor, " text"]
) -> tuple[int, float]:
    """Return the unit that is best on the even documents, and its AUROC on the odd ones (nan: a half lacks a kind)."""
    even, odd = ((activations[part], shows[part]) for part in (slice(0, None, 2), slice(1, None, 2)))
    if not all(0 < int(shown.sum()) < len(shown) for _, shown in (even, odd)):
        return 0, float("nan")  # too few documents to hold both kinds in both halves
    scores = [auroc(values[shown], values[~shown]) for values, shown in (even, odd)]
    unit = int(scores[0].argmax())
    return unit, float(scores[1][unit])


@torch.no_grad()
def sample_texts(model: Any, n: int, *, seed: int = 0, batch_size: int = 250) -> list[str]:
    """`n` texts sampled at temperature 1 without truncation, from `<bos>` to `<eos>`."""
    grammar = english()
    texts: list[str] = []
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for first in range(0, n, batch_size):
            start = torch.full((min(batch_size, n - first), 1), grammar.ids[BOS], device=model.device)
            drawn = model.generate(
                start,
                attention_mask=torch.ones_like(start),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=POSITIONS - 1,
                eos_token_id=grammar.ids[EOS],
                pad_token_id=grammar.ids[PAD],
            )
            for row in drawn[:, 1:].tolist():
                length = row.index(grammar.ids[EOS]) if grammar.ids[EOS] in row else len(row)
                texts.append(" ".join(grammar.words[token] for token in row[:length]))
    return texts


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, measure, write the numbers as JSON."""
    parser = argparse.ArgumentParser(prog="python -m tools.microworld.quality", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a checkpoint written by tools.microworld.train")
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=None, help="write the JSON here instead of to the terminal")
    chosen = parser.parse_args(arguments)
    model = read_checkpoint(chosen.folder, device=chosen.device)
    quality = measure(model, documents=chosen.documents, samples=chosen.samples)
    lines = quality.told()
    text = json.dumps({**asdict(quality), "values_told": lines, "number_told": len(lines)}, indent=2)
    if chosen.out is None:
        print(text)  # noqa: T201 - the command's result
    else:
        chosen.out.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
