"""The HookedTransformer fixtures, and the models that run on either host."""

from __future__ import annotations

from typing import Any

import pytest

from tests.compat import folded_tinytalk, hooked_tiny, hooked_tinytalk

__all__ = ["folded_tinytalk", "hooked_tiny", "hooked_tinytalk"]


@pytest.fixture(scope="session", params=["tiny", "hooked_tiny"])
def host_model(request: pytest.FixtureRequest) -> Any:
    """A random model on each host; HookedTransformer with transformer-lens 3.9 only."""
    return request.getfixturevalue(request.param)
