"""What an installed wheel has to hold and to do: every file of the packages, a fit, an evaluation, a page."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import lens_steer as ls

tracked, wheel = map(Path, sys.argv[1:])
missing = set(tracked.read_text().split()) - set(zipfile.ZipFile(wheel).namelist())
assert not missing, f"the wheel lacks {sorted(missing)}"
home = Path(ls.__file__)
assert home.is_relative_to(sys.prefix), f"{home} is not the installed wheel"

model = ls.load_model("microworld")
train, held = ls.read_contrast("microworld:rude", n=24).split(test=0.5, seed=0)
edit = ls.CAA(layers=(3,)).fit(model, train)
prompts = ls.beginnings(held.source, words=4, most=4)
evaluation = ls.evaluate(
    model, edit, prompts=prompts, scorer=ls.OracleScorer("rude"), neutral=held.target[:4], max_new_tokens=4
)
acts = ls.collect(model, train, "mlp.hook_post")
shown = ls.show_units(model, train, ls.rank_experts(acts, holdout=None).top(1))
assert "<table" in shown._repr_html_() or "<div" in shown._repr_html_()
card = ls.edit_card(model, edit, held, train=train, prompts=prompts, items=("dose",), progress=False)
print(card.save("card.html").name, evaluation.frame["measure"].tolist())
