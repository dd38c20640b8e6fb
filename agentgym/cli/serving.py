"""``agentgym serve-policy``."""

from __future__ import annotations

import signal
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from agentgym.cli import console
from agentgym.policies.vllm.export import servable
from agentgym.policies.vllm.server import VllmServer


def run(model: str, log: Path, flags: list[str], **settings: Any) -> None:
    """Serve until Ctrl-C or SIGTERM. A server that ends by itself is started again: who asks it gives it its weights back."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with TemporaryDirectory() as folder, suppress(KeyboardInterrupt):
        server = VllmServer(servable(model, Path(folder)), flags=flags, log=log, **settings)
        console.print(f"starting vLLM; what it says is in {log}", soft_wrap=True)
        with server:
            console.print(f"{server.url} serves {model}  (Ctrl-C ends it)", highlight=False, soft_wrap=True)
            while True:
                status = server.wait()
                console.print(f"vLLM ended with status {status}: starting it again", soft_wrap=True)
                server.start()
