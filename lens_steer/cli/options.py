"""The options that commands share, and how they are read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lens_steer.errors import SettingError

if TYPE_CHECKING:
    from lens_steer.texts.contrast import ContrastSet

Model = Annotated[str, typer.Option(help="Hub name or directory of the model.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; the library's choice when left out.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
BatchSize = Annotated[int | None, typer.Option(help="Texts per batch; chosen by length when left out.")]
Seed = Annotated[int, typer.Option(help="Seed of every split and draw.")]
Out = Annotated[Path, typer.Option(help="New directory for the results.")]
Texts = Annotated[
    list[Path], typer.Option(help="csv, tsv, jsonl, parquet or concept JSON; or twice: source texts, target texts.")
]
Text = Annotated[str, typer.Option(help="Column of the texts.")]
Label = Annotated[str, typer.Option(help="Column of the labels.")]
Source = Annotated[str | None, typer.Option(help="Label of the source: what to move away from.")]
Target = Annotated[str | None, typer.Option(help="Label of the target; every other label when left out.")]
Chat = Annotated[str | None, typer.Option(help='"template", or a format such as "User: {text}\\nBot:".')]
Number = Annotated[int | None, typer.Option("--n", help="Texts a side, drawn by the seed; all when left out.")]
Sites = Annotated[str, typer.Option(help="Kind, name, glob or preset of the sites; several with commas.")]
Strength = Annotated[float, typer.Option(help="0 changes nothing, 1 is the edit as fitted.")]
Prompts = Annotated[Path | None, typer.Option(help="Prompts, one a line; else the beginnings of held-out texts.")]
Words = Annotated[str | None, typer.Option(help="Score by these words (commas) instead of a trained classifier.")]
NewTokens = Annotated[int, typer.Option(help="Tokens per continuation.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]


def load(model: str, device: str | None, dtype: str) -> Any:
    """Load the model of --model, --device and --dtype."""
    import torch

    from lens_steer.host.load import load_model

    if dtype not in ("float32", "bfloat16", "float16"):
        raise SettingError(f"dtype is float32, bfloat16 or float16, not {dtype!r}")
    name = Path(model) if Path(model).is_dir() else model
    return load_model(name, device=device, dtype=getattr(torch, dtype))


def contrast_of(
    texts: list[Path],
    text: str,
    label: str,
    source: str | None,
    target: str | None,
    chat: str | None,
    n: int | None,
    seed: int,
) -> ContrastSet:
    """Read the contrast of --texts and the options that go with it."""
    from lens_steer.texts.readers import read_contrast

    if len(texts) > 2:
        raise SettingError("give --texts once (a table or concept JSON) or twice (source texts, target texts)")
    columns: dict[str, Any] = {"text": text, "label": label, "source": source, "target": target}
    place = (texts[0], texts[1]) if len(texts) == 2 else str(texts[0])
    return read_contrast(place, chat=chat_of(chat), n=n, seed=seed, **columns)


def halves_of(contrast: ContrastSet, n: int | None, seed: int) -> tuple[ContrastSet, ContrastSet]:
    """Split the texts in two, n a side of each: `fit` sees the first, `evaluate` and `ablate` score on the second."""
    first, second = contrast.split(test=0.5, seed=seed)
    if n is None:
        return first, second
    return first.subsample(n, seed=seed), second.subsample(min(n, len(second.source), len(second.target)), seed=seed)


def lines_of(path: Path) -> list[str]:
    """Read prompts, one a line."""
    if not path.is_file():
        raise SettingError(f"there is no file {path}: give prompts, one a line")
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise SettingError(f"{path} holds no prompt")
    return lines


def pattern_of(sites: str) -> list[str]:
    """Split --sites at its commas."""
    return [part.strip() for part in sites.split(",") if part.strip()]


def chat_of(chat: str | None) -> bool | str | None:
    """Read --chat: None, the template, or a format with \\n for a line break."""
    return True if chat == "template" else None if chat is None else chat.replace("\\n", "\n")


def pool_of(pool: str) -> Any:
    """Check --pool."""
    if pool not in ("max", "mean", "last", "first"):
        raise SettingError(f"no pool is named {pool!r}; there are max, mean, last and first")
    return pool
