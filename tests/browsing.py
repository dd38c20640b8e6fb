"""A real browser, driven over its debugging pipe: it needs nothing but Chromium itself."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

QUIET = ("gpu", "quic", "background-networking", "component-update", "sync", "dev-shm-usage", "extensions", "default-apps")


def chromium() -> str | None:
    return shutil.which("chromium")


class Browser:
    """One page of headless Chromium, with a profile that is thrown away."""

    def __init__(self, width: int = 1280, height: int = 900) -> None:
        self._profile = tempfile.mkdtemp(prefix="browser-")
        self._requests, self._buffer = itertools.count(1), b""
        theirs, self._out = os.pipe()
        self._in, answers = os.pipe()
        command = [str(chromium()), "--headless", "--no-sandbox", "--no-first-run", "--remote-debugging-pipe"]
        command += [f"--user-data-dir={self._profile}", f"--window-size={width},{height}", *(f"--disable-{feature}" for feature in QUIET)]
        shell = ["bash", "-c", f'exec "$@" 3<&{theirs} 4>&{answers}', "bash", *command]
        nowhere = subprocess.DEVNULL
        self._process = subprocess.Popen(shell, pass_fds=(theirs, answers), stdout=nowhere, stderr=nowhere)
        os.close(theirs)
        os.close(answers)
        page = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        self.ask("Page.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Of the page, by the DevTools protocol."""
        return self._ask(method, self._session, **parameters)

    def _ask(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        number = next(self._requests)
        message = {"id": number, "method": method, "params": parameters, **({"sessionId": session} if session else {})}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != number:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        found: dict[str, Any] = answer["result"]
        return found

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._in], [], [], 60)[0] or not (data := os.read(self._in, 1 << 20)):
                raise RuntimeError("the browser does not answer")
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def open(self, address: str) -> None:
        self.ask("Page.navigate", url=address)

    def run(self, expression: str) -> Any:
        """The value of JavaScript in the page, as JSON; a promise is awaited."""
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"])
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float = 30) -> None:
        """Until the expression is true."""
        until = time.monotonic() + seconds
        while not self.run(f"!!({expression})"):
            if time.monotonic() > until:
                raise TimeoutError(f"{expression} stayed false; the page says: {self.text()[:1000]}")
            time.sleep(0.02)

    def text(self) -> str:
        return str(self.run("document.body.innerText"))

    def picture(self, path: Path, **parameters: Any) -> None:
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", **parameters)["data"]))

    def close(self) -> None:
        try:
            self._ask("Browser.close")  # it ends its own processes, which write into the profile until then
            self._process.wait(20)
        except (OSError, RuntimeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        os.close(self._out)
        os.close(self._in)
        shutil.rmtree(self._profile, ignore_errors=True)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
