"""Interventions: an ordered set of edits, with where they came from; the thing that every method returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lens_steer.errors import MapError, SettingError
from lens_steer.host.adapter import host_of
from lens_steer.host.attach import Write, attach, not_an_intervention
from lens_steer.host.fingerprint import SiteReading, identified, read_fingerprint
from lens_steer.host.scope import Scope, ScopeName, as_scope
from lens_steer.host.sites import Site
from lens_steer.host.trunk import as_hook
from lens_steer.host.turns import taking_turns
from lens_steer.host.units import Unit, UnitsLike
from lens_steer.interventions.artifact import Content, read_artifact, save_artifact
from lens_steer.interventions.budget import LARGEST, Budget, largest_within
from lens_steer.interventions.edit import Edit, check_gates
from lens_steer.interventions.fingerprint import content_hash, require_same_model
from lens_steer.interventions.maps import Chain
from lens_steer.interventions.part import sites_and_units
from lens_steer.interventions.row_gate import RowGate
from lens_steer.interventions.shown_edits import edits_html
from lens_steer.interventions.strengths import Strength, as_strengths, warn_if_far
from lens_steer.interventions.touched import Touched
from lens_steer.interventions.writes import writes_of
from lens_steer.settings import require_settings
from lens_steer.texts.contrast import ChatFormat, Row
from lens_steer.texts.seen import require_unseen, seen_in

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Edit", "Intervention"]


@dataclass(frozen=True, eq=False)
class Intervention:
    """Edits in the order in which they act, with provenance and the fingerprint of the model they were fitted on.

    Immutable: every operation returns a new one. Two are equal when their edits are, to the bit.

    edits:
        At least one.
    provenance:
        How the intervention came about.
    fingerprint:
        Site name -> what the model of the fit has there. Readings of sites that are not edited are left out.
    strengths:
        The lowest and the highest strength that were measured to be of use; None where nobody has measured.
    """

    edits: tuple[Edit, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: Mapping[str, SiteReading] = field(default_factory=dict)
    strengths: tuple[float, float] | None = None
    _latest: Touched | None = field(default=None, init=False, repr=False)  # the counts of the latest `on`

    def __post_init__(self) -> None:
        if not self.edits:
            raise MapError("an intervention needs at least one edit")
        # Whatever left some edits out: a fingerprint is of the sites that are edited.
        edited = {edit.site.name for edit in self.edits}
        own = {name: reading for name, reading in self.fingerprint.items() if name in edited}
        object.__setattr__(self, "fingerprint", own)

    def __eq__(self, other: object) -> bool:
        return self.edits == other.edits if isinstance(other, Intervention) else NotImplemented

    def __repr__(self) -> str:
        kept = [int(edit.map.moved(1e-5).sum()) for edit in self.edits]
        at = len({edit.site for edit, units in zip(self.edits, kept, strict=True) if units})
        method = self.provenance.get("method", "intervention")
        sites = len(self.sites)
        return f"Intervention({method}: {sum(kept)} units moved at {at} of {sites} site{'s' * (sites != 1)})"

    def _repr_html_(self) -> str:
        return edits_html(self.edits, self.provenance, self.strengths, self.support())

    @classmethod
    def fitted(
        cls,
        model: nn.Module,
        edits: Sequence[Edit],
        *,
        strengths: tuple[float, float] | None = None,
        **provenance: Any,
    ) -> Intervention:
        """Return the intervention of a fit on `model`, with the model's provenance and fingerprint."""
        about = {"lens_steer": version("lens-steer"), **host_of(model).provenance, **provenance}
        fingerprint = read_fingerprint(model, [edit.site for edit in edits])
        return cls(tuple(edits), about, fingerprint, strengths)

    @property
    def sites(self) -> tuple[Site, ...]:
        """The edited sites, each once."""
        return tuple(dict.fromkeys(edit.site for edit in self.edits))

    @property
    def history(self) -> pd.DataFrame:
        """The steps of a learned intervention: step, loss, objective, support, lr, event, heldout_loss; else empty.

        The objective, loss and penalty, is what the descent lowers. A loss that was not finite, and a held-out loss
        that was not measured, are nan.
        """
        import pandas as pd

        frame = pd.DataFrame(self.provenance.get("history", []))
        numbers = frame.columns.difference(["event"])
        return frame.assign(**{name: pd.to_numeric(frame[name]) for name in numbers})

    @contextmanager
    def on(self, model: nn.Module, strength: Strength = 1.0, *, check_model: bool = True) -> Iterator[Touched]:
        """Edit every forward pass of `model` inside the context, on all of TransformerLens's routes.

        Strength s makes every map h -> (1 - s) h + s map(h); 0 changes nothing, to the bit. A list or tensor of
        strengths is one per row of every pass: each row becomes what it would be in the same batch at its strength.
        Where lens_steer runs the texts of a call (`generate`, `collect`, ...), a strength goes with its text, however
        they are batched. On leaving, also by an exception, the model is as before. Contexts nest: the inner one acts on
        what the outer one made. The context is given the counts of touched tokens (see `touched`).

        An edit is of the model and not of a thread: inside the context it acts in the passes of all threads, so that a
        thread that streams text may be started here. A second thread that enters a context of its own is refused.
        Requests of several threads give the intervention to the call (`generate(model, prompts, intervention=...)`):
        calls of lens_steer on one model wait for each other.

        Warns (LensSteerWarning) of a strength that lies farther outside `strengths` than that range is wide (where none
        was measured, outside 0 to 1: above 2 or below -1), and, on leaving, of edits in whose scope no token was though
        the model ran.

        Raises
        ------
        SiteError, ModelError
            A site does not exist, has another width or cannot be edited; a gate reads a site that comes after what it
            decides; the model is in training mode; another thread has an intervention on it.
        SettingError
            A strength is not finite; inside, a pass has another number of rows than there are strengths.
        ArtifactError
            The model's edited sites do not look like those of the fit; `check_model=False` allows it.

        """
        strengths = as_strengths(strength)
        warn_if_far(strengths, self.strengths, stacklevel=4)
        with taking_turns(model):  # a look at the bare model must not meet another thread's pass
            if check_model and self.fingerprint:
                require_same_model(model, self.fingerprint, self.sites, dtype=self.provenance.get("dtype", "float32"))
            check_gates(model, self.edits)
        touched = Touched(self.edits)
        object.__setattr__(self, "_latest", touched)  # no part of its value: of a run, and read by `touched` alone
        identity = partial(content_hash, self.edits, strengths)
        with attach(model, writes_of(self.edits, strengths, touched)), identified(model, identity):
            yield touched
        touched.warn_of_idle_scopes(stacklevel=4)

    @property
    def touched(self) -> pd.DataFrame:
        """How many tokens each edit changed in the latest `on` of this object: see `Touched`; zeros before the first.

        Columns: edit (its number), site, layer, scope, prompt_tokens, generated_tokens.
        """
        return (self._latest or Touched(self.edits)).frame

    def hooks(self, strength: Strength = 1.0) -> list[tuple[str, Callable[..., Any]]]:
        """Return TransformerLens (hook name, function) pairs for `model.hooks(fwd_hooks=...)`.

        They know no positions and no prompts, so SettingError for any scope but all and for gated edits; strengths per
        row go by a row's place in the batch. No guard looks at the sites, and nothing counts the tokens: `on` does.
        """
        if not all(edit.scope.is_all and edit.gate is None for edit in self.edits):
            raise SettingError(
                "plain hooks see no positions and no prompts: use `with intervention.on(model)` for scopes other than "
                "all and for gates"
            )
        writes = writes_of(self.edits, as_strengths(strength), Touched(self.edits))
        return [(site.name, as_hook(_without_pass(write))) for site, write in writes]

    def scaled(self, strength: float) -> Intervention:
        """Return the intervention whose strength 1 is this one's `strength`."""
        require_settings(Intervention.scaled, locals())
        edits = tuple(replace(edit, map=edit.map.scaled(strength)) for edit in self.edits)
        ends = None if self.strengths is None or strength == 0.0 else [end / strength for end in self.strengths]
        scaled = self._derived(edits, f"scaled({strength})")
        return replace(scaled, strengths=None if ends is None else (min(ends), max(ends)))

    def then(self, later: Intervention) -> Intervention:
        """Return this intervention followed by `later`.

        At a site that both edit, `later` sees what this one wrote; for equal scopes and gates the two become one map,
        in closed form where both are diagonal without an interval; a strength then blends the composition as a whole.
        """
        require_interventions(later)
        edits = list(self.edits)
        for new in later.edits:
            last = next((place for place in reversed(range(len(edits))) if edits[place].site == new.site), None)
            if last is None or edits[last].scope != new.scope or edits[last].gate != new.gate:
                edits.append(new)
                continue
            before = edits[last].map
            edits[last] = replace(edits[last], map=before.then(new.map) or Chain((before, new.map)))
        parts = [dict(self.provenance), dict(later.provenance)]
        # The fingerprints of both are compared at once, as coarsely as the coarser of them needs.
        dtype = next((part["dtype"] for part in parts if part.get("dtype", "float32") != "float32"), "float32")
        about = {"method": "then", "parts": parts, "dtype": dtype}
        return Intervention(tuple(edits), about, {**later.fingerprint, **self.fingerprint})

    def inverse(self) -> Intervention:
        """Return the maps' inverses: what undoes this at every site, and induces what it removes.

        MapError where a scale is near zero (the site and units are named) or a map acts inside an interval only.
        """
        edits = []
        for edit in reversed(self.edits):
            try:
                edits.append(replace(edit, map=edit.map.inverse()))
            except MapError as error:
                raise MapError(f"{edit.site.name}: {error}") from None
        return self._derived(tuple(edits), "inverse")

    def restrict(self, units_or_sites: UnitsLike | Sequence[Unit | Site | str | tuple[str, int]]) -> Intervention:
        """Return the part of this intervention at some units or sites; the rest is the identity.

        Parameters
        ----------
        units_or_sites:
            Whatever `ablate` takes (an ExpertRanking, a frame or csv, units, printed units, pairs of site name and
            index); or a sequence in which sites and their full names, for all of their units, stand beside units.

        Raises
        ------
        SiteError, UnitError
            A site, or the site of a unit, is not edited here; a unit cannot be read.
        MapError
            A map that mixes units would have to leave some of them out.

        """
        whole, units = sites_and_units(units_or_sites, self.sites)
        wanted: dict[str, list[int]] = {}
        for unit in units:
            wanted.setdefault(unit.site.name, []).append(unit.index)
        edits = []
        for edit in self.edits:
            if edit.site.name in whole:
                edits.append(edit)
            elif edit.site.name in wanted:
                keep = torch.zeros(edit.site.width, dtype=torch.bool)
                keep[wanted[edit.site.name]] = True
                edits.append(replace(edit, map=edit.map.restrict(keep)))
        return self._derived(tuple(edits), "restrict")

    def scoped(self, scope: Scope | ScopeName) -> Intervention:
        """Return the same edits for other tokens.

        The positions that an edit is for are part of it and stay: an edit that ActAdd made for position 3 is never one
        for other positions, and a scope with positions of its own narrows what is there. Edits that share no position
        with the scope fall away; MapError if none is left.
        """
        wanted = as_scope(scope)
        edits = tuple(edit.scoped(wanted) for edit in self.edits if wanted.within(edit.scope) is not None)
        if not edits:
            raise MapError(f"nothing is left: no edit is for a position of the scope '{wanted}'")
        return replace(self, edits=edits, strengths=None)

    def gated(self, gate: RowGate) -> Intervention:
        """Return the same edits for the rows for which `gate` is open; MapError where an edit has a gate already."""
        taken = next((edit for edit in self.edits if edit.gate is not None), None)
        if taken is not None:
            raise MapError(f"the edit at {taken.site.name} has a gate already: one gate decides for an edit")
        return self._derived(tuple(replace(edit, gate=gate) for edit in self.edits), "gated")

    def calibrate(
        self,
        model: nn.Module,
        neutral: Sequence[Row],
        budget: str | Budget = "ppl:1.1",
        *,
        chat: ChatFormat = None,
        batch_size: int | None = None,
        progress: bool = True,
    ) -> Intervention:
        """Return the same edits with `strengths` from 0 to the largest strength that costs at most `budget`.

        The cost is measured on neutral texts, or pairs, that the fit has not seen: "ppl:1.1" is a perplexity of 1.1
        times the unedited model's, "kl:0.1" a mean KL(unedited || edited) of 0.1 nats per token. It is searched from 1
        up to 8 and down to 1/128, on the assumption that a cost grows with strength, and found to 2 %. The provenance
        says under `calibration` what was measured. What an edit is good for is not looked at: `choose_strength` does.

        Raises
        ------
        SettingError
            The budget cannot be read; no strength is within it; there is no neutral text.
        ContrastError
            The intervention has seen neutral texts.
        TokenError, ModelError
            As `perplexity`.

        """
        require_settings(Intervention.calibrate, locals())
        require_unseen(neutral, seen_in(self.provenance), "the intervention")
        limit = Budget.of(budget)
        in_search = replace(self, strengths=(0.0, LARGEST))  # nothing to warn of
        cost = limit.measure(
            model, neutral, partial(in_search.on, model), chat=chat, batch_size=batch_size, progress=progress
        )
        largest, measured = largest_within(limit, cost)
        rows = [{"strength": strength, "cost": measured[strength]} for strength in sorted(measured)]
        about = {"budget": str(limit), "largest": largest, "neutral": len(neutral), "measured": rows}
        return replace(self, strengths=(0.0, largest), provenance={**self.provenance, "calibration": about})

    def support(self, tol: float = 1e-5) -> pd.DataFrame:
        """Return what is edited: one row per edit.

        Columns: site, layer, units, kept (units moved by more than `tol`), share, and (diagonal maps) the largest
        |scale - 1| and |shift|.
        """
        require_settings(Intervention.support, locals())
        import pandas as pd

        rows = []
        for edit in self.edits:
            kept = int(edit.map.moved(tol).sum())
            row = {"site": edit.site.name, "layer": edit.site.layer, "units": edit.site.width, "kept": kept}
            row["share"] = kept / edit.site.width
            scale, shift = (getattr(edit.map, name, None) for name in ("scale", "shift"))
            row["max_abs_scale_change"] = float("nan") if scale is None else float((scale - 1).abs().max())
            row["max_abs_shift"] = float("nan") if shift is None else float(shift.abs().max())
            rows.append(row)
        return pd.DataFrame(rows)

    def units(self, tol: float = 1e-5) -> tuple[Unit, ...]:
        """Return the units that are moved by more than `tol`, in forward order."""
        require_settings(Intervention.units, locals())
        moved = (
            Unit(edit.site, index) for edit in self.edits for index in edit.map.moved(tol).nonzero()[:, 0].tolist()
        )
        return tuple(dict.fromkeys(moved))

    def to_frame(self) -> pd.DataFrame:
        """Return the diagonal maps unit by unit: site, layer, unit, scale, shift."""
        import pandas as pd

        frames = []
        for edit in self.edits:
            scale, shift = (getattr(edit.map, name, None) for name in ("scale", "shift"))
            if scale is None or shift is None:
                raise MapError(f"the map at {edit.site.name} is not diagonal")
            columns = {"site": edit.site.name, "layer": edit.site.layer, "unit": range(edit.site.width)}
            frames.append(pd.DataFrame({**columns, "scale": scale.numpy(), "shift": shift.numpy()}))
        return pd.concat(frames, ignore_index=True)

    def save(self, directory: str | Path) -> Path:
        """Write `intervention.json` and `maps.safetensors` into a new directory; OutputError if it holds something."""
        require_settings(Intervention.save, locals())
        content = Content(self.edits, self.provenance, self.fingerprint, self.strengths)
        return save_artifact(Path(directory), content)

    @staticmethod
    def load(directory: str | Path) -> Intervention:
        """Read what `save` wrote; ArtifactError if it is damaged, foreign or of another version."""
        require_settings(Intervention.load, locals())
        return Intervention(*read_artifact(Path(directory)))

    def _derived(self, edits: tuple[Edit, ...], how: str) -> Intervention:
        """Return the intervention of other edits; what was measured of this one's strengths does not hold for it."""
        derivation = [*self.provenance.get("derivation", []), how]
        return replace(self, edits=edits, provenance={**self.provenance, "derivation": derivation}, strengths=None)


def _without_pass(write: Write) -> Callable[[Tensor], Tensor | None]:
    return lambda flat: write(flat, None)


def require_interventions(*given: object) -> None:
    """Raise SettingError for the first that is no intervention, such as the name of a directory."""
    for one in given:
        if not isinstance(one, Intervention):
            raise not_an_intervention(one)
