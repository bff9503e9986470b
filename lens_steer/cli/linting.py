"""`lens-steer lint`: what may be wrong with the texts of a contrast, before a model sees them."""

from __future__ import annotations

from lens_steer.cli.options import Seed, TextOptions
from lens_steer.cli.reporting import tell
from lens_steer.cli.runs import say
from lens_steer.errors import ContrastError


def lint(*, texts: TextOptions = TextOptions(), seed: Seed = 0) -> None:
    """Say what may be wrong with the texts: copies, length, words that give a side away, templates, too few, ...

    No model is loaded, and `fit` says the same before it loads one. Exit status 3 where something is severe.

    Example: lens-steer lint --texts toxic.txt --texts fine.txt
    """
    result = texts.read(n=None, seed=seed).lint(seed=seed)
    for line in [result.verdict, *(finding.sentence for finding in result.findings)]:
        say(line)
    tell(
        findings=[finding.sentence for finding in result.findings],
        verdicts={"texts": result.verdict},
        tables={"findings": result.frame},
    )
    if result.severe:
        raise ContrastError("these texts are not fit to learn from or to measure on: mend what is called severe")
