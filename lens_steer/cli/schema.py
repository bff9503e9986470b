"""`lens-steer schema`: what `--json` writes, as a JSON Schema."""

from __future__ import annotations

import json

from lens_steer.cli.runs import say


def schema() -> None:
    """Print the JSON Schema of what --json writes; it is the same for every command.

    Example: lens-steer schema > lens-steer.schema.json
    """
    from lens_steer.cli.json_result import JsonResult

    say(json.dumps(JsonResult.model_json_schema(), indent=2))
