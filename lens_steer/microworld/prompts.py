"""Beginnings of documents to generate from: open ones, and ones that already show a concept."""

from __future__ import annotations

from zlib import crc32

import numpy as np

from lens_steer.microworld.attributes import REGISTER, SENTIMENT
from lens_steer.microworld.contrasts import SURE, concept
from lens_steer.microworld.grammar import STOPS
from lens_steer.microworld.oracle import Oracle
from lens_steer.microworld.requests import checked_count, checked_seed
from lens_steer.microworld.sampler import sample


def open_prompts(n: int = 100, *, seed: int = 0) -> list[str]:
    """`n` beginnings of stories, 2-5 words, that say nothing at all about register and sentiment.

    The oracle's posterior of both equals their prior (one third for each value), so that a third of the documents
    that go on from such a prompt are rude. Prompts may repeat.
    """
    n, seed = checked_count(n, "prompts"), checked_seed(seed)
    oracle, prompts, read = Oracle(), list[str](), 0
    lengths = np.random.default_rng([seed, 1213])
    while len(prompts) < n:
        drawn = sample(2 * max(read, n), seed=crc32(f"open/{seed}".encode()), speaker="none")
        for document in drawn[read:]:
            prefix = " ".join(document.text.split()[: lengths.integers(2, 6)])
            belief = oracle.posterior(prefix)
            even = all(
                abs(belief[attribute.name][value] - prior) < 1e-9
                for attribute in (REGISTER, SENTIMENT)
                for value, prior in zip(attribute.values, attribute.prior)
            )
            if even and not STOPS & set(prefix.split()):
                prompts.append(prefix)
        read = len(drawn)
    return prompts[:n]


def shown_prompts(value: str, n: int = 100, *, seed: int = 0) -> list[str]:
    """`n` beginnings (whole sentences, at least one more to come) that already show a named concept such as "rude".

    Each is the shortest beginning of its document after which the oracle is at least 90 % sure of the value.
    """
    asked = concept(value)
    n, seed = checked_count(n, "prompts"), checked_seed(seed)
    oracle, prompts, read = Oracle(), list[str](), 0
    fixed = {**asked.fixed, asked.attribute: asked.value}
    while len(prompts) < n:
        drawn = sample(2 * max(read, n), seed=crc32(f"shown/{value}/{seed}".encode()), **fixed)
        for document in drawn[read:]:
            words = document.text.split()
            ends = [index + 1 for index, word in enumerate(words) if word in STOPS][:-1]
            for end in ends:
                beginning = " ".join(words[:end])
                shown = oracle.posterior(beginning)[asked.attribute][asked.value] >= SURE
                if shown and (asked.word is None or asked.word in words[:end]):
                    prompts.append(beginning)
                    break
        read = len(drawn)
    return prompts[:n]
