"""`lens-steer import` and `lens-steer export`: steering vectors of other libraries, in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from lens_steer.cli.options import FILE, FINITE, FittedEdit, ModelOptions, Out
from lens_steer.cli.runs import require_free_place, say_written, show, warn_of_nothing
from lens_steer.errors import SettingError


def import_(
    *, model: ModelOptions, vectors: Annotated[Path, Parameter(validator=FILE)], out: Out, kind: str | None = None
) -> None:
    """Save the vectors of another library as an intervention: one per layer, added to every token.

    Example: lens-steer import --model gpt2 --vectors happy.gguf --out runs/happy

    Parameters
    ----------
    vectors:
        GGUF control vector (repeng, llama.cpp), or safetensors, JSON or npz with a vector per layer, counted from 0.
    kind:
        Kind of the sites at which they are added; the output of the layer when left out.

    """
    from lens_steer.interventions.vector_files import vectors_in
    from lens_steer.interventions.vectors import read_vectors

    require_free_place(out)
    if kind is not None and not kind.strip():
        raise SettingError("--kind is empty: give a kind of sites, such as hook_resid_post")
    read = vectors_in(vectors)
    edit = read_vectors(read, model.load(), kind=kind)
    show(edit.support())
    warn_of_nothing(edit, "its vectors are zero")
    edit.save(out)
    say_written(out)


def export(
    *, intervention: FittedEdit, out: Path, strength: Annotated[float, Parameter(validator=FINITE)] = 1.0
) -> None:
    """Write an edit that only adds to layers' outputs as a control vector for llama.cpp, or as safetensors.

    Example: lens-steer export --intervention runs/edit --out edit.gguf

    Parameters
    ----------
    out:
        New file; .gguf (llama.cpp: --control-vector; repeng) or .safetensors.
    strength:
        1 is the edit as fitted.

    """
    from lens_steer.interventions.intervention import Intervention
    from lens_steer.interventions.vectors import write_vectors

    say_written(write_vectors(Intervention.load(intervention), out, strength=strength))
