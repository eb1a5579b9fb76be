"""The Hugging Face hub: a hub id -> a local directory."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from awq2trt.errors import UsageError

_HUB_FILES: Final = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt")


def download(hub_id: str) -> Path:
    """Downloads a model's weights, configuration and tokenizer.

    Raises:
        UsageError: The hub has no such model, or cannot be reached.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(_HUB_FILES)))
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(
            f"this is not a local path, and the hub answered: {reason}",
            where=hub_id,
            fix="check the spelling and the network, or name a local directory.",
        ) from error
