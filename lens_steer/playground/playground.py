"""The playground: type a prompt, set strengths, and read what the model writes without and with the edits."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from torch import nn

from lens_steer.directories import replace_file
from lens_steer.errors import LensSteerError, LensSteerWarning, SettingError
from lens_steer.host.decode import Decoding, Sampling
from lens_steer.host.guards import require_eval
from lens_steer.host.prompts import Prompt, prompt_text
from lens_steer.host.scope import Scope, ScopeName
from lens_steer.host.units import UnitsLike
from lens_steer.interventions.intervention import Intervention
from lens_steer.playground.page import side_by_side_html, side_by_side_page
from lens_steer.playground.side_by_side import SideBySide, continue_both, units_of
from lens_steer.settings import require_settings
from lens_steer.texts.beginnings import beginnings
from lens_steer.texts.contrast import ChatFormat, ContrastSet

if TYPE_CHECKING:
    from lens_steer.playground.controls import Controls

_BEGINNINGS, _WORDS = 6, 6  # prompts that a contrast offers, and their words


class Playground:
    """A model with edits to try: displayed in Jupyter as controls above two texts, saved as a static page.

    Attributes
    ----------
    edits:
        The edits by name.
    prompts:
        Prompts to begin with, the first of them shown first.
    latest:
        The latest texts; None before the first.

    """

    def __init__(
        self,
        model: nn.Module,
        edits: Mapping[str, Intervention],
        prompts: Sequence[str],
        *,
        units: UnitsLike = (),
        chat: ChatFormat = None,
        **sampling: Unpack[Sampling],
    ) -> None:
        self.edits, self.prompts = dict(edits), tuple(prompts)
        self.latest: SideBySide | None = None
        self.sampling: Sampling = sampling
        self._model, self._units, self._chat = model, units, chat
        self._controls: Controls | None = None
        self._said = ""

    def __repr__(self) -> str:
        return f"Playground({', '.join(self.edits)})"

    def generate(
        self,
        prompt: Prompt | None = None,
        *,
        strengths: Mapping[str, float] | None = None,
        scope: Scope | ScopeName | None = None,
        seed: int | None = None,
    ) -> SideBySide:
        """Continue a prompt, the first one by default, without and with the edits, each at strength 1 by default.

        Errors as `continue_both`, which says what is measured.
        """
        sampling = self.sampling if seed is None else {**self.sampling, "seed": seed}
        self.latest = continue_both(
            self._model,
            self.edits,
            self.prompts[0] if prompt is None else prompt,
            strengths=dict.fromkeys(self.edits, 1.0) if strengths is None else strengths,
            scope=scope,
            units=self._units,
            chat=self._chat,
            **sampling,
        )
        return self.latest

    def to_html(self, path: str | Path, measure: str | None = None) -> Path:
        """Write the latest texts as one HTML file that loads nothing, in place of what bears its name, and return it.

        `measure` names what colours the tokens, one of `latest.frame["measure"]`; the first write where it is None.
        """
        sides = self.latest or self.generate()
        measures = list(sides.after.colours)
        if measure is not None and measure not in measures:
            raise SettingError(f"nothing is called {measure!r} here; there are {', '.join(measures)}")
        strengths = ", ".join(f"{name} at strength {value:g}" for name, value in sides.settings["strengths"].items())
        page = side_by_side_page(sides, measure, title="Before and after", about=strengths)
        replace_file(Path(path), partial(_write, text=page))
        return Path(path)

    def _repr_html_(self) -> str:
        """Show the latest texts without controls, or why there are none."""
        if self.latest is None:
            self._said = self.attempt()[1]
        return f"<p>{escape(self._said)}</p>" if self.latest is None else side_by_side_html(self.latest)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """Show the controls where ipywidgets is installed, and the static texts where nothing can show those."""
        static = {"text/plain": repr(self), "text/html": self._repr_html_()}
        try:
            from lens_steer.playground.controls import Controls
        except ImportError:
            return static
        if self._controls is None:
            self._controls = Controls(self, self._said)
        return {**static, **self._controls.bundle()}

    def attempt(self, **given: Any) -> tuple[SideBySide | None, str]:
        """Return what `generate` returns, and in one line what it warned of or why there is nothing."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", LensSteerWarning)
            try:
                sides = self.generate(**given)
            except Exception as error:  # in a widget nobody would see it otherwise
                named = "" if isinstance(error, LensSteerError) else f"{type(error).__name__}: "
                return None, " ".join(f"{named}{error}".split())
        ours = [str(one.message) for one in caught if issubclass(one.category, LensSteerWarning)]
        return sides, " ".join("; ".join(dict.fromkeys(ours)).split())


def _write(place: Path, text: str) -> None:
    place.write_text(text, encoding="utf-8")


def play(
    model: nn.Module,
    edit_or_edits: Intervention | Mapping[str, Intervention] | Sequence[Intervention],
    contrast: ContrastSet | None = None,
    *,
    prompt: str = "",
    units: UnitsLike = (),
    chat: ChatFormat = None,
    **sampling: Unpack[Sampling],
) -> Playground:
    """Try edits by hand: a prompt continued without and with them, side by side, as they are set.

    In a notebook (extra `notebooks`) this shows a prompt box, a strength for each edit, the tokens they act for, and
    both texts, whose tokens are coloured by how far an edit writes at a site or by a unit's value; a token opens the
    words behind it, with their probabilities without and with the edits. Both texts are drawn with the same random
    stream. What is read in a playground is a handful of texts: `evaluate` measures.

    Parameters
    ----------
    model:
        A TransformerLens model.
    edit_or_edits:
        One edit or several, by name or in a list; they act in their order.
    contrast:
        Beginnings of its first source texts are offered as prompts.
    prompt:
        The first prompt, in place of the contrast's; the empty one continues BOS.
    units:
        Units by whose value tokens can be coloured too: whatever `ablate` takes.
    chat, sampling:
        As for `generate`; the seed can be changed in the playground.

    Raises
    ------
    SettingError
        There is no edit, what is given is none, or a setting of the sampling is out of range.
    ModelError, UnitError, SiteError
        The model is in training mode; a unit does not exist in it.

    """
    require_settings(play, locals())
    require_eval(model)
    Decoding(**sampling)
    edits = _named(edit_or_edits)
    prompts = [prompt] if prompt or contrast is None else []
    if contrast is not None:
        asked = beginnings(contrast.source, words=_WORDS, most=_BEGINNINGS)
        texts = [one if isinstance(one, str) else prompt_text(model, one, 0) for one in asked]
        prompts += dict.fromkeys(texts)
    return Playground(model, edits, prompts, units=units_of(model, units), chat=chat, **sampling)


def _named(given: Any) -> dict[str, Intervention]:
    if isinstance(given, Intervention):
        given = [given]
    named = dict(given) if isinstance(given, Mapping) else None
    listed = list(named.values()) if named is not None else list(given) if isinstance(given, Sequence) else [given]
    if not listed or not all(isinstance(edit, Intervention) for edit in listed):
        raise SettingError("play needs an intervention, a list of them, or a mapping of names to them; at least one")
    if named is not None:
        return {str(name): edit for name, edit in named.items()}
    methods = [str(edit.provenance.get("method", "edit")) for edit in listed]
    return {
        method if methods.count(method) == 1 else f"{method} {number}": edit
        for number, (method, edit) in enumerate(zip(methods, listed, strict=True), start=1)
    }
