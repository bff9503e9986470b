"""The documentation site: pages in Markdown, notebooks as they are stored, every public name from its docstring."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.inspect import TypeAliasForwardRef

import lens_steer
from lens_steer.cli import app as command_line

project = "lens_steer"
author = "the lens_steer authors"
copyright = "the lens_steer authors, Apache-2.0"
release = version = lens_steer.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]

# Pages of the site have to lie in its folder; `make notebooks` executes the notebooks, not this.
HERE = Path(__file__).parent
shutil.copytree(HERE.parent / "notebooks", HERE / "notebooks", ignore=shutil.ignore_patterns(".*"), dirs_exist_ok=True)
nb_execution_mode = "off"
myst_enable_extensions = ["attrs_inline", "colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
# Aliases stand in signatures by their names; docs/api/types.md says what each is.
ALIASES = ("ChatFormat", "Conversation", "Layers", "Pool", "Prompt", "Row", "SitePattern", "Strength", "UnitsLike")
autodoc_type_aliases = {name: name for name in ALIASES}
TypeAliasForwardRef.__repr__ = lambda alias: (
    alias.name
)  # or "Pool | None" would read TypeAliasForwardRef('Pool') | None
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
default_role = "code"
napoleon_google_docstring = False
napoleon_use_param = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Attributes", "params_style")]  # those of a frozen dataclass are its parameters

# The inventories of other projects lie on the network: only a build that may use it links to them.
if os.environ.get("LENS_STEER_DOCS_ONLINE"):
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "pandas": ("https://pandas.pydata.org/docs", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "transformer_lens": ("https://transformerlensorg.github.io/TransformerLens", None),
    }
nitpicky = True
# What others document; names that are not public, in annotations of what is; and annotations that stay text.
nitpick_ignore_regex = [
    (r"py:.*", r"(collections|contextlib|datasets|jaxtyping|numpy|os|pandas|pathlib|plotly|torch|transformers)\..*"),
    (r"py:.*", r"(np|pd|go|nn)\..*"),
    (r"py:.*", r"(Tensor|ndarray|Path|PreTrainedModel|PreTrainedTokenizerBase|Int|Float)"),
    (r"py:class", r"lens_steer\.\w+\..*|Key|Measure|Side|Texts"),
    (r"py:class", r"(Mapping|dict)\[\w+|'.*'|_"),
]

html_theme = "pydata_sphinx_theme"
html_title = "lens_steer"
html_static_path = ["_static"]
templates_path = ["_templates"]
html_sidebars = {"**": ["pages.html"]}
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "navbar_center": [],
    "footer_start": ["copyright"],
    "footer_end": [],
}

_CODE = re.compile(r"(?<![:`])`([A-Za-z]\w*)(\([^`]*\))?`(?!`)")


_BAR = re.compile(r"(?<![`\w])\|(?=[\w(])|(?<=[\w)])\|(?![`\w|])")
_PROPERTIES: dict[str, list[str]] = {}


def link_public_names(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Let a docstring's `evaluate` be a link, and keep properties from napoleon, which takes their colons for types."""
    # Bars of absolute values would be substitutions.
    lines[:] = [_CODE.sub(_linked, _BAR.sub(r"\|", line)) for line in lines]
    if what == "property":
        _PROPERTIES[name], lines[:] = list(lines), []


def give_back_properties(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Undo what `link_public_names` did behind napoleon's back."""
    if what == "property":
        lines[:] = _PROPERTIES.pop(name)


def _linked(match: re.Match[str]) -> str:
    public = match[1] in lens_steer.__all__ and match[2] is None
    return f":py:obj:`~lens_steer.{match[1]}`" if public else match[0]


def resolve_by_last_name(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, contnode: nodes.Element
) -> nodes.Element | None:
    """Find what is documented as `lens_steer.ContrastSet` wherever it lives and however a docstring names it."""
    if node.get("refdomain") != "py":
        return None
    last = node["reftarget"].rpartition(".")[2]
    domain = env.domains["py"]
    found = [name for name in domain.objects if name.startswith("lens_steer.") and name.rpartition(".")[2] == last]
    kinds = {"class", "function", "exception", "data", "type", "module"}
    found = [name for name in found if domain.objects[name].objtype in kinds]
    if len(found) != 1:
        return None
    node["reftarget"] = found[0]
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", found[0], node, contnode)


def adapt_page(app: Sphinx, docname: str, source: list[str]) -> None:
    """Lead links that work in the repository to the site's own notebooks; write the commands where they belong."""
    source[0] = source[0].replace("](../notebooks/", "](notebooks/").replace("](../docs/", "](../")
    if docname == "command_line":
        source[0] = source[0].replace("% COMMANDS", commands())


def commands() -> str:
    """Return what every command's help says, as Markdown."""
    text = command_line.generate_docs(output_format="markdown", heading_level=2, usage_name="lens-steer")
    text = text[text.index("### ") :].replace("[default: *]", r"[default: \*]")
    example = re.compile(r"^Example: (.+?)\n(?=\n)", re.MULTILINE | re.DOTALL)
    return example.sub(lambda match: "```console\n$ " + match[1].replace("\n", " ") + "\n```\n", text)


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect what stands above."""
    app.connect("autodoc-process-docstring", link_public_names, priority=400)  # napoleon's is 500
    app.connect("autodoc-process-docstring", give_back_properties, priority=600)
    app.connect("missing-reference", resolve_by_last_name)
    app.connect("source-read", adapt_page)
    return {"parallel_read_safe": True}
