"""`lens-steer unit`: all that can be said of one unit, as one HTML page or as a run folder for a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from lens_steer.cli.option_values import lines_of, words_of
from lens_steer.cli.options import DIRECTORY, FILE, BatchSize, Count, ModelOptions, Seed, TextOptions, settings_of
from lens_steer.cli.reporting import tell
from lens_steer.cli.runs import require_free_place, say, say_written, show, write_run

if TYPE_CHECKING:
    from lens_steer.texts.contrast import ContrastSet


_SHOWN = ["part", "direction", "token", "z"]


def unit(
    name: str,
    /,
    *,
    model: ModelOptions,
    texts: TextOptions = TextOptions(),
    out: Annotated[Path, Parameter(help="New file, NAME.html, or new run folder for `report`.")] = Path("unit.html"),
    interventions: Annotated[
        list[Annotated[Path, Parameter(validator=DIRECTORY)]] | None, Parameter(consume_multiple=True)
    ] = None,
    words: str | None = None,
    unrelated: Annotated[Path | None, Parameter(validator=FILE)] = None,
    pool: Literal["max", "mean", "last", "first"] = "max",
    top: Count = 10,
    batch_size: BatchSize = None,
    seed: Seed = 0,
) -> None:
    """Say of one unit what it reads, writes, tells and causes; writes one HTML page, or a run folder.

    The texts are a contrast, or several, whose AUROC is told; or one .txt file of plain texts, one a line.

    Example: lens-steer unit "blocks.2.mlp.hook_post[17]" --model gpt2 --texts texts.txt --out unit.html

    Parameters
    ----------
    name:
        The unit, as tables print it; of heads "blocks.2.attn.hook_z[3, 7]".
    interventions:
        Directories that `fit` wrote, whose scale and shift of the unit are told.
    words:
        Words of the concept (commas), one token each, whose probability is measured too.
    unrelated:
        Texts that have to do with nothing, one a line, to tell whether the unit is universal.
    pool:
        How a text's tokens become one value.
    top:
        Texts and tokens of each kind that are told.

    """
    from lens_steer.effects.unit_page import unit_page
    from lens_steer.host.units import require_unit_name
    from lens_steer.interventions.intervention import Intervention
    from lens_steer.report.result_study import result_study

    settings = settings_of(
        model, texts, unit=name, out=out, interventions=interventions, words=words, unrelated=unrelated, pool=pool,
        top=top, batch_size=batch_size, seed=seed,
    )  # fmt: skip
    require_unit_name(name)
    require_free_place(out)
    given = _texts(texts, seed)
    edits = {path.name: Intervention.load(path) for path in interventions or ()}
    listed = words_of(words) if words is not None else []
    neutral = lines_of(unrelated) if unrelated is not None else []
    hosted = model.load()
    page = unit_page(
        hosted,
        name,
        **given,
        interventions=edits,
        words=listed,
        unrelated=neutral,
        pool=pool,
        top=top,
        batch_size=batch_size,
        seed=seed,
    )
    show(page.tokens[page.tokens["rank"] < 3][_SHOWN])
    say("")
    for sentence in (*page.sentences, *page.notes):
        say(sentence)
    if out.suffix.casefold() in (".html", ".htm"):
        tables = {name: getattr(page, name) for name in ("tokens", "concepts", "edits", "causes", "nearest")}
        tell(findings=[*page.sentences, *page.notes], tables=tables)
        say_written(page.save(out))
        return
    contrasts = given.get("contrasts", [])
    write_run(out, "unit", settings, result_study(page), hosted, contrasts[0] if len(contrasts) == 1 else None)


def _texts(texts: TextOptions, seed: int) -> dict[str, Any]:
    """Return the contrasts, or the plain texts of a single text file."""
    files = texts.texts or []
    if not texts.contrast and len(files) == 1 and files[0].suffix == ".txt" and not texts.reading:
        return {"texts": lines_of(files[0])}
    contrasts: list[ContrastSet] = texts.read_all(n=None, seed=seed)
    return {"contrasts": contrasts}
