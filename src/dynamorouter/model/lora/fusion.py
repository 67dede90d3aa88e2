"""AdapterFusion (Pfeiffer et al., 2021): for one task, learned attention over the outputs of several frozen experts.

In the paper the layer's hidden state is the query, and the adapters' outputs are keys and values. Here the adapters are
low-rank factors, so the keys are read off each expert's R-wide inner state ``h_e = x A_e``, and the values are its
change to the layer, ``s_e h_e B_e``. The query begins at zero: an untrained fusion is the uniform mixture.

Letters: B batch, S positions, D in, E source experts, R rank, K width of queries and keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dynamorouter.errors import LibraryError
from dynamorouter.model.heads.base import Head


class FusionLayer(nn.Module):
    """Attention over the source experts of one linear layer.

    Args:
        width: D.
        experts: number of sources E.
        rank: the largest rank R of the sources on this layer.
        key_width: K.
    """

    def __init__(self, width: int, *, experts: int, rank: int, key_width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(width, key_width))
        self.key = nn.Parameter(torch.zeros(experts, rank, key_width))

    @property
    def rank(self) -> int:
        """How much of an expert's inner state is read, R."""
        return self.key.shape[1]

    def initialise(self, generator: torch.Generator) -> FusionLayer:
        """Draw the keys from N(0, 1/R), and leave the query at zero."""
        with torch.no_grad():
            self.key.normal_(0.0, 1 / math.sqrt(self.rank), generator=generator)
        return self

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Return the sources' weights ``(B, S, E)``, which sum to one.

        Args:
            x: input of the layer, ``(B, S, D)``.
            h: inner states of the sources, ``(B, S, E, R)``.
        """
        query = x @ self.query.to(x.dtype)  # (B, S, K)
        keys = torch.einsum("bser,erk->bsek", h, self.key.to(h.dtype))
        scores = (keys * query[:, :, None]).sum(dim=-1) / math.sqrt(self.query.shape[1])
        return scores.to(torch.promote_types(scores.dtype, torch.float32)).softmax(dim=-1)


@dataclass(frozen=True, slots=True)
class Fusion:
    """What answers a task in place of its plain expert.

    Attributes:
        sources: names of the experts that are mixed, in the order of the layers' keys.
        layers: name of a linear layer of the base to the attention over it.
        head: trained together with the layers.
    """

    sources: tuple[str, ...]
    layers: Mapping[str, FusionLayer]
    head: Head

    def parameters(self) -> list[nn.Parameter]:
        """List the parameters of all layers and of the head."""
        return [*(p for layer in self.layers.values() for p in layer.parameters()), *self.head.parameters()]

    def to(self, device: torch.device) -> Fusion:
        """Move everything to a device."""
        for module in (*self.layers.values(), self.head):
            module.to(device)
        return self

    def state(self) -> dict[str, Tensor]:
        """Return the layers' tensors as ``LAYER/query`` and ``LAYER/key``, the head's as ``head/NAME``."""
        layer_tensors = {
            f"{name}/{key}": value for name, layer in self.layers.items() for key, value in layer.named_parameters()
        }
        return {**layer_tensors, **{f"head/{key}": value for key, value in self.head.state_dict().items()}}


def load_layers(tensors: Mapping[str, Tensor], *, experts: int, where: str) -> dict[str, FusionLayer]:
    """Build layers from what ``Fusion.state`` returned, without the head's tensors.

    Raises:
        LibraryError: a layer lacks a tensor, or its shapes do not go together.
    """
    layers = {}
    for name in dict.fromkeys(key.rpartition("/")[0] for key in tensors):
        query, key = tensors.get(f"{name}/query"), tensors.get(f"{name}/key")
        complete = query is not None and key is not None and (query.dim(), key.dim()) == (2, 3)
        if not complete or query is None or key is None or (key.shape[0], key.shape[2]) != (experts, query.shape[1]):
            shapes = {part: tuple(tensors[part].shape) for part in tensors if part.rpartition("/")[0] == name}
            raise LibraryError(
                f"{where} holds {shapes} for layer {name!r}, but needs a query (D, K) and a key ({experts}, R, K); "
                "the file is damaged: restore it, or train the expert again"
            )
        layer = FusionLayer(query.shape[0], experts=experts, rank=key.shape[1], key_width=key.shape[2])
        layer.load_state_dict({"query": query, "key": key})
        layers[name] = layer.requires_grad_(False)
    return layers
