"""A short name for a model's weights, by which an expert knows its base."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn


def weights_digest(model: nn.Module, *, head: Tensor | None = None) -> str:
    """Return 16 hexadecimal digits that name a model's weights: names, sizes, and a sample of every tensor.

    A pooler is left out: a checkpoint may lack it, and no expert depends on it.

    Args:
        model: without its language-model head.
        head: the weight of that head, where it is not the embeddings'.
    """
    sha = hashlib.sha256()
    named = [*sorted(model.named_parameters()), *([] if head is None else [("lm_head.weight", head)])]
    for name, tensor in named:
        if "pooler" in name:
            continue
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // 64)][:64].to("cpu", torch.float32)
        sha.update(f"{name}({flat.numel()})".encode())
        sha.update(sample.contiguous().numpy().tobytes())
    return sha.hexdigest()[:16]
