"""A run folder that was read: the study it holds, and how that came about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lens_steer.report.run_reading import read_folder
from lens_steer.report.study import Study, study_of


@dataclass(frozen=True, eq=False)
class RunFolder:
    """A run folder that was read: its study, and what run.json says of the run (`about`)."""

    path: Path
    study: Study
    about: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The study's name."""
        return str(self.about["name"])


def read_run(folder: str | Path) -> RunFolder:
    """Read a run folder; ArtifactError if it is none, of another format, or a file in it is damaged (named)."""
    place = Path(folder)
    parts, about = read_folder(place)
    return RunFolder(place, study_of(place, parts), about)
