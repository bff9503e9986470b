"""The documentation: its examples run, every public name has its place, and the README leads to what is there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lens_steer

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_RUN = "# not run:"
# The same calls on fewer texts, and on the model at hand.
HASTE = {
    'ls.load_model("microworld")': "model",
    'ls.read_contrast("microworld:rude")': 'ls.read_contrast("microworld:rude", n=40)',
    "contrast.lint()": "contrast",
    "subsample(32, seed=0)": "subsample(4, seed=0)",
    "subsample(20, seed=0)": "subsample(6, seed=0)",
    "subsample(16, seed=0)": "subsample(4, seed=0)",
    "LinEAS(gamma_share=0.1)": "LinEAS(gamma_share=0.1, steps=3)",
    "LinEAS(units=200)": "LinEAS(gamma_share=0.1, steps=3)",
    'items=("dose", "effect", "cost")': 'items=("dose", "cost")',
    "open_prompts(100)": "open_prompts(8)",
    'given={"register": "plain"}': 'given={"register": "plain"}, n=8',
    "most=40": "most=8",
    "[:40]": "[:8]",
    "[:20]": "[:8]",
    "[:16]": "[:6]",
}


def blocks(page: Path) -> list[tuple[int, str]]:
    """Return the line and the text of every block of Python on a page."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [(text[: match.start(1)].count("\n") + 1, match[1]) for match in found]


EXAMPLES = [page for page in PAGES if blocks(page)]


@pytest.fixture(scope="module")
def given(embedded: Any) -> dict[str, Any]:
    """What a page may take for granted that does not make it itself."""
    train, held = lens_steer.read_contrast("microworld:rude", n=60).split(test=0.5, seed=0)
    acts = lens_steer.collect(embedded, train, "mlp.hook_post", progress=False)
    experts = lens_steer.rank_experts(acts)
    return {
        "ls": lens_steer,
        "model": embedded,
        "train": train,
        "held": held,
        "edit": lens_steer.ablate(experts.units(64), mode="target_mean", activations=acts),
        "experts": experts,
        "prompts": lens_steer.beginnings(held.source, words=4, most=12),
    }


@pytest.mark.plain  # as users run them; the type checks would double the time
@pytest.mark.filterwarnings("default::lens_steer.errors.LensSteerWarning")
@pytest.mark.parametrize("page", EXAMPLES, ids=lambda page: page.name)
def test_the_examples_run(page: Path, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    names = dict(given)
    for line, source in blocks(page):
        if NOT_RUN in source:
            continue
        for slow, quick in HASTE.items():
            source = source.replace(slow, quick)
        exec(compile("\n" * (line - 1) + source, str(page), "exec"), names)


@pytest.mark.parametrize("page", EXAMPLES, ids=lambda page: page.name)
def test_the_examples_name_what_there_is(page: Path) -> None:
    """Also those that are not run, and calls within sentences."""
    for line, source in blocks(page):
        ast.parse(source, f"{page}:{line}")
    called = set(re.findall(r"\bls\.(\w+)", page.read_text(encoding="utf-8")))
    assert called <= set(lens_steer.__all__), f"{page.name} calls {sorted(called - set(lens_steer.__all__))}"


def documented(names: str) -> Iterator[str]:
    return (match[1] for match in re.finditer(r"^\.\. auto(?:class|function|exception):: (\w+)$", names, re.MULTILINE))


def test_every_public_name_is_on_one_page_of_the_reference() -> None:
    pages = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs" / "api").glob("*.md")))
    assert sorted([*documented(pages), "figures"]) == sorted(lens_steer.__all__)
    assert "automodule:: lens_steer.figures" in pages


def test_links_of_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), f"README.md links to {target}, which is not there"
