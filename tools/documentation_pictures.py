"""The pictures of docs/reading.md: a ranking, an evaluation and the head of an edit card, as Jupyter shows them.

`python -m tools.documentation_pictures` makes them again, with Chromium, from the embedded model, in a minute.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import lens_steer as ls

_IMAGES = Path(__file__).parents[1] / "docs" / "images"
_STYLE = "body{font:14px sans-serif;margin:12px}table{border-collapse:collapse}td,th{padding:4px 9px;text-align:right}"
_STYLE += "tr:nth-child(even){background:#f4f4f4}"
_COLUMNS = ["site", "unit", "auroc", "selection_auroc", "heldout_auroc", "heldout_low", "heldout_high", "q_value"]


def main() -> None:
    """Make all three."""
    model = ls.load_model("microworld")
    train, held = ls.read_contrast("microworld:rude").split(test=0.5, seed=0)
    acts = ls.collect(model, train, "mlp.hook_post")
    experts = ls.rank_experts(acts)
    _photograph("ranking", experts.top(8)[_COLUMNS].round(4).to_html(border=0), 1000, 255)

    edit = ls.ablate(experts.units(64), mode="target_mean", activations=acts, model=model)
    prompts = ls.beginnings(held.source, words=4, most=60)
    scorer = ls.OracleScorer("rude")
    result = ls.evaluate(model, edit, prompts=prompts, scorer=scorer, neutral=held.target[:60], max_new_tokens=25)
    _photograph("evaluation", result._repr_html_(), 1080, 250)

    with TemporaryDirectory() as folder:
        page = ls.edit_card(model, edit, held, train=train).save(Path(folder) / "card.html")
        _photograph("card", page.read_text(encoding="utf-8"), 1000, 1100)


def _photograph(name: str, html: str, width: int, height: int) -> None:
    with TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(html if "<html" in html else f"<meta charset=utf-8><style>{_STYLE}</style>{html}")
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--hide-scrollbars",
        ]
        place = f"--screenshot={_IMAGES / name}.png"
        subprocess.run(["chromium", *options, place, f"--window-size={width},{height}", page.as_uri()], check=True)


if __name__ == "__main__":
    main()
