"""The report opens without a network, shows what the run folders hold, and lets no text become markup."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from plotly.offline import get_plotlyjs

from lens_steer import cli
from lens_steer.errors import ArtifactError, OutputError, SettingError
from lens_steer.report.page import _embedded, write_report
from lens_steer.report.sections import _byline, _flat, _groups
from tests.report.runs import HOSTILE, save, study_of

_CSP = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')


@pytest.fixture(scope="module")
def runs(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    place = tmp_path_factory.mktemp("runs")
    frames = {"long": pd.DataFrame({"x": range(300)})}
    second = study_of(tiny, summary=["A second finding"], tokens={}, captions={}, frames=frames)
    return [save(study_of(tiny), place / "a", tiny), save(second, place / "b", tiny, name="other_study")]


@pytest.fixture(scope="module")
def page(runs: list[Path]) -> str:
    return write_report(runs[0].parent / "report.html", runs).read_text(encoding="utf-8")


class Elements(HTMLParser):
    """Collects what the browser would see: tags with their attributes, and text outside of scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data


def test_the_page_says_what_was_found_and_how_to_repeat_it(page: str) -> None:
    seen = Elements(page)
    assert "<h1>Three units were found</h1>" in page
    assert "A second finding" in seen.text
    for said in ("What the units tell apart, as AUROC.", "path.gamma", "0.912", "A heading", "and a note", "seed 7"):
        assert said in seen.text
    for package in ("torch", "transformer-lens", "lens-steer"):
        assert package in seen.text
    assert "2 source + 2 target texts" in seen.text
    targets = {attributes["href"] for tag, attributes in seen.tags if tag == "a"}
    places = {f"#{attributes['id']}" for _, attributes in seen.tags if "id" in attributes}
    assert targets
    assert targets <= places


def test_a_long_table_names_the_file_with_all_of_its_rows(page: str) -> None:
    said = re.findall(r"The first [^<]*", page)
    assert said == ["The first 250 of 300 rows; all are in tables/long.parquet."]


def test_there_is_no_empty_part(page: str) -> None:
    assert "Empty" not in Elements(page).text  # the table without rows
    assert "None" not in Elements(page).text


def test_no_text_becomes_markup(page: str) -> None:
    seen = Elements(page)
    assert seen.text.count(HOSTILE) >= 2  # as a sentence and as a cell, letter by letter
    assert not [tag for tag, _ in seen.tags if tag in ("img", "b", "link", "iframe", "object")]
    assert not [attributes for _, attributes in seen.tags if attributes.keys() & {"src", "onerror"}]
    data = [json.loads(text) for text in seen.scripts if text.startswith("{")]
    assert any(spec["data"][0]["x"][0] == HOSTILE for spec in data if spec.get("data") and "x" in spec["data"][0])


def test_what_a_script_holds_is_json_without_a_letter_of_markup() -> None:
    data = {"text": "<!-- --> & </script>", "more": [1, None]}
    held = str(_embedded(data))
    assert not set("<>&") & set(held)
    assert json.loads(held) == data


def test_settings_stand_in_groups_under_their_whole_names(page: str) -> None:
    seen = Elements(page).text
    for group in ("How to repeat it", "Settings", "Model", "Contrast", "Versions"):
        assert group in seen
    nested = {"path": {"gamma": 0.5}, "k": 3, "left out": None, "empty": "", "many": list(range(14))}
    assert dict(_flat(nested)) == {
        "path.gamma": "0.5",
        "k": "3",
        "many": "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, … (14 in all)",
    }


def test_the_byline_names_model_contrast_seed_and_day() -> None:
    contrast = {"name": "sad", "texts": {"source": 1200, "target": 3}}
    about = {"model": {"model": "gpt2"}, "contrast": contrast, "seed": 0, "time": "2026-01-02T03:04:05"}
    said = ["model gpt2", "contrast “sad” (1,200 source + 3 target texts)", "seed 0", "2 January 2026"]
    assert _byline(about) == said
    assert _byline({"model": {"model": "/somewhere/gpt2"}, "contrast": {"name": "x", "texts": 5}}) == [
        "model gpt2",
        "contrast “x” (5 texts)",
    ]
    assert _byline({}) == []


def test_how_to_repeat_a_run_is_its_command_its_seed_and_its_day() -> None:
    about = {"command": "lens-steer rank", "seed": 0, "time": "2026-01-02T03:04:05"}
    assert _groups(about)[0] == ("How to repeat it", about)
    assert _groups({"seed": 7})[0][1] == {"seed": 7}


def test_the_script_that_draws_is_there_once_and_packed(page: str, runs: list[Path], tiny: Any) -> None:
    assert page.count('<script type="application/gzip"') == 1
    (packed,) = (text for text in Elements(page).scripts if len(text) > 1e6)
    assert gzip.decompress(b64decode(packed)).decode() == get_plotlyjs()
    assert len(page) < 2.5e6
    bare = save(study_of(tiny, figures={}, interventions={}, captions={}), runs[0].parent / "bare", tiny)
    both = write_report(runs[0].parent / "both.html", [bare, runs[1]]).read_text(encoding="utf-8")
    assert both.count('<script type="application/gzip"') == 1  # one run of two draws something
    alone = write_report(runs[0].parent / "alone.html", runs[1]).read_text(encoding="utf-8")
    assert "A second finding</h1>" in alone


