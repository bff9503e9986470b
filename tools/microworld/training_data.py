"""Fresh documents for training, drawn ahead in worker processes so that an accelerator never waits.

Chunk c depends on (seed, c) only, and its batches are cut and ordered by that too, so that a resumed training sees
the very batches it would have seen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
from jaxtyping import Bool, Float, Int

from lens_steer.microworld.english import english
from lens_steer.microworld.grammar import BOS, PAD
from lens_steer.microworld.sampler import Sampler
from tools.microworld.laws import Laws

CHUNK = 8192
_TRAINING_STREAM = 977


@dataclass(frozen=True, eq=False, repr=False)
class Batch:
    """Rows of token ids, `<bos>` first and `<eos>` last, filled up with `<pad>`; and before each word after `<bos>` the
    number of its law (-1 at the padding) and the registers.
    """

    ids: Int[np.ndarray, "text position"]
    law: Int[np.ndarray, "text word"]
    memory: Int[np.ndarray, "text word register"]

    @property
    def words(self) -> Bool[np.ndarray, "text word"]:
        """Where a word follows that is not padding."""
        return self.law >= 0

    def targets(self) -> Float[np.ndarray, "n vocabulary"]:
        """The law of every word where `words` is true, row by row."""
        return Laws.of(english()).fill(self.law[self.words], self.memory[self.words])


def chunk_batches(seed: int, chunk: int, batch_tokens: int) -> list[Batch]:
    """The batches of a chunk. Texts of like length go together; a batch holds at most `batch_tokens` tokens, padding
    included.
    """
    grammar = english()
    walk = Sampler.of(grammar).draw(CHUNK, stream=(seed, chunk, _TRAINING_STREAM), given={})
    law = Laws.of(grammar).number(walk)
    ids = np.concatenate([np.full((CHUNK, 1), grammar.ids[BOS]), walk.ids], axis=-1)
    lengths = (ids >= 0).sum(-1)
    order = np.argsort(lengths, kind="stable")
    batches, first = [], 0
    while first < CHUNK:
        last = first + 1
        while last < CHUNK and (last + 1 - first) * lengths[order[last]] <= batch_tokens:
            last += 1
        rows, width = order[first:last], lengths[order[last - 1]]
        padded = np.where(ids[rows, :width] < 0, grammar.ids[PAD], ids[rows, :width])
        batches.append(Batch(padded.astype(np.int16), law[rows, : width - 1], walk.memory[rows, : width - 1]))
        first = last
    shuffled = np.random.default_rng([seed, chunk, _TRAINING_STREAM + 1]).permutation(len(batches))
    return [batches[index] for index in shuffled]


def stream_batches(seed: int, batch_tokens: int, *, skip: int = 0, workers: int = 0) -> Generator[Batch, None, None]:
    """Batches without end, from number `skip` on."""
    if workers == 0:
        for batches in _inline(seed, batch_tokens):
            yield from batches[skip:]
            skip = max(0, skip - len(batches))
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        ahead: deque[Future[list[Batch]]] = deque(
            pool.submit(chunk_batches, seed, chunk, batch_tokens) for chunk in range(2 * workers)
        )
        chunk = len(ahead)
        try:
            while True:
                batches = ahead.popleft().result()
                ahead.append(pool.submit(chunk_batches, seed, chunk, batch_tokens))
                chunk += 1
                yield from batches[skip:]
                skip = max(0, skip - len(batches))
        finally:
            for future in ahead:
                future.cancel()


def _inline(seed: int, batch_tokens: int) -> Iterator[list[Batch]]:
    chunk = 0
    while True:
        yield chunk_batches(seed, chunk, batch_tokens)
        chunk += 1
