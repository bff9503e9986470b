"""Fixtures: the tiny random families, and the real models and data beside the repository where they are present."""

from __future__ import annotations

import inspect
import os
import re
from functools import cache
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest
import torch
from hypothesis import settings

from tests import type_checks

os.environ.setdefault("HF_HUB_OFFLINE", "1")

SHARED = Path(__file__).parents[1].parent / "shared"
settings.register_profile("unhurried", deadline=None)  # the machine is noisy
settings.load_profile("unhurried")
type_checks.install()
torch.set_num_threads(1)  # the models are tiny: a second thread costs more than it gives


def pytest_configure(config: pytest.Config) -> None:
    # Here and not in pyproject.toml: naming the class there imports the package before its types are instrumented.
    config.addinivalue_line("filterwarnings", "error::lens_steer.errors.LensSteerWarning")
    config.addinivalue_line("markers", "refusal: speaks of errors (set by itself): what a type check could raise first")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not SHARED.is_dir():
        terminalreporter.write_line(f"tests marked real were skipped: there is no {SHARED.name}/ beside the repository")


_OF_ERRORS = re.compile(r"raises|warns|[Ee]rror|except|refus|status|exit|capsys|fail")


@cache
def _functions_of_errors(module: ModuleType) -> tuple[str, ...]:
    """Return the names of the functions and fixtures of a test file, but its tests, that speak of errors."""
    written = re.split(r"^(?=def |@pytest\.fixture)", inspect.getsource(module), flags=re.MULTILINE)
    named = [(re.search(r"^def (\w+)", part, re.MULTILINE), part) for part in written]
    return tuple(name[1] for name, part in named if name and name[1][:5] != "test_" and _OF_ERRORS.search(part))


@cache  # once for all parameters of a test
def _speaks_of_errors(function: FunctionType, module: ModuleType, fixtures: frozenset[str]) -> bool:
    source = inspect.getsource(function)
    called = (re.search(rf"\b{name}\b", source) for name in _functions_of_errors(module))
    return bool(_OF_ERRORS.search(source) or any(called) or fixtures & set(_functions_of_errors(module)))


@pytest.hookimpl(tryfirst=True)  # before -m selects by the marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and _speaks_of_errors(
            item.function, item.module, frozenset(item.fixturenames)
        ):
            item.add_marker("refusal")
    if config.getoption("jaxtyping_packages", None):
        plain = [item for item in items if item.get_closest_marker("plain")]
        items[:] = [item for item in items if not item.get_closest_marker("plain")]
        config.hook.pytest_deselected(items=plain)
    # Into the report, so that CI can count the tests of each mark.
    for item in items:
        for mark in ("real", "compat", "llm"):
            if item.get_closest_marker(mark):
                item.user_properties.append(("mark", mark))


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"the real models and data are not at {SHARED.name}/ beside the repository")
    return SHARED


@pytest.fixture(scope="session")
def smollm2() -> Any:
    """SmolLM2-135M-Instruct: Llama with grouped heads, 30 layers of 576, and a chat template."""
    from lens_steer.errors import ModelError
    from lens_steer.host.load import load_model
    from lens_steer.host.model_cache import cached_model

    try:
        cached_model("smollm2")
    except ModelError as error:
        pytest.skip(str(error))
    return load_model("smollm2")


@pytest.fixture(scope="session")
def tinytalk(shared: Path) -> Any:
    """GPT-Neo, 8 layers of 128."""
    from lens_steer.host.load import load_model

    return load_model(shared / "models" / "tinytalk-neo")


@pytest.fixture(scope="session")
def stories(shared: Path) -> Any:
    """Llama with grouped heads, 5 layers of 64."""
    from lens_steer.host.load import load_model

    return load_model(shared / "models" / "stories260K")


@pytest.fixture(scope="session")
def embedded() -> Any:
    """The embedded model of the microworld: GPT-2's layout."""
    from lens_steer.host.load import load_model

    return load_model("microworld")


@pytest.fixture(scope="session")
def hooked_embedded() -> Any:
    """The embedded model as a HookedTransformer with the checkpoint's own weights."""
    from tests.compat import make_hooked_embedded

    return make_hooked_embedded()


@pytest.fixture(scope="session", params=["embedded", "hooked_embedded"])
def embedded_host(request: pytest.FixtureRequest) -> Any:
    """The embedded model on each host; HookedTransformer with transformer-lens 3.9 only."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session", params=["tinytalk", "stories"])
def real_model(request: pytest.FixtureRequest) -> Any:
    """Each of the two real models."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def tiny() -> Any:
    """One random model for tests of everything that does not depend on the architecture: GPT-2, 2 layers of 32."""
    from tests.families import make_tiny

    return make_tiny("gpt2")


@pytest.fixture(scope="session", params=["gpt2", "gpt_neox", "llama", "qwen2", "mistral", "gemma2"])
def family(request: pytest.FixtureRequest) -> Any:
    """Each family that the toolkit promises, as a random model."""
    from tests.families import shared_tiny

    return shared_tiny(request.param)


@pytest.fixture(scope="session", params=["gpt_neox", "llama", "gemma2"])
def distinct_family(request: pytest.FixtureRequest) -> Any:
    """The families laid out unlike GPT-2 and unlike each other, where `tiny` is tested anyway.

    Parallel branches; a gated MLP and grouped heads; norms behind the branches. Qwen2 and Mistral are laid out as Llama
    is: `family` has them too, for what reads their biases or goes by their name.
    """
    from tests.families import shared_tiny

    return shared_tiny(request.param)
