"""Every method of the toolkit at test size: the contract suite runs over all of them, so a new method is added here."""

from __future__ import annotations

from lens_steer.methods.act_add import ActAdd
from lens_steer.methods.activation_transport import GaussianAcT, LinearAcT, MeanAcT
from lens_steer.methods.aura import AurA
from lens_steer.methods.caa import CAA
from lens_steer.methods.cast import CAST
from lens_steer.methods.damp import Damp, Det0
from lens_steer.methods.dsas import DSAS
from lens_steer.methods.fitting import Method
from lens_steer.methods.iti import ITI
from lens_steer.methods.lineas import LinEAS
from lens_steer.methods.loreft import LoReFT
from lens_steer.methods.repe import RepE
from lens_steer.methods.self_conditioning import SelfCond

METHODS: dict[str, Method] = {
    "aura": AurA(),
    "aura at the residual": AurA(sites="hook_resid_post"),
    "lineas": LinEAS.paper(steps=4, lr=1e-5, progress=False),
    "lineas at the heads": LinEAS.paper(sites="attn.hook_z", steps=4, lr=0.001, progress=False),
    "lineas sparse": LinEAS.paper(steps=4, gamma=1e-3, optimizer="adam", lr=0.01, progress=False),
    "det0": Det0(k=10),
    "damp": Damp(k=20),
    "selfcond": SelfCond(k=5),
    "selfcond by tokens": SelfCond(k=5, value="p90", statistic="token"),
    "mean act": MeanAcT(batch_size=6),
    "gaussian act": GaussianAcT(support="unbounded"),
    "linear act": LinearAcT(sites=("mlp.hook_post", "hook_resid_post"), batch_size=6, moves="source"),
    "linear act at once": LinearAcT(sites="attn.hook_z", causal=False, support=(0.1, 0.9)),
    "caa": CAA(),
    "cast": CAST(base=CAA(layers="all", multiplier=3.0)),
    "cast with its sign": CAST(base=AurA(), similarity="cosine", direction="mean_difference"),
    "caa at a layer": CAA(sites="attn.hook_z", layers=(-1,), pool="mean", multiplier=3.0),
    "iti": ITI(k=3),
    "iti along the probe": ITI(k=1, alpha=-4.0, direction="probe", sites="attn.hook_v"),
    "act add": ActAdd(pair=0, layers=(1,)),
    "act add of two prompts": ActAdd(prompts=("sad dog", "the happy dog ran"), multiplier=2.0, sites="mlp.hook_post"),
    "dsas": DSAS(base=CAA(multiplier=3.0)),
    "loreft": LoReFT(rank=2, steps=4, lr=0.05, progress=False),
    "repe": RepE(pairing="random"),
    "repe projected out": RepE(mode="project_out", pairing="random", pool="mean", layers=(-1,)),
}
