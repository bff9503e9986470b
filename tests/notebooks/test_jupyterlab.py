"""What a notebook shows, in a real JupyterLab and exported to HTML; one server and one kernel for all of it."""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.notebooks.browser import Page, open_page

for module in ("jupyterlab", "ipywidgets", "nbconvert", "nbformat", "kaleido"):
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed: pip install -e '.[notebooks]'", allow_module_level=True)

CELLS = [
    """import lens_steer as ls
model = ls.load_model("microworld")
contrast = ls.read_contrast("microworld:rude", n=8)
experts = ls.rank_experts(ls.collect(model, contrast, "mlp.hook_post", progress=False), holdout=None)
experts""",
    "ls.show_units(model, contrast, experts.top(1), top=3)",
    "experts.plot()",
    """playground = ls.play(model, {"ablate": ls.ablate(experts.units(5))}, contrast, max_new_tokens=6)
playground""",
]
TEXTS = "document.querySelector('.ls-play-texts')"


def text_of(side: str) -> str:
    """JavaScript for what a side of the playground reads."""
    return f"[...{TEXTS}.querySelectorAll('.{side} .token summary')].map(token => token.textContent).join('')"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import nbformat

    place = tmp_path_factory.mktemp("lab")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    (place / "notebook").mkdir()
    nbformat.write(notebook, place / "notebook" / "shown.ipynb")
    return place


@pytest.fixture(scope="module")
def lab(folder: Path) -> Iterator[Page]:
    """The notebook in JupyterLab, with all cells run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {f"JUPYTER_{kind}_DIR": str(folder / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
    own |= {f"JUPYTERLAB_{kind}_DIR": str(folder / kind.lower()) for kind in ("SETTINGS", "WORKSPACES")}
    root = str(Path(__file__).parents[2])
    env = {**os.environ, **own, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    options = [f"--ServerApp.port={port}", "--IdentityProvider.token=lens", "--no-browser", "--allow-root"]
    options += ["--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly"]
    options += [f"--ServerApp.root_dir={folder / 'notebook'}", "--ServerApp.terminals_enabled=False"]
    options += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.news_url=None"]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], env=env, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(200):
            try:
                urllib.request.urlopen(f"{address}/api?token=lens").close()
                break
            except OSError:
                assert server.poll() is None, (folder / "server.log").read_text()
                time.sleep(0.3)
        with open_page(f"{address}/lab/tree/shown.ipynb?token=lens", folder) as page:
            page.resize(1280, 3000)
            page.wait_for("!!document.querySelector('.jp-Notebook .jp-CodeCell') && !!window.jupyterapp")
            page.wait_for("window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'")
            page.read("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
            page.wait_for(f"!!{TEXTS}?.querySelector('.token')", 300)
            yield page
    finally:
        server.terminate()
        server.wait(30)


def aligned(page: Page, selector: str) -> list[str]:
    cells = f"[...document.querySelectorAll({selector!r})]"
    return sorted(set(page.read(f"{cells}.map(cell => getComputedStyle(cell).textAlign)")))


def test_tables_are_aligned_as_they_say(lab: Page) -> None:
    assert aligned(lab, ".lens-units td.tokens") == ["left"]
    assert aligned(lab, ".lens-units td.side") == ["left"]
    assert aligned(lab, ".ls-result td.text") == ["left"]
    assert aligned(lab, ".ls-result td.number") == ["right"]


def test_a_figure_is_drawn(lab: Page) -> None:
    """JupyterLab shows the picture first, as large as the figure, and draws the figure when the mouse comes."""
    picture = "document.querySelector('.jp-RenderedPlotly img')"
    assert lab.wait_for(f"{picture}.naturalWidth") == 760
    lab.read(f"{picture}.dispatchEvent(new MouseEvent('mouseenter'))")
    assert lab.wait_for("document.querySelectorAll('.jp-RenderedPlotly .main-svg').length") > 0


def test_the_playground_is_driven(lab: Page) -> None:
    prompt = "evidently , the teacher"
    before = lab.read(text_of("before"))
    chosen = "[...document.querySelectorAll('.ls-play-scope select, .ls-play-measure select')].map(one => one.value)"
    scope, measure = lab.read(chosen)
    assert scope == "as the edits say"
    assert measure.startswith("write of ablate at blocks.")
    lab.type_over(".ls-play-prompt textarea", prompt)
    lab.read("document.querySelector('.ls-play-strength .noUi-handle').focus()")
    lab.press("ArrowRight", times=4)
    strength = lab.read("document.querySelector('.ls-play-strength .widget-readout').textContent")
    assert float(strength) == pytest.approx(1.2)
    press = "document.querySelector('.ls-play-generate').click()"
    lab.read(press)
    lab.wait_for(f"({text_of('before')}).includes({prompt.split()[-1]!r})")
    assert lab.read(text_of("before")) != before
    assert prompt in re.sub(r"\s+", " ", lab.read(text_of("after")))
    colours = lab.read(
        f"[...{TEXTS}.querySelectorAll('.after summary')].map(token => getComputedStyle(token).backgroundColor)"
    )
    assert len(set(colours)) > 1
    lab.read(f"{TEXTS}.querySelector('.after .token:last-of-type summary').click()")
    words = lab.read(f"[...{TEXTS}.querySelectorAll('.after .token[open] .row')].map(row => row.textContent)")
    assert len(words) > 3
    lab.type_over(".ls-play-prompt textarea", "the " * 300)
    lab.read(press)
    assert "context is 160" in lab.wait_for("document.querySelector('.ls-play-said').textContent")


def test_the_exported_notebook_shows_every_figure(lab: Page, folder: Path) -> None:
    import nbformat
    from nbconvert import HTMLExporter

    lab.read("window.jupyterapp.commands.execute('docmanager:save').then(() => true)")
    saved = nbformat.read(folder / "notebook" / "shown.ipynb", as_version=4)
    shown = [list(output.data) for cell in saved.cells for output in cell.outputs if "data" in output]
    figures = [kinds for kinds in shown if "application/vnd.plotly.v1+json" in kinds]
    assert len(figures) == 1
    html, _ = HTMLExporter().from_notebook_node(saved)
    assert len(re.findall(r'<img[^>]*src="data:image/png;base64,', html)) == len(figures)
    # The controls need a kernel; what they showed first stands in their place.
    assert 'class="ls-sides"' in html
    assert "ls-play-prompt" not in html
