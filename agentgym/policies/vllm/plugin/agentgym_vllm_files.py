# mypy: ignore-errors
"""Tells vLLM of a way to bring weights: the backend "agentgym-files" reads safetensors files that the trainer wrote."""

NAME = "agentgym-files"


def register() -> None:
    """vLLM calls it in each of its processes, in some twice."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if NAME not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(NAME, "agentgym_vllm_files_engine", "FilesEngine")
