"""The command line: from models and texts over rank, fit and evaluate to card, report and demo.

Each command is a few library calls; everything heavy is imported inside it, so that help costs nothing.
"""

from __future__ import annotations

from lens_steer.cli.card import card
from lens_steer.cli.demo import demo
from lens_steer.cli.fitting import bake, fit
from lens_steer.cli.linting import lint
from lens_steer.cli.measuring import ablate, evaluate, generate
from lens_steer.cli.models import convert, get
from lens_steer.cli.ranking import rank, sites
from lens_steer.cli.report import report
from lens_steer.cli.running import app_of, run
from lens_steer.cli.study import study_app
from lens_steer.cli.unit import unit
from lens_steer.cli.vectors import export, import_

app = app_of(
    "lens-steer", "Find a language model's expert units, steer it by editing few of them, and see what it does."
)
_COMMANDS = (sites, lint, rank, unit, fit, ablate, generate, evaluate, card, bake, export, report, demo, get, convert)
for command in _COMMANDS:
    app.command(command)
app.command(import_, name="import")
app.command(study_app())


def main() -> None:
    """Run the command line: exit status 1 for a user's mistake, 2 for wrong usage, 130 on Ctrl-C, 143 on SIGTERM."""
    run(app, "lens-steer")
