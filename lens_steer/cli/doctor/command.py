"""The command: its checks in their order, as lines or as the block of a bug report."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from lens_steer.cli.doctor.check import Check, verdict
from lens_steer.cli.options import ModelOptions
from lens_steer.cli.reporting import tell
from lens_steer.cli.runs import say
from lens_steer.errors import ModelError, SettingError, SetupError

if TYPE_CHECKING:
    from lens_steer.cli.doctor.costs import Costs

_PATH = re.compile(r"(?<![\w./])(?:~|[A-Za-z]:)?[/\\][^\s'\",;:()\[\]]+")


def doctor(
    model: str = "microworld",
    /,
    *,
    device: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    markdown: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Say what this installation, this machine and a model can do, measured, and what is at fault.

    Versions, device, memory, cache; the model loads, its sites can be written, an edit acts and leaves no trace; traps
    of the tokenizer; seconds per forward pass and per LinEAS step, and the memory for both. Seconds on the embedded
    model, minutes on a real one. Exit status 6 where
    something is at fault.

    Example: lens-steer doctor

    Example: lens-steer doctor smollm2 --markdown

    Parameters
    ----------
    model:
        Hub name, directory or GGUF file of the model, or what `get` fetched.
    device:
        cpu, cuda, ...; the library's choice when left out.
    dtype:
        Precision of the weights.
    markdown:
        Write a block for a bug report, without the paths of this machine.

    """
    chosen = ModelOptions(model=model, device=device, dtype=dtype)
    chosen.check()
    from lens_steer.cli.doctor.installation import installed_versions

    values: dict[str, Any] = {"versions": installed_versions()}
    checks: list[Check] = []
    for check in _checks(chosen, values):
        checks.append(check)
        if not markdown:
            say(check.line)
    title = verdict(checks)
    if markdown:
        say(as_markdown(values, checks, title))
    else:
        say(f"\n{title}")
    tell(findings=[check.line for check in checks], verdicts={"setup": title}, values=values, tables=_tables(checks))
    if any(check.state == "fault" for check in checks):
        raise SetupError(f"{title}; `--markdown` writes a block for a bug report")


def _checks(chosen: ModelOptions, values: dict[str, Any]) -> Iterator[Check]:
    """Yield the checks as they are made, and add to `values` what they measure."""
    import torch

    from lens_steer.cli.doctor.costs import check_costs, measure_costs
    from lens_steer.cli.doctor.installation import check_cache, check_device, check_versions
    from lens_steer.cli.doctor.model import check_edit, check_sites, check_tokenizer, check_traps, facts_of
    from lens_steer.host.adapter import host_of

    yield from check_versions()
    yield from check_cache()
    begun = perf_counter()
    try:
        hosted = chosen.load()
    except (ModelError, SettingError) as error:
        yield from check_device(torch.device("cpu"))
        yield Check("model", "fault", f"does not load: {error}")
        return
    yield from check_device(host_of(hosted).device)
    values["model"] = facts = facts_of(hosted)
    shape = f"{facts['architecture']}, {facts['layers']} layers of {facts['width']}, {facts['parameters']:,} parameters"
    yield Check("model", "ok", f"loads in {perf_counter() - begun:.1f} s: {shape}, {facts['dtype']}, {facts['host']}")
    yield from check_traps(hosted)
    sites = list(check_sites(hosted))
    yield from sites
    edits = list(check_edit(hosted)) if sites[0].state == "ok" else []
    yield from edits
    yield from check_tokenizer(hosted)
    if edits and all(check.state != "fault" for check in edits):
        costs = measure_costs(hosted)
        values["costs"] = _of(costs)
        yield from check_costs(costs)


def _of(costs: Costs) -> dict[str, float]:
    named = {field.name: getattr(costs, field.name) for field in fields(costs)}
    return {name if "seconds" in name or name == "load" else f"{name}_bytes": value for name, value in named.items()}


def _tables(checks: list[Check]) -> dict[str, Any]:
    import pandas as pd

    return {"checks": pd.DataFrame([asdict(check) for check in checks])}


def as_markdown(values: dict[str, Any], checks: list[Check], said: str) -> str:
    """Return a block for a bug report; of paths only the last name stays."""
    versions = ", ".join(f"{name} {value}" for name, value in values["versions"].items())
    facts = ", ".join(f"{name} {value}" for name, value in values.get("model", {}).items())
    lines = [f"- **{check.name}** ({check.state}): {check.detail}" for check in checks]
    block = ["### lens-steer doctor", "", f"**{said}**", "", f"Versions: {versions}", ""]
    block += [f"Model: {facts}", ""] if facts else []
    return "\n".join(_without_paths(line) for line in [*block, *lines])


def _without_paths(text: str) -> str:
    return _PATH.sub(lambda match: f".../{Path(match[0].replace(chr(92), '/')).name}", text)
