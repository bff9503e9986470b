"""A study: what was found, in sentences, tables and figures. Saved, it is a run folder: all that a report reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lens_steer.activations.show import UnitView
from lens_steer.errors import ArtifactError, SettingError
from lens_steer.evaluation.card.card import EditCard
from lens_steer.evaluation.shown_generation import GeneratedView
from lens_steer.interventions.intervention import Intervention
from lens_steer.report.run_reading import read_folder
from lens_steer.report.run_writing import RUN, save_study
from lens_steer.report.token_view import TokenView

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from torch import nn

    from lens_steer.texts.contrast import ContrastSet, LabelledTexts


@dataclass(frozen=True, eq=False)
class Study:
    """Findings, and the tables and figures that they follow from.

    Attributes
    ----------
    frames:
        Tables by name, in the order in which a report shows them. An index that is more than row numbers becomes a
        column, and names of columns become texts.
    figures:
        Plotly figures by name. A figure and a table of one name stand together.
    summary:
        What was found, in sentences that follow from the frames; the first is the title.
    interventions:
        Fitted interventions by name: the report shows which layers and units they edit.
    captions:
        Name of a frame, figure, view of tokens or intervention -> one sentence that says what it shows, with units.
    tokens:
        Texts' tokens with the activations of chosen units, by name; what `show_units` and `show_generated`
        return will do.
    card:
        The card of an edit, which a report shows at its head.

    Raises
    ------
    SettingError
        There is no sentence, a caption belongs to nothing, or a name cannot be the name of a file.

    """

    frames: Mapping[str, pd.DataFrame]
    figures: Mapping[str, go.Figure]
    summary: Sequence[str]
    interventions: Mapping[str, Intervention] = field(default_factory=dict)
    captions: Mapping[str, str] = field(default_factory=dict)
    tokens: Mapping[str, TokenView | UnitView | GeneratedView] = field(default_factory=dict)
    card: EditCard | None = None

    def __post_init__(self) -> None:
        if isinstance(self.summary, str) or not [sentence for sentence in self.summary if sentence.strip()]:
            raise SettingError("a study says what was found: give summary as a list of sentences, the title first")
        named = [*self.frames, *self.figures, *self.interventions, *self.tokens]
        if strange := sorted(set(self.captions) - set(named)):
            raise SettingError(f"captions names {strange[0]!r}, which is no frame, figure, intervention or token view")
        for part in (self.frames, self.figures, self.interventions, self.tokens):
            files = [name.casefold() for name in part]  # some file systems know no case
            if same := sorted(name for name in part if files.count(name.casefold()) > 1):
                raise SettingError(f"{same[0]!r} and {same[1]!r} would be one file: give names that differ otherwise")
        for name in named:
            if not name or name != Path(name).name or name.startswith("."):
                raise SettingError(f"{name!r} cannot be a file's name: use letters, digits, - and _")

    def __repr__(self) -> str:
        return f"Study({self.summary[0]!r}, {len(self.frames)} tables, {len(self.figures)} figures)"

    def _repr_markdown_(self) -> str:
        """Show the findings in a notebook, and the names of what they follow from."""
        title, *sentences = self.summary
        named = {"tables": self.frames, "figures": self.figures, "interventions": self.interventions}
        parts = [f"{kind}: {', '.join(f'`{name}`' for name in names)}" for kind, names in named.items() if names]
        return "\n\n".join([f"**{title}**", *sentences, f"<sub>{'; '.join(parts)}</sub>"])

    def save(
        self,
        out: str | Path,
        *,
        name: str,
        model: nn.Module,
        contrast: ContrastSet | LabelledTexts | None = None,
        seed: int,
        settings: Mapping[str, Any],
    ) -> Path:
        """Write a run folder, whole or not at all, and return it.

        Parameters
        ----------
        out:
            The new folder.
        name:
            Of the study, such as "expert_ranking".
        model, contrast:
            What was studied: their provenance (model, weights, data hash) is written, not they themselves.
        seed, settings:
            What the study was called with; settings are plain values.

        Raises
        ------
        OutputError
            `out` already holds something.
        SettingError
            A frame cannot be written as parquet (columns of mixed types).

        """
        return save_study(self, Path(out), name=name, model=model, contrast=contrast, seed=seed, settings=settings)

    @staticmethod
    def load(folder: str | Path) -> Study:
        """Read the study of a run folder; ArtifactError if it is none, or damaged (the file is named)."""
        return study_of(Path(folder), read_folder(Path(folder))[0])


def study_of(place: Path, parts: Mapping[str, Any]) -> Study:
    """Return the study of the parts that were read from a run folder; ArtifactError where they make none."""
    try:
        return Study(**parts)
    except (SettingError, AttributeError, TypeError) as error:
        raise ArtifactError(f"{place / RUN} is damaged: {error}") from error
