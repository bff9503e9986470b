"""Interventions on the Hugging Face hub: what `save` writes, with a README that says what it is and how to use it."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory

from lens_steer.directories import replace_file
from lens_steer.errors import ArtifactError, OutputError
from lens_steer.interventions.intervention import Intervention, require_interventions
from lens_steer.settings import require_settings

_REPO = re.compile(r"[\w.-]+/[\w.-]+")
_PARTS = ["intervention.json", "maps.safetensors"]


def push_to_hub(
    edit: Intervention, repo: str, *, readme: str | None = None, private: bool | None = None, token: str | None = None
) -> str:
    """Upload an intervention to a repository of the hub, which is made where there is none; return its address.

    `load_from_hub` reads it. The whole provenance goes with it, with the command and the paths of the fit, if it was
    made on the command line; texts are known by their hashes only.

    Parameters
    ----------
    edit:
        The intervention.
    repo:
        "name/repository".
    readme:
        Markdown for the repository's page; by default what the edit is, what it is for, and how to use it.
    private:
        Whether a new repository is private; None: as the account has it.
    token:
        Of an account that may write; None: the one that `hf auth login` keeps.

    Raises
    ------
    OutputError
        `repo` is no such name, or the hub does not take it: no network, no token, no right to write.

    """
    require_settings(push_to_hub, locals())
    require_interventions(edit)
    from huggingface_hub import HfApi

    if not _REPO.fullmatch(repo):
        raise OutputError(f"{repo!r} names no repository of the hub: give 'name/repository'")
    with TemporaryDirectory() as folder:
        place = edit.save(Path(folder) / "edit")
        text = _page(edit, repo) if readme is None else readme
        replace_file(place / "README.md", lambda file: _write(file, text))
        api = HfApi(token=token)
        try:
            address = api.create_repo(repo, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo, folder_path=place, commit_message=f"Add {edit!r}")
        # Whatever the hub, its client and the network between them come up with.
        except Exception as error:
            raise OutputError(f"the hub does not take {repo}: {_reason(error)}") from error
    return str(address)


def load_from_hub(repo: str, *, revision: str | None = None, token: str | None = None) -> Intervention:
    """Return an intervention that `push_to_hub` uploaded; nothing but its two files is fetched, and nothing unpickled.

    `revision` is a branch, tag or commit; name one where what is loaded should never change.

    Raises
    ------
    ArtifactError
        The hub has no such intervention or does not answer, or its files are damaged or of another version.

    """
    require_settings(load_from_hub, locals())
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(repo, revision=revision, token=token, allow_patterns=_PARTS)
    except Exception as error:  # as above
        raise ArtifactError(f"{repo} cannot be had from the hub: {_reason(error)}") from error
    return Intervention.load(folder)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _page(edit: Intervention, repo: str) -> str:
    """What the edit is, in Markdown, with the front matter that the hub reads."""
    about = edit.provenance
    model = str(about.get("model", ""))
    # A path on somebody's disk is no model of the hub.
    known = _REPO.fullmatch(model) is not None and not Path(model).exists()
    front = ["library_name: lens_steer", "tags:", "- lens_steer", "- activation-steering"]
    front += [f"base_model: {model}"] if known else []
    table = ["| site | units | moved | scope |", "|---|---|---|---|"]
    table += [
        f"| `{one.site.name}` | {one.site.width:,} | {int(one.map.moved(1e-5).sum()):,} | {one.scope} |"
        for one in edit.edits
    ]
    if edit.strengths is None:
        range_ = "Which strengths are of use was not measured; 1 is the edit as it was made."
    else:
        range_ = f"Strengths from {edit.strengths[0]:g} to {edit.strengths[1]:g} were measured to be of use."
    code = [
        "```python",
        "import lens_steer as ls",
        "",
        f'model = ls.load_model("{model if known else "MODEL"}")',
        f'edit = ls.load_from_hub("{repo}")',
        "with edit.on(model, strength=1.0):",
        '    model.generate("The weather is")',
        "```",
    ]
    what = (
        f"An edit of the activations of {f'`{model}`' if known else 'a language model'}, by {about.get('method', '?')}."
    )
    lines = ["---", *front, "---", "", f"# {repo.split('/')[1]}", "", what, range_, "", *table, "", *code, ""]
    return "\n".join(lines)
