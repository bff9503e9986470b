"""Options that take several values: with commas, the option again, or both; none is left out in silence."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import cyclopts
import pytest

from lens_steer.cli.methods import MethodOptions
from lens_steer.cli.strengths import StrengthOptions
from lens_steer.cli.study_options import options_of


@dataclass(frozen=True, kw_only=True)
class Shared:
    seed: int = 0


def study(*, sites: str | tuple[str, ...] = "mlp.hook_post", ks: tuple[int, ...] = (1,)) -> None:
    """Ask something."""


def parsed(kind: Any, words: str) -> Any:
    app = cyclopts.App(result_action="return_value")

    @app.default
    def command(*, options: Any = None) -> Any:
        return options

    command.__annotations__["options"] = kind | None
    return app(words.split(), exit_on_error=False)


STUDY = options_of(study, cyclopts.Parameter(name="*")(Shared))


@pytest.mark.parametrize(
    ("kind", "option", "one", "other", "expected"),
    [
        (STUDY, "ks", "4", "16", (4, 16)),
        (STUDY, "sites", "hook_mlp_out", "hook_attn_out", ("hook_mlp_out", "hook_attn_out")),
        (MethodOptions, "layers", "8", "-1", (8, -1)),
        (StrengthOptions, "strengths", "0.5", "2", (0.5, 2.0)),
    ],
)
def test_several_values_are_all_taken(kind: Any, option: str, one: str, other: str, expected: Any) -> None:
    assert option in {field.name for field in fields(kind)}
    for words in (
        f"--{option} {one},{other}",
        f"--{option} {one} --{option} {other}",
        f"--{option} {one}, --{option} {other},",
    ):
        assert getattr(parsed(kind, words), option) == expected
    with pytest.raises(cyclopts.CycloptsError, match="several values are written with commas"):
        parsed(kind, f"--{option} ,")
