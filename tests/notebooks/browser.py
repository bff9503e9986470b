"""A headless Chromium driven by its DevTools protocol: just enough to open a page, act on it and read it."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

websocket = pytest.importorskip("websocket", reason="websocket-client is not installed: pip install -e '.[dev]'")


class Page:
    """One open page."""

    def __init__(self, address: str) -> None:
        self._socket = websocket.create_connection(address, suppress_origin=True, timeout=120)
        self._number = 0

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return dict(answer["result"])

    def read(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        params = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        answer = self.call("Runtime.evaluate", **params)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 120) -> Any:
        """The value of an expression as soon as it is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if value := self.read(expression):
                return value
            time.sleep(0.3)
        raise AssertionError(f"not so within {seconds} s: {expression}\n{self.read('document.body.innerText')[-3000:]}")

    def press(self, key: str, times: int = 1) -> None:
        for _ in range(times):
            for kind in ("rawKeyDown", "keyUp"):
                self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=_CODES[key])

    def type_over(self, selector: str, text: str) -> None:
        """Write a text in the place of what a field holds, as a person does."""
        self.read(f"(() => {{ const field = document.querySelector({selector!r}); field.focus(); field.select() }})()")
        self.call("Input.insertText", text=text)

    def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, place: Path) -> None:
        place.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


_CODES = {"ArrowLeft": 37, "ArrowRight": 39}


@contextmanager
def open_page(url: str, place: Path) -> Iterator[Page]:
    """Open a page; `place` is a folder for the browser's own files. Skips where there is no Chromium."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    options += ["--remote-debugging-port=0", f"--user-data-dir={place / 'profile'}", "--window-size=1280,3000"]
    browser = subprocess.Popen([found, *options, url], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        opened = place / "profile" / "DevToolsActivePort"
        for _ in range(300):
            if opened.exists() and opened.read_text():
                break
            time.sleep(0.2)
        port = opened.read_text().splitlines()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
            pages = [one for one in json.load(answer) if one["type"] == "page"]
        page = Page(pages[0]["webSocketDebuggerUrl"])
        # A browser answers before it has read the page.
        page.wait_for("location.href != 'about:blank' && document.readyState == 'complete'")
        yield page
    finally:
        browser.terminate()
        browser.wait(30)
