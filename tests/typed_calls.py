"""What a type checker reads off calls whose result depends on their arguments: mypy checks this file, nothing runs it.

An ignore that is not needed is an error of its own, so that each says that a call is refused.
"""

from __future__ import annotations

from typing import Any, Literal, assert_type

import lens_steer as ls


def collected(
    model: Any,
    contrast: ls.ContrastSet,
    stream: ls.TextStream,
    either: ls.ContrastSet | ls.TextStream,
    reduce: ls.Sketching | Literal["sketch"] | None,
) -> None:
    """`collect`: values, or with reduce= a sketch; a stream is sketched, and generated tokens are kept as values."""
    assert_type(ls.collect(model, contrast), ls.Activations)
    assert_type(ls.collect(model, contrast.labelled, store="place"), ls.Activations)
    assert_type(ls.collect(model, contrast, of="generated", max_new_tokens=8, seed=1), ls.Activations)
    assert_type(ls.collect(model, contrast, reduce="sketch"), ls.ActivationSketch)
    assert_type(ls.collect(model, either, reduce=ls.Sketching()), ls.ActivationSketch)
    assert_type(ls.collect(model, contrast, reduce=reduce), ls.Activations | ls.ActivationSketch)
    ls.collect(model, stream)  # type: ignore[call-overload]
    ls.collect(model, either, reduce=reduce)  # type: ignore[arg-type]
    ls.collect(model, contrast, max_new_tokens=8)  # type: ignore[call-overload]
    ls.collect(model, contrast, of="generated", reduce="sketch")  # type: ignore[call-overload]
    ls.collect(model, contrast, reduce="sketch", seed=1)  # type: ignore[call-overload]
