"""Rows that are the same, or nearly: copies inside a side, on both sides, and near copies by their characters.

Near copies share at least `NEAR` of the runs of five characters that either has (Jaccard), case, punctuation and white
space aside. They are sought by min-wise hashing (Broder 1997) in bands (Indyk and Motwani 1998) and then measured
exactly: a pair at the limit is missed about once in 4,000, and the cost grows with the number of texts, not of pairs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int
from sklearn.feature_extraction.text import HashingVectorizer

from lens_steer.texts.lint.finding import Finding
from lens_steer.texts.lint.material import SIDES, Material

NEAR = 0.8
_SHINGLE = 5
_BANDS, _IN_BAND = 16, 4
_NEIGHBOURS = 8  # of a text in a bucket of texts that share a band: bounds the pairs that are measured
_PRIME = 4294967311  # above every hash of a run, and small enough that products stay below 2**64
_OFTEN = 0.1
"""A share of a side's rows from which what is a note elsewhere is a warning."""


def check_copies(material: Material) -> Iterator[Finding]:
    """Look for equal rows on both sides and inside a side, and for near copies across and inside sides."""
    yield from _equal(material)
    left, right = near_copies(material).T
    across = material.is_source[left] != material.is_source[right]
    together = "name near copies alike in groups, so that a split keeps them together, or leave all but one out"
    if across.any():
        rows = np.unique(np.concatenate([left[across], right[across]]))
        yield Finding(
            "near copies across sides",
            "warning",
            len(rows),
            f"{len(rows)} rows are nearly a row of the other side: nothing but a few characters tells them apart",
            f"{together}; where they are made in pairs, paired=True",
            material.places(np.stack([left[across], right[across]], axis=1)[:3].ravel(), 6),
        )
    if not across.all():
        rows = np.unique(np.concatenate([left[~across], right[~across]]))
        yield Finding(
            "near copies",
            "warning" if len(rows) >= _OFTEN * len(material.rows) else "note",
            len(rows),
            f"{len(rows)} rows are nearly another row of their side: one may be fitted on, the other measured",
            together,
            material.places(np.stack([left[~across], right[~across]], axis=1)[:3].ravel(), 6),
        )


def _equal(material: Material) -> Iterator[Finding]:
    size = material.size
    both = np.intersect1d(material.hashes[:size], material.hashes[size:])
    if len(both):
        rows = np.flatnonzero(np.isin(material.hashes, both))
        yield Finding(
            "texts on both sides",
            "severe",
            len(rows),
            f"{len(both)} different texts stand on both sides, in {len(rows)} rows: nothing tells source from target "
            "there",
            "leave them out of one side",
            material.places(rows),
        )
    for name, begin, end in zip(SIDES, (0, size), (size, len(material.rows))):
        hashes = material.hashes[begin:end]
        _, first = np.unique(hashes, return_index=True)
        again = np.setdiff1d(np.arange(len(hashes)), first) + begin
        if len(again):
            yield Finding(
                f"copies in {name}",
                "warning" if len(again) >= _OFTEN * len(hashes) else "note",
                len(again),
                f"{len(again)} of {len(hashes)} {name} rows repeat an earlier one: a copy adds no evidence",
                "leave copies out (a split keeps them together)",
                material.places(again),
            )


def near_copies(material: Material) -> Int[np.ndarray, "pair 2"]:
    """Return the pairs of rows of different blocks, the smaller number first, that are nearly the same."""
    shingles = _shingles(material.whole)
    rows = np.flatnonzero(np.diff(shingles.indptr) > 0)
    if len(rows) < 2:
        return np.empty((0, 2), dtype=np.int64)
    shingles = shingles[rows]
    signatures = _signatures(shingles)
    pairs = _candidates(signatures)
    pairs = pairs[material.blocks[rows[pairs[:, 0]]] != material.blocks[rows[pairs[:, 1]]]]
    # An estimate first, four standard deviations below the limit: cheap, and bounds what is measured.
    alike = (signatures[:, pairs[:, 0]] == signatures[:, pairs[:, 1]]).mean(0)
    pairs = pairs[alike >= NEAR - 0.2]
    shared = np.asarray(shingles[pairs[:, 0]].multiply(shingles[pairs[:, 1]]).sum(1)).ravel()
    sizes = np.diff(shingles.indptr)
    near = shared >= NEAR * (sizes[pairs[:, 0]] + sizes[pairs[:, 1]] - shared)
    found: Int[np.ndarray, "pair 2"] = rows[pairs[near]]
    return found


def _shingles(texts: tuple[str, ...]) -> Any:
    """Which runs of five characters a text holds: a sparse table [text, hash]."""
    vectorizer = HashingVectorizer(
        analyzer="char",
        ngram_range=(_SHINGLE, _SHINGLE),
        preprocessor=_plain,
        binary=True,
        norm=None,
        alternate_sign=False,
        n_features=2**20,
        dtype=np.float32,
    )
    return vectorizer.transform(texts).tocsr()


def _plain(text: str) -> str:
    return re.sub(r"[\W_]+", " ", text.lower()).strip()


def _signatures(shingles: Any) -> Int[np.ndarray, "hash text"]:
    """Per text the least value of each of many random hashes of its runs: equal with the probability Jaccard has."""
    rng = np.random.default_rng(0)
    factors, offsets = rng.integers(1, _PRIME, size=(2, _BANDS * _IN_BAND), dtype=np.uint64)
    indices = shingles.indices.astype(np.uint64)
    least = [
        np.minimum.reduceat((factor * indices + offset) % np.uint64(_PRIME), shingles.indptr[:-1])
        for factor, offset in zip(factors, offsets)
    ]
    return np.stack(least).astype(np.int64)


def _candidates(signatures: Int[np.ndarray, "hash text"]) -> Int[np.ndarray, "pair 2"]:
    """Pairs of texts whose signatures agree in a whole band, of neighbours in a random order where many do."""
    count = signatures.shape[1]
    shuffled = np.random.default_rng(0).permutation(count)
    found = []
    for band in np.split(signatures, _BANDS):
        _, bucket = np.unique(band, axis=1, return_inverse=True)
        bucket = bucket.reshape(-1)
        order = shuffled[np.argsort(bucket[shuffled], kind="stable")]
        for step in range(1, min(_NEIGHBOURS, count - 1) + 1):
            same = bucket[order[:-step]] == bucket[order[step:]]
            found.append(np.stack([order[:-step][same], order[step:][same]], axis=1))
    pairs = np.sort(np.concatenate(found), axis=1)
    unique: Int[np.ndarray, "pair 2"] = np.unique(pairs, axis=0)
    return unique
