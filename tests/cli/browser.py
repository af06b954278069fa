"""A headless Chromium, driven through chromedriver's own protocol."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--window-size=1400,1000",
)  # fmt: skip
ALL_TEXT = """
const seen = [];
const walk = node => {
  if (node.nodeType === 3) seen.push(node.textContent);
  if (node.nodeName === 'STYLE' || node.nodeName === 'SCRIPT') return;
  if (node.shadowRoot) walk(node.shadowRoot);
  if (node.nodeName === 'IFRAME') { try { walk(node.contentDocument.body) } catch (error) {} }
  if (node.nodeName === 'INPUT') seen.push(node.value);
  for (const child of node.childNodes) walk(child);
};
walk(document.body);
return seen.join(' ').replace(/\\s+/g, ' ');
"""


def missing() -> str | None:
    """Which program is not there; None where all are."""
    for names in (("chromium", "chromium-browser", "google-chrome"), ("chromedriver",)):
        if not any(map(shutil.which, names)):
            return names[0]
    return None


class Page:
    """One tab."""

    def __init__(self, base: str, session: str) -> None:
        self._base = f"{base}/session/{session}"

    def open(self, url: str) -> None:
        ask(f"{self._base}/url", {"url": url})

    def text(self) -> str:
        """All that is written on the page, in shadow trees and frames too."""
        found: str = ask(f"{self._base}/execute/sync", {"script": ALL_TEXT, "args": []})
        return found

    def wait_for(self, pattern: str, timeout_s: float = 60.0) -> str:
        """The page's text once `pattern` is found in it."""
        deadline = time.monotonic() + timeout_s
        while True:
            text = self.text()
            if re.search(pattern, text):
                return text
            if time.monotonic() > deadline:
                raise AssertionError(f"{pattern!r} is not on the page: {text[:3000]}")
            time.sleep(0.3)

    def screenshot(self, path: Path) -> Path:
        path.write_bytes(base64.b64decode(ask(f"{self._base}/screenshot")))
        return path


def ask(url: str, content: Any = None) -> Any:
    data = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["value"]


@contextmanager
def browser() -> Iterator[Page]:
    """A page of a browser that keeps nothing."""
    with tempfile.TemporaryDirectory() as profile, started_driver() as base:
        options = {"args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}}
        session = ask(f"{base}/session", wanted)["sessionId"]
        try:
            yield Page(base, session)
        finally:
            request = urllib.request.Request(f"{base}/session/{session}", method="DELETE")
            urllib.request.urlopen(request, timeout=60).close()


@contextmanager
def started_driver() -> Iterator[str]:
    """The address of a chromedriver, which chooses a free port by itself and says which."""
    with said_address(["chromedriver", "--port=0"], r"started successfully on port (\d+)") as found:
        yield f"http://127.0.0.1:{found}"


@contextmanager
def said_address(command: list[str], pattern: str) -> Iterator[str]:
    """Runs a server; what it says at `pattern`, on either stream."""
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 120
            while True:
                # Read through a handle of its own: the server writes where the one that it was given stands.
                said = Path(log.name).read_text(errors="replace")
                if found := re.search(pattern, said):
                    break
                if process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f"{command[0]} did not start: {said}")
                time.sleep(0.1)
            yield found[1]
        finally:
            process.terminate()
            process.wait(20)
