"""A small server that answers as a real one did (``recorded/vllm.jsonl``), and fails as it is told to."""

from __future__ import annotations

import http.server
import json
import threading
from pathlib import Path
from typing import Any

RECORDED = {row["name"]: row for row in map(json.loads, (Path(__file__).parent / "recorded" / "vllm.jsonl").read_text().splitlines())}
ROUTES = {
    "/health": "health",
    "/version": "version",
    "/v1/models": "models",
    "/tokenize": "tokens",
    "/pause": "pause",
    "/resume": "resume",
    "/init_weight_transfer_engine": "init",
    "/start_weight_update": "start",
    "/update_weights": "update",
    "/finish_weight_update": "finish",
    "/update_weight_version": "finish",
}


class Fake:
    """``faults`` come one for each sampling: the name of a recorded answer, a status, "drop", seconds of silence, or a body.

    ``log`` has the routes that were asked; ``broken`` maps a route to a status, or to a recorded answer's name.
    """

    def __init__(self, log: list[tuple[int, str]] | None = None, port: int = 0) -> None:
        self.faults: list[Any] = []
        self.broken: dict[str, Any] = {}
        self.log = [] if log is None else log
        self.samplings: list[dict[str, Any]] = []
        self.version, self.paused, self.updating = "default", False, False
        self.adapters: dict[str, str] = {}  # where each lies
        self.busy = self.busiest = 0
        self.work = 0.0  # seconds for each sampling
        self.lock, self.closing = threading.Lock(), threading.Event()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.answer({})

            def do_POST(self) -> None:
                self.answer(json.loads(self.rfile.read(int(self.headers["content-length"] or 0)) or b"{}"))

            def answer(self, body: dict[str, Any]) -> None:
                path = self.path.partition("?")[0]
                server.log.append((server.port, path))
                found = server.sample(body) if path == "/inference/v1/generate" else server.control(path, body)
                if found is None:
                    self.close_connection = True
                    return
                status, content = found
                text = content if isinstance(content, bytes) else json.dumps(content).encode() if content is not None else b""
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: Any) -> None:
                pass

        class Quiet(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass

        self.http = Quiet(("127.0.0.1", port), Handler)
        self.port = self.http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def control(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/start_weight_update":
            if self.updating:
                return 500, {"error": {"message": "start_weight_update called while a weight update is already active."}}
            self.updating = True
        if path in self.broken:
            self.updating = self.updating and path != "/update_weights"
            return self.told(self.broken[path])
        if path == "/weight_info":
            return 200, {"weight_version": self.version}
        if path == "/is_paused":
            return 200, {"is_paused": self.paused}
        if path == "/v1/models":
            status, found = self.told("models")
            lent = [{"id": name, "parent": "policy", "max_model_len": None} for name in self.adapters]
            return status, {**found, "data": [*found["data"], *lent]}
        if path.endswith("load_lora_adapter"):
            return self.lend(path, body)
        if path in ("/finish_weight_update", "/update_weight_version"):
            self.updating = False
            self.version = body.get("weight_version") or body.get("new_version") or self.version
        self.paused = path == "/pause" or (self.paused and path != "/resume")
        return self.told(ROUTES.get(path, "no such route"))

    def lend(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        name = body["lora_name"]
        if path == "/v1/load_lora_adapter":
            if name in self.adapters:
                return 400, {"error": {"message": f"The lora adapter '{name}' has already been loaded. If you want to load the adapter"}}
            self.adapters[name] = body["lora_path"]
            return 200, f"Success: LoRA adapter '{name}' added successfully.".encode()
        if self.adapters.pop(name, None) is None:
            return 404, {"error": {"message": f"The lora adapter '{name}' cannot be found."}}
        return 200, f"Success: LoRA adapter '{name}' removed successfully.".encode()

    def told(self, what: Any) -> tuple[int, Any]:
        if isinstance(what, int):
            return what, {"error": {"message": "told to"}}
        return RECORDED[what]["status"], RECORDED[what]["body"]

    def sample(self, body: dict[str, Any]) -> tuple[int, Any] | None:
        while self.paused and not self.closing.wait(0.01):
            pass
        sampling, model = body["sampling_params"], body["model"]
        if model not in ("policy", *self.adapters):
            return 404, {"error": {"message": f"The model `{model}` does not exist. Valid aliases: policy."}}
        if sampling["max_tokens"] == 1:  # a probe, or something to score
            top = sampling.get("prompt_logprobs")
            return self.named("out of vocabulary" if body["token_ids"][0] >= 576 else f"scores top {top}" if top else "scores", model)
        with self.lock:
            self.busy += 1
            self.busiest = max(self.busiest, self.busy)
            self.samplings.append(body)
            fault = self.faults.pop(0) if self.faults else "sample"
        self.closing.wait(fault if isinstance(fault, float) else self.work)
        with self.lock:
            self.busy -= 1
        if fault == "drop":
            return None
        if isinstance(fault, dict | bytes):
            return 200, fault
        return self.named("sample" if isinstance(fault, float) else fault, model)

    def named(self, what: Any, model: str) -> tuple[int, Any]:
        """With the version of the weights that it has now, and the name that was asked for, in the place of the recorded server's."""
        status, answer = self.told(what)
        answer = {**json.loads(json.dumps(answer)), "model": model}
        for span in answer["choices"][0]["weight_versions"] if status == 200 else ():
            if span["version"] == "default":
                span["version"] = self.version
        return status, answer

    def close(self) -> None:
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()
