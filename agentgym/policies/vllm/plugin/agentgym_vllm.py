# mypy: ignore-errors
"""Tells vLLM of a way to bring weights: the backend "agentgym" takes them from files or from a process group."""

NAME = "agentgym"


def register() -> None:
    """vLLM calls it in each of its processes, in some twice."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if NAME not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(NAME, "agentgym_vllm_engine", "Engine")
