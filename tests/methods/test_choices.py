"""Settings of a few values: what is none of them is refused when the method is made, with the values that there are."""

from __future__ import annotations

import json
import subprocess
import sys

# Without the run-time type checks of the tests, which would refuse first: what a user meets.
PROGRAM = """
import json
import lens_steer as ls

site = ls.Site("blocks.0.mlp.hook_post", 0, "mlp.hook_post", 8)
edit = ls.Intervention((ls.Edit(site, ls.DiagonalAffine.identity(8)),))
calls = {
    "ablate mode": lambda: ls.ablate([ls.Unit(site, 1)], mode="Zero"),
    "compose policy": lambda: ls.compose(edit, edit, policy="last"),
    "on_interrupt action": lambda: ls.on_interrupt("keep going").__enter__(),
}
for method in (ls.AurA, ls.CAA, ls.RepE, ls.LinEAS, ls.LoReFT, ls.MeanAcT, ls.LinearAcT):
    for setting in method.__dataclass_fields__.values():
        if setting.name in ("pool", "mode", "pairing", "loss", "optimizer", "moves"):
            for value in ("median", None):
                name = f"{method.__name__} {setting.name} {value}"
                calls[name] = lambda m=method, n=setting.name, v=value: m(**{n: v})
for method in (ls.Damp, ls.Det0, ls.SelfCond):
    for name in ("pool", "value", "statistic"):
        if name in method.__dataclass_fields__:
            calls[f"{method.__name__} {name}"] = lambda m=method, n=name: m(k=3, **{n: ["max"]})
for name, settings in {"ITI": {"k": 3}, "CAST": {"base": ls.CAA()}, "DSAS": {"base": ls.CAA()}}.items():
    for setting in ("pool", "direction", "similarity"):
        if setting in getattr(ls, name).__dataclass_fields__:
            calls[f"{name} {setting}"] = lambda n=name, s=settings, f=setting: getattr(ls, n)(**s, **{f: "Mean"})
calls["ConceptClassifier.fit unproven"] = lambda: ls.ConceptClassifier.fit(None, unproven="no")
said = {}
for name, call in calls.items():
    try:
        call()
        said[name] = "nothing"
    except Exception as error:
        said[name] = f"{type(error).__name__}: {error}"
print(json.dumps(said))
"""


def test_every_setting_is_refused_with_its_values() -> None:
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    messages = json.loads(run.stdout)
    assert len(messages) > 25
    assert {"ITI pool", "ITI direction", "CAST direction", "CAST similarity", "DSAS pool"} < messages.keys()
    for name, message in messages.items():
        who, setting, *_ = name.split()
        assert message.startswith(f"SettingError: {who}: {setting} is '"), (name, message)
        assert " or '" in message
        assert ", not " in message
    assert messages["ablate mode"] == (
        "SettingError: ablate: mode is 'zero', 'mean', 'target_mean', 'resample' or 'value', not 'Zero'"
    )
    assert "'adam' or 'sgd', not 'median'" in messages["LinEAS optimizer median"]
