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
from jaxtyping import Int, UInt32
from sklearn.feature_extraction.text import HashingVectorizer

from lens_steer.texts.lint.finding import Finding
from lens_steer.texts.lint.material import SIDES, Material

NEAR = 0.8
_SHINGLE = 5
_BANDS, _IN_BAND = 16, 4
_NEIGHBOURS = 8  # of a text in a bucket of texts that share a band: bounds the pairs that are measured
_AT_ONCE = 20_000  # pairs that are measured at once
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
    pairs = _candidates(_signatures(shingles), material.blocks[rows])
    sizes = np.diff(shingles.indptr)
    shared = np.concatenate(
        [
            np.asarray(shingles[part[:, 0]].multiply(shingles[part[:, 1]]).sum(1)).ravel()
            for part in np.split(pairs, range(_AT_ONCE, len(pairs), _AT_ONCE))
        ]
    )
    near = shared >= NEAR * (sizes[pairs[:, 0]] + sizes[pairs[:, 1]] - shared)
    near_pairs: Int[np.ndarray, "pair 2"] = rows[pairs[near]]
    return near_pairs


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


def _signatures(shingles: Any) -> UInt32[np.ndarray, "text hash"]:
    """Per text the least value of each of many random hashes of its runs: equal with the probability Jaccard has."""
    rng = np.random.default_rng(0)
    factors, offsets = rng.integers(2**63, size=(2, _BANDS * _IN_BAND), dtype=np.uint64)
    indices = shingles.indices.astype(np.uint64)
    least = np.empty((shingles.shape[0], len(factors)), dtype=np.uint32)
    for column, (factor, offset) in enumerate(zip(factors, offsets)):
        # The upper half of a product that wraps around (Dietzfelbinger et al. 1997).
        hashed = ((factor * np.uint64(2) + np.uint64(1)) * indices + offset) >> np.uint64(32)
        least[:, column] = np.minimum.reduceat(hashed, shingles.indptr[:-1])
    return least


def _candidates(
    signatures: UInt32[np.ndarray, "text hash"], blocks: Int[np.ndarray, " text"]
) -> Int[np.ndarray, "pair 2"]:
    """Pairs of texts of different blocks whose signatures agree in a whole band, and nearly as often as near copies'.

    Where many texts agree in a band, each is paired with some neighbours of a random order.
    """
    count = len(signatures)
    shuffled = np.random.default_rng(0).permutation(count)
    candidates = [np.empty((0, 2), dtype=np.int64)]
    for band in np.split(signatures, _BANDS, axis=1):
        _, bucket = np.unique(np.ascontiguousarray(band).view(f"V{4 * _IN_BAND}").ravel(), return_inverse=True)
        order = shuffled[np.argsort(bucket[shuffled], kind="stable")]
        for step in range(1, min(_NEIGHBOURS, count - 1) + 1):
            one, other = order[:-step], order[step:]
            same = (bucket[one] == bucket[other]) & (blocks[one] != blocks[other])
            one, other = one[same], other[same]
            # An estimate first, four standard deviations below the limit: cheap, and bounds what is measured.
            alike = (signatures[one] == signatures[other]).mean(1) >= NEAR - 0.2
            candidates.append(np.stack([one[alike], other[alike]], axis=1))
    unique: Int[np.ndarray, "pair 2"] = np.unique(np.sort(np.concatenate(candidates), axis=1), axis=0)
    return unique
