"""The controls of a playground: ipywidgets, so that Jupyter and Colab show them and no script of ours is needed."""

from __future__ import annotations

from html import escape
from typing import Any, get_args

import ipywidgets as widgets

from lens_steer.host.scope import ScopeName
from lens_steer.playground.page import side_by_side_html

_OWN = "as the edits say"
_NEEDS_IDS = {"no_special", "tokens"}  # scopes that are no scope by their name alone
_STYLE = {"description_width": "max-content"}


class Controls:
    """Prompt, strengths, scope, seed and colours, above the two texts of a `Playground`."""

    def __init__(self, playground: Any, message: str) -> None:
        self._playground = playground
        wide, narrow = widgets.Layout(width="99%"), widgets.Layout(width="28em", max_width="99%")
        self._prompt = widgets.Textarea(value=playground.prompts[0], placeholder="A prompt", rows=3, layout=wide)
        self._offered = widgets.Dropdown(
            options=[("Prompts of the contrast", ""), *((text, text) for text in playground.prompts if text)],
            layout=widgets.Layout(width="auto", max_width="99%"),
        )
        self._strengths = {name: self._slider(name) for name in playground.edits}
        scopes = [_OWN, *(name for name in get_args(ScopeName) if name not in _NEEDS_IDS)]
        self._scope = widgets.Dropdown(description="Acts on tokens", options=scopes, style=_STYLE, layout=narrow)
        seed = int(playground.sampling.get("seed", 0))
        self._seed = widgets.BoundedIntText(
            description="Seed", value=seed, max=2**31 - 1, style=_STYLE, layout=widgets.Layout(width="11em")
        )
        self._button = widgets.Button(description="Generate", button_style="primary")
        self._said = widgets.HTML(layout=wide)
        self._measure = widgets.Dropdown(description="Colours", options=self._measures, style=_STYLE, layout=narrow)
        self._texts = widgets.HTML(layout=wide)
        self._lay_out()
        self._button.on_click(lambda _: self._generate())
        self._offered.observe(self._take_over, "value")
        self._measure.observe(lambda _: self._show(), "value")
        self._say(message)
        self._refresh()

    def _slider(self, name: str) -> Any:
        low, high = self._playground.edits[name].strengths or (0.0, 1.0)
        reach = 2 * max(abs(low), abs(high), 0.5)
        return widgets.FloatSlider(
            description=name,
            value=1.0,
            min=-max(reach, 1.0),
            max=max(reach, 1.0),
            step=0.05,
            continuous_update=False,
            style=_STYLE,
            layout=widgets.Layout(width="26em", max_width="99%"),
        )

    def _lay_out(self) -> None:
        rows = widgets.Layout(flex_flow="row wrap", grid_gap="4px 20px", align_items="center")
        offered = [self._offered] if len(self._offered.options) > 2 else []
        settings = [*self._strengths.values(), self._scope, self._seed]
        self._box = widgets.VBox(
            [
                *offered,
                self._prompt,
                widgets.Box(settings, layout=rows),
                widgets.Box([self._button, self._measure], layout=rows),
                self._said,
                self._texts,
            ]
        )
        named = {"prompt": self._prompt, "generate": self._button, "said": self._said, "texts": self._texts}
        for name, widget in {**named, "scope": self._scope, "measure": self._measure}.items():
            widget.add_class(f"ls-play-{name}")
        for slider in self._strengths.values():
            slider.add_class("ls-play-strength")

    def bundle(self) -> dict[str, Any]:
        """Return what a front end with widgets shows."""
        shown: dict[str, Any] = self._box._repr_mimebundle_()
        return {kind: content for kind, content in shown.items() if kind != "text/plain"}

    def _take_over(self, change: dict[str, Any]) -> None:
        self._prompt.value = change["new"] or self._prompt.value

    def _generate(self) -> None:
        self._button.disabled, self._button.description = True, "Generating ..."
        self._said.value = ""
        try:
            _, message = self._playground.attempt(
                prompt=self._prompt.value,
                strengths={name: slider.value for name, slider in self._strengths.items()},
                scope=None if self._scope.value == _OWN else self._scope.value,
                seed=self._seed.value,
            )
        finally:
            self._button.disabled, self._button.description = False, "Generate"
        self._say(message)
        self._refresh()

    def _say(self, message: str) -> None:
        self._said.value = f'<p style="line-height: 1.4; margin: 4px 0">{escape(message)}</p>' if message else ""

    def _refresh(self) -> None:
        """Offer the measures of the latest texts, keep the chosen one, and show them."""
        if self._measures != self._measure.options:
            self._measure.options = self._measures
        self._show()

    @property
    def _measures(self) -> tuple[str, ...]:
        sides = self._playground.latest
        return () if sides is None else tuple(sides.after.colours)

    def _show(self) -> None:
        sides = self._playground.latest
        self._texts.value = "" if sides is None else side_by_side_html(sides, self._measure.value)
