"""Fixtures: one tiny model per host, and generation that knows its close calls."""

from typing import Any

import pytest

from tests.evaluation.hosts import HOSTS, CloseCalls, make_host


@pytest.fixture(scope="session", params=HOSTS)
def hosted(request: pytest.FixtureRequest) -> Any:
    """A tiny random model on each host."""
    return make_host(request.param)


@pytest.fixture
def close_calls(monkeypatch: pytest.MonkeyPatch) -> CloseCalls:
    return CloseCalls(monkeypatch)
