"""Every method of the toolkit at test size: the contract suite runs over all of them, so a new method is added here."""

from __future__ import annotations

from lens_steer.methods.aura import AurA
from lens_steer.methods.fitting import Method
from lens_steer.methods.lineas import LinEAS

METHODS: dict[str, Method] = {
    "aura": AurA(),
    "aura at the residual": AurA(sites="hook_resid_post"),
    "lineas": LinEAS(steps=4, lr=0.001, progress=False),
    "lineas at the heads": LinEAS(sites="attn.hook_z", steps=4, lr=0.001, progress=False),
    "lineas sparse": LinEAS(steps=4, gamma=1e-3, optimizer="adam", lr=0.01, progress=False),
}
