"""A policy on vLLM servers, token for token. Nothing here imports vllm: it is asked over HTTP, and lives in its own environment."""

from agentgym.policies.vllm.client import VllmPolicy

__all__ = ["VllmPolicy"]
