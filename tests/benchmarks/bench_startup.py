"""How long `import lens_steer` and `lens-steer --help` take, as whole processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from time import perf_counter


def best_seconds(command: list[str], *, runs: int = 5) -> float:
    """Return the fastest of several runs."""
    times = []
    for _ in range(runs):
        start = perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(perf_counter() - start)
    return min(times)


def startup() -> dict[str, float]:
    """Time the bare interpreter, the import and the help."""
    script = str(Path(sys.executable).parent / "lens-steer")
    return {
        "python": best_seconds([sys.executable, "-c", "pass"]),
        "import": best_seconds([sys.executable, "-c", "import lens_steer"]),
        "help": best_seconds([script, "--help"]),
    }
