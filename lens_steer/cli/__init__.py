"""The command line: from models and texts over rank, fit and evaluate to card, report and demo.

Each command is a few library calls; everything heavy is imported inside it, so that help costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from lens_steer.cli.again import again_app
from lens_steer.cli.card import card
from lens_steer.cli.demo import demo
from lens_steer.cli.doctor.command import doctor
from lens_steer.cli.fitting import bake, fit
from lens_steer.cli.linting import lint
from lens_steer.cli.measuring import ablate, evaluate, generate
from lens_steer.cli.models import convert, get
from lens_steer.cli.ranking import rank, sites
from lens_steer.cli.report import report
from lens_steer.cli.reporting import with_shared_options
from lens_steer.cli.running import app_of, run
from lens_steer.cli.schema import schema
from lens_steer.cli.study import study_app
from lens_steer.cli.unit import unit
from lens_steer.cli.vectors import export, import_

app = app_of(
    "lens-steer", "Find a language model's expert units, steer it by editing few of them, and see what it does."
)
_COMMANDS: tuple[Callable[..., None], ...] = (
    sites,
    lint,
    rank,
    unit,
    fit,
    ablate,
    generate,
    evaluate,
    card,
    export,
    report,
    demo,
    get,
    doctor,
)
for command in _COMMANDS:
    app.command(with_shared_options(command))
app.command(with_shared_options(import_), name="import")
for command in (bake, convert):  # what they write is a model: no option deletes one
    app.command(with_shared_options(command, replaces=False))
app.command(study_app())
app.command(again_app(app), name="again", help_flags=["--help"])
app.command(schema)
app.register_install_completion_command(
    help="Install tab completion for this shell.\n\nExample: lens-steer --install-completion"
)


def main() -> None:
    """Run the command line, with the exit statuses of `exit_status`."""
    run(app, "lens-steer")
