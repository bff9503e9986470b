"""Array annotations that read `Float[Array, "text unit"]` and cost nothing where jaxtyping is not installed.

The training script runs on machines that have torch and transformers but not jaxtyping; there the shapes are only
words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

Array = np.ndarray

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
else:
    try:
        from jaxtyping import Bool, Float, Int
    except ImportError:

        class _Unchecked:
            """Stands in for a jaxtyping dtype: any shape, any array."""

            def __class_getitem__(cls, item: Any) -> Any:
                return Any

        Bool = Float = Int = _Unchecked

__all__ = ["Array", "Bool", "Float", "Int"]
