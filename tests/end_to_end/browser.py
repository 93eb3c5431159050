"""Headless Chromium, driven by chromedriver over WebDriver's own HTTP, on loopback alone.

Usage:
  with Browser(folder) as browser:
    browser.look(width=400, dark=True)
    browser.open("http://127.0.0.1:6006/")
    browser.run("return document.title")
"""

import base64
from collections.abc import Callable
import contextlib
import http.client
import json
import os
from pathlib import Path
import shutil
import signal
import subprocess
import time
from typing import Any

_BINARIES = ("chromium", "chromium-browser", "google-chrome")
# Nothing but the page itself is fetched, so no test waits for a network that may not be there.
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
_PORT_LINE = "started successfully on port "
_SECONDS = 120


def missing() -> str:
    """Why there is no browser on this machine; "" where there is one."""
    if not any(shutil.which(name) for name in _BINARIES):
        return f"none of {', '.join(_BINARIES)} is installed"
    return "" if shutil.which("chromedriver") else "chromedriver is not installed"


def wait_for(condition: Callable[[], Any], what: str, seconds: float = _SECONDS) -> Any:
    """The first true value of a condition.

    Raises:
      TimeoutError: none in that time.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.2)
    raise TimeoutError(f"no {what} within {seconds:g} s")


@contextlib.contextmanager
def ended(process: "subprocess.Popen[str]"):
    """The process, which is gone at the end."""
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def mentioning(text: str) -> list[int]:
    """Ids of processes whose command line has this text."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if text.encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def end_all_of(folder: Path) -> None:
    """Ends the browser that lives in this folder, were it not told to or did not hear."""
    for pid in mentioning(str(folder)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not mentioning(str(folder)), "end of the browser")


class Browser:
    """One window."""

    def __init__(self, folder: Path):
        """Starts Chromium with a profile of its own in `folder`, which must be empty."""
        binary = next(path for name in _BINARIES if (path := shutil.which(name)))
        with contextlib.ExitStack() as stack:
            stack.callback(end_all_of, folder)
            # In the group of this process, so that what ends the group ends the browser, too.
            driver = subprocess.Popen(
                ["chromedriver", "--port=0"],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, "HOME": str(folder)},
                text=True,
            )
            stack.enter_context(ended(driver))
            line = next(line for line in driver.stdout if _PORT_LINE in line)
            self._port = int(line.rpartition(_PORT_LINE)[2].strip(". \n"))
            options = {
                "binary": binary,
                "args": [*_FLAGS, f"--user-data-dir={folder / 'profile'}"],
            }
            wanted = {
                "browserName": "chrome",
                "goog:chromeOptions": options,
                "timeouts": {"script": _SECONDS * 1000, "pageLoad": _SECONDS * 1000},
                "goog:loggingPrefs": {"browser": "ALL"},
            }
            answer = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
            self._session = f"/session/{answer['sessionId']}"
            stack.callback(self._call, "DELETE", self._session)
            self._stack = stack.pop_all()

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def look(self, *, width: int, height: int = 900, dark: bool = False) -> None:
        """Sets the size of the page in CSS pixels and which colour scheme its reader prefers."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._devtools("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._devtools("Emulation.setEmulatedMedia", {"features": [scheme]})

    def open(self, url: str) -> None:
        """Returns when the page's load event has fired."""
        self._call("POST", f"{self._session}/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """Runs the body of a function in the page."""
        body = {"script": script, "args": list(arguments)}
        return self._call("POST", f"{self._session}/execute/sync", body)

    def complaints(self) -> list[str]:
        """What the console has of level SEVERE since the last call, failed requests among it."""
        entries = self._call("POST", f"{self._session}/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]

    def screenshot(self, whole: bool = False) -> bytes:
        """A PNG of the window, or of the whole page."""
        picture = self._devtools("Page.captureScreenshot", {"captureBeyondViewport": whole})
        return base64.b64decode(picture["data"])

    def _devtools(self, command: str, parameters: dict[str, Any]) -> Any:
        body = {"cmd": command, "params": parameters}
        return self._call("POST", f"{self._session}/goog/cdp/execute", body)

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_SECONDS)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            answer = json.loads(connection.getresponse().read())["value"]
        finally:
            connection.close()
        if isinstance(answer, dict) and "error" in answer:
            raise RuntimeError(f"{path}: {answer['error']}: {answer['message']}")
        return answer
