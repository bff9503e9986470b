"""Print how many tests ran per mark, and fail where a mark that can run here did not."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from pathlib import Path


def counts(report: Path, mark: str | None = None) -> tuple[int, int]:
    """Return how many tests of a report ran and how many were skipped; of one mark, or of all."""
    ran = skipped = 0
    for case in ET.parse(report).iter("testcase"):
        marks = {item.get("value") for item in case.iter("property") if item.get("name") == "mark"}
        if mark is not None and mark not in marks:
            continue
        if case.find("skipped") is None:
            ran += 1
        else:
            skipped += 1
    return ran, skipped


def absent(report: Path) -> int:
    """Return how many tests were skipped because the real models are not there."""
    skips = [case.find("skipped") for case in ET.parse(report).iter("testcase")]
    return sum("beside the repository" in skip.get("message", "") for skip in skips if skip is not None)


def main(folder: Path) -> int:
    """Print the table and return the exit status."""
    rows = {
        "all": counts(folder / "main.xml"),
        "without the type check": counts(folder / "untyped.xml"),
        "real": counts(folder / "main.xml", "real"),
        "llm": counts(folder / "main.xml", "llm"),
        "compat, transformer-lens 4": counts(folder / "main.xml", "compat"),
        "compat, transformer-lens 3.9": counts(folder / "compat.xml"),
    }
    for name, (ran, skipped) in rows.items():
        print(f"{name:30} {ran:5} ran {skipped:5} skipped")
    shared = Path(__file__).parents[1].parent / "shared"
    failed = []
    if shared.is_dir() and absent(folder / "main.xml"):
        failed.append("tests marked real were skipped although the real models are there")
    if not rows["real"][0] and shared.is_dir():
        failed.append("no test marked real ran")
    if not rows["llm"][0]:
        failed.append("no test marked llm ran")
    if not rows["compat, transformer-lens 3.9"][0]:
        failed.append("no test marked compat ran with transformer-lens 3.9")
    for reason in failed:
        print(f"FAILED: {reason}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
