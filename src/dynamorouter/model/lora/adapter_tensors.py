"""What the tensors of an adapter are: factors of the base's layers, factors of a head's, a head, or nothing known.

Letters: D in, O out, R rank.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from dynamorouter.errors import AdapterError
from dynamorouter.model.base.base import Base
from dynamorouter.model.lora.adapter_names import bare_name, body_name, peft_name

_FACTOR = re.compile(r"(?P<layer>.+)\.lora_(?P<side>[AB])(\.[\w-]+)?\.weight")
_EMBEDDING = re.compile(r"(?P<layer>.+)\.lora_embedding_[AB](\.[\w-]+)?")
_HEAD = re.compile(
    r"(?P<module>classifier|score|qa_outputs|pre_classifier|pooler|head)(\.modules_to_save(\.[\w-]+)?)?\.(?P<rest>.+)"
)
POOLER = "pooler."
"""Layers of a base that stand above its hidden states: heads are made of them."""


@dataclass(slots=True)
class Pair:
    """The two factors of one layer.

    Attributes:
        name: the layer's full name, by which PEFT knows it.
        sides: ``A (R, D)`` and ``B (O, R)``, as they stand in the file.
    """

    name: str
    sides: dict[str, Tensor] = field(default_factory=dict)


@dataclass(slots=True)
class SortedTensors:
    """An adapter's tensors, each in its place.

    Attributes:
        layers: factors by the name of a linear layer of the base.
        head_layers: factors of layers of a head, by their name in the task model.
        head: weights of a head, by their name in the task model.
        copies: names of weights that are the base's own.
    """

    layers: dict[str, Pair] = field(default_factory=dict)
    head_layers: dict[str, Pair] = field(default_factory=dict)
    head: dict[str, Tensor] = field(default_factory=dict)
    copies: list[str] = field(default_factory=list)


def sort_tensors(tensors: Mapping[str, Tensor], base: Base, folder: Path) -> SortedTensors:
    """Say what each tensor of an adapter is.

    Raises:
        AdapterError: there are no factors of linear layers, or there is something else than these, a head, and copies
            of the base's own weights; what it is, is named.
    """
    parts = SortedTensors()
    layers: dict[str, str] = {}
    rest: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = peft_name(key)
        if factor := _FACTOR.fullmatch(name):
            _place(parts, factor["layer"], factor["side"], tensor, layers, base)
        elif head := _HEAD.fullmatch(bare_name(name, base)):
            parts.head[f"{head['module']}.{head['rest']}"] = tensor
        elif _is_copy(name, tensor, base):
            parts.copies.append(bare_name(name, base))
        else:
            rest[name] = tensor
    if layers or rest:
        raise AdapterError(f"the adapter in {folder} {_why_not(layers, rest, base)}")
    if not parts.layers:
        held = ", ".join(sorted(tensors)[:5]) or "nothing"
        raise AdapterError(
            f"the adapter in {folder} matches no layer: its file holds no LoRA factors of a linear layer of base "
            f"{base.spec.name!r} (it holds {held}); save it again with PEFT's save_pretrained"
        )
    return parts


def _place(parts: SortedTensors, name: str, side: str, tensor: Tensor, strange: dict[str, str], base: Base) -> None:
    """Put a factor where it belongs, or note its layer as strange, with the reason."""
    layer = body_name(name, base, base.linear)
    inner = bare_name(name, base)
    if layer is not None and not layer.startswith(POOLER):
        pair = parts.layers.setdefault(layer, Pair(name))
    elif _HEAD.fullmatch(f"{inner}.weight"):
        pair = parts.head_layers.setdefault(inner, Pair(name))
    else:
        strange[name] = inner
        return
    if side in pair.sides or pair.name != name:
        strange[name] = inner
    pair.sides[side] = tensor


def _is_copy(name: str, tensor: Tensor, base: Base) -> bool:
    """Tell whether a whole weight is the base's own, as PEFT saves embeddings beside an adapter."""
    inner = body_name(name.replace(".base_layer.", "."), base, base.weights)
    weight = None if inner is None else base.weights[inner]
    if weight is None and base.language_head is not None and bare_name(name, base) == "lm_head.weight":
        weight = next(base.language_head.project.parameters())
    return weight is not None and weight.shape == tensor.shape and torch.equal(weight.cpu(), tensor.to(weight.dtype))


def _why_not(layers: Mapping[str, str], rest: Mapping[str, Tensor], base: Base) -> str:
    """Say what it is that cannot be used, the likeliest reason first."""
    modules = dict(base.model.named_modules())
    embedded = {match["layer"] for name in rest if (match := _EMBEDDING.fullmatch(name))}
    outputs = {name for name, inner in layers.items() if inner in ("lm_head", "embed_out")}
    if outputs:
        return (
            f"changes {', '.join(sorted(outputs))}, the head that all experts of base {base.spec.name!r} share; train "
            "it without lm_head in target_modules"
        )
    if embedded:
        return (
            f"changes the embeddings {', '.join(sorted(embedded))}, which all experts of base {base.spec.name!r} "
            "share; train it without embeddings in target_modules"
        )
    for name, inner in layers.items():
        if inner in base.linear or _HEAD.fullmatch(f"{inner}.weight"):
            return f"holds factors of {inner!r} twice, of several adapters; save each in a folder of its own"
        if inner in modules:
            return (
                f"changes {name!r}, a {type(modules[inner]).__name__}; only linear layers can be changed: train it "
                "with linear layers in target_modules alone"
            )
    if layers:
        return (
            f"changes {min(layers)!r}, which is no linear layer of base {base.spec.name!r} "
            f"({base.config.model_type}, {base.depth} blocks); it was trained on another base: name it with base="
        )
    return _whole_weights(rest, base)


def _whole_weights(rest: Mapping[str, Tensor], base: Base) -> str:
    listed = ", ".join(sorted(rest)[:5])
    inner = {bare_name(name, base).removesuffix(".weight").removesuffix(".bias") for name in rest}
    shared = {"lm_head", *(name for name, _ in base.model.named_modules())}
    if inner <= shared:
        return (
            f"holds whole weights of {', '.join(sorted(inner)[:5])}, trained or resized with it (modules_to_save, or "
            f"tokens that were added); all experts share those of base {base.spec.name!r}: train it without them"
        )
    return (
        f"holds {len(rest)} tensors that are neither LoRA factors of a linear layer nor a head: {listed}; train it "
        "with bias='none' and without modules_to_save other than the head"
    )
