"""Writes vllm.jsonl anew, from a real server: AGENTGYM_VLLM_PYTHON=… python tests/recorded/record_vllm.py"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx

sys.path.insert(0, ".")
from agentgym.policies import tiny
from agentgym.policies.sync import Canary
from agentgym.policies.vllm.client import PROBE
from agentgym.policies.vllm.export import save_served
from agentgym.policies.vllm.server import VllmServer

GENERATE = "/inference/v1/generate"


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    model, chat = tiny.load()
    save_served(model, chat, folder)
    with VllmServer(folder, python=os.environ["AGENTGYM_VLLM_PYTHON"], log=folder / "log", environment={"HF_HUB_OFFLINE": "1"}) as server:
        answers = record(httpx.Client(base_url=server.url, timeout=60, trust_env=False), folder, chat)
    rows = [json.dumps({"name": name, **answer}, ensure_ascii=False) + "\n" for name, answer in answers.items()]
    (Path(__file__).parent / "vllm.jsonl").write_text("".join(rows))


def record(http: httpx.Client, folder: Path, chat) -> dict[str, dict]:
    answers: dict[str, dict] = {}
    canary = Canary.prompt(chat)

    def keep(name: str, response: httpx.Response) -> None:
        body = response.json() if response.content else None
        if name == "models":
            body["data"][0]["root"] = "/model"
        answers[name] = {"status": response.status_code, "body": body}

    def ask(ids: list[int], **sampling) -> httpx.Response:
        params = {"max_tokens": 16, "temperature": 1.0, "seed": 5, "logprobs": 0, "detokenize": False, "ignore_eos": True, **sampling}
        return http.post(GENERATE, json={"model": "policy", "token_ids": ids, "sampling_params": params})

    def ask_meanwhile(name: str, seconds: float) -> threading.Thread:
        thread = threading.Thread(target=lambda: keep(name, ask(canary, max_tokens=200)))
        thread.start()
        time.sleep(seconds)
        return thread

    keep("health", http.get("/health"))
    for name, path in (("version", "/version"), ("models", "/v1/models"), ("weights", "/weight_info"), ("paused", "/is_paused")):
        keep(name, http.get(path))
    keep("tokens", http.post("/tokenize", json={"model": "policy", "prompt": PROBE, "add_special_tokens": False}))
    keep("sample", ask(canary, stop_token_ids=sorted(chat.stop_ids), max_tokens=64))
    keep("cut", ask(canary, max_tokens=8))
    keep("scores", ask(canary, max_tokens=1, prompt_logprobs=0))
    keep("scores top 2", ask(canary, max_tokens=1, prompt_logprobs=2))
    keep("out of vocabulary", ask([576]))
    keep("too long", ask([20] * 2048))
    keep("another model", http.post(GENERATE, json={"model": "llama", "token_ids": [1], "sampling_params": {"max_tokens": 1}}))
    keep("no such route", http.post("/no_such_route", json={}))
    aborted = ask_meanwhile("aborted", 0.3)
    keep("pause", http.post("/pause", params={"mode": "abort"}))
    aborted.join()
    keep("resume", http.post("/resume"))
    updated = ask_meanwhile("two versions", 0.6)
    http.post("/pause", params={"mode": "keep"})
    keep("init", http.post("/init_weight_transfer_engine", json={"init_info": {}}))
    keep("start", http.post("/start_weight_update"))
    keep("update", http.post("/update_weights", json={"update_info": {"paths": [str(folder / "model.safetensors")]}}))
    keep("finish", http.post("/finish_weight_update", json={"weight_version": "step-17"}))
    http.post("/resume")
    updated.join()
    http.post("/start_weight_update")
    keep("no such file", http.post("/update_weights", json={"update_info": {"paths": ["/no/such.safetensors"]}}))
    return answers


if __name__ == "__main__":
    main()