def test_a_page_without_figures_carries_no_script_that_draws(tiny: Any, tmp_path: Path) -> None:
    save(study_of(tiny, figures={}, interventions={}), tmp_path / "plain", tiny)
    plain = write_report(tmp_path / "plain.html", tmp_path / "plain").read_text(encoding="utf-8")
    assert '<script type="application/gzip"' not in plain
    assert len(plain) < 2e5


def test_one_run_is_not_counted_and_several_are(page: str, runs: list[Path], tmp_path: Path) -> None:
    alone = write_report(tmp_path / "alone.html", runs[0]).read_text(encoding="utf-8")
    assert 'class="only"' in alone
    assert 'class="only"' not in page
    for heading in ("How to repeat it", "Versions"):
        assert heading in Elements(alone).text


def test_wrong_input_is_one_message(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "there.html").write_text("mine")
    with pytest.raises(OutputError, match="already exists"):
        write_report(tmp_path / "there.html", runs)
    with pytest.raises(SettingError, match="at least one run folder"):
        write_report(tmp_path / "new.html", [])
    with pytest.raises(ArtifactError, match="not a directory that lens_steer wrote"):
        write_report(tmp_path / "new.html", [runs[0], tmp_path])
    assert [path.name for path in tmp_path.iterdir()] == ["there.html"]


def test_the_command(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    cli.app(["report", str(runs[1]), "--out", str(out), "--title", "My <title>"])
    assert "<h1>My &lt;title&gt;</h1>" in out.read_text(encoding="utf-8")


def chromium(page: Path, place: Path, *settings: str) -> tuple[str, list[str]]:
    """Open a page with every host name unresolvable; return the DOM and what the page asked of the network."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    options = [
        *settings,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--dump-dom",
    ]
    options += ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=10000"]
    options += [f"--user-data-dir={place / 'profile'}", f"--log-net-log={place / 'net.json'}"]
    done = subprocess.run([browser, *options, page.as_uri()], capture_output=True, text=True, check=True, timeout=120)
    events = json.loads((place / "net.json").read_text())["events"]
    params = [event.get("params") or {} for event in events]
    # The browser asks things of its own accord ("not an origin"); what a file's page asks for has the origin "null".
    return done.stdout, [each["url"] for each in params if each.get("initiator") == "null"]


def test_it_opens_in_a_browser_without_a_network(page: str, tmp_path: Path) -> None:
    # The policy in its head would keep the page from asking: without it, it must not ask either.
    assert len(_CSP.findall(page)) == 1
    bare = tmp_path / "bare.html"
    watched = _CSP.sub('<script>addEventListener("error", (e) => (document.title = e.message))</script>', page)
    bare.write_text(watched.replace("</body>", '<script>document.querySelector("th button").click()</script></body>'))
    seen, asked = chromium(bare, tmp_path)
    assert asked == []
    assert "<title>Three units were found</title>" in seen  # no script failed
    plots = page.count('class="plot"')
    assert plots == 5  # three in the first run, and two in the second, whose edit is drawn there already
    assert len(re.findall(r'class="plot js-plotly-plot"', seen)) == plots
    assert len(re.findall(r'<svg class="main-svg"', seen)) >= plots
    first = seen[seen.index("<tbody>") : seen.index("</tbody>")]
    assert re.findall(r'<tr><td class="number">(\d)<', first) == ["3", "2", "1"]  # a click sorted by unit


def test_in_the_dark_and_on_a_narrow_screen_figures_follow(page: str, tmp_path: Path) -> None:
    narrow = tmp_path / "narrow.html"
    narrow.write_text(page)
    # Chromium opens no narrower window.
    seen, _ = chromium(narrow, tmp_path, "--blink-settings=preferredColorScheme=0", "--window-size=500,900")
    widths = [int(width) for width in re.findall(r'<svg class="main-svg"[^>]* width="(\d+)"', seen)]
    assert len(widths) >= 5
    assert max(widths) <= 500
    assert "fill: rgb(230, 233, 236)" in seen  # the ink of the dark
    assert "more columns to the right: scroll." in seen


def test_a_browser_that_cannot_unpack_says_so(page: str, tmp_path: Path) -> None:
    old = tmp_path / "old.html"
    old.write_text(page.replace("<body>", "<body><script>delete globalThis.DecompressionStream</script>"))
    assert chromium(old, tmp_path)[0].count("This figure needs a browser of 2023 or later") == 5 + 1  # and the script


def test_tokens_are_coloured_on_one_scale_and_white_at_zero(page: str) -> None:
    spans = [attributes for tag, attributes in Elements(page).tags if tag == "span" and "title" in attributes]
    assert [(each.get("class"), each.get("style")) for each in spans[:3]] == [
        (None, None),
        ("below", "--depth: 23%"),  # a third as large as the largest: not as deep
        ("above", "--depth: 70%"),
    ]
    assert spans[2]["title"] == "1.50"
    # The text goes on, and starts where it starts.
    assert (re.findall('(…?)<span class="coloured">', page), re.findall("</span></span>(…?)", page)) == ([""], ["…"])


def test_an_edit_is_drawn_once(page: str) -> None:
    assert page.count("layers and units that the edit moves</h3>") == 2
    assert 'This edit is drawn above: <a href="#run1-edit0">' in page


def test_the_browser_would_tell_of_a_request(tmp_path: Path) -> None:
    page = tmp_path / "asks.html"
    page.write_text('<img src="http://example.invalid/x.png">')
    assert chromium(page, tmp_path)[1] == ["http://example.invalid/x.png"]
