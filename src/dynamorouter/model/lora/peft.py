"""PEFT's adapter folders: the format that experts are exchanged in, read and written exactly.

What the bank cannot represent exactly (DoRA, biases, trained embeddings, keys that match nothing) is refused by name.

Letters: D in, O out, R rank.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers.pytorch_utils import Conv1D

from dynamorouter.errors import AdapterError
from dynamorouter.model.base.base import Base
from dynamorouter.model.base.kinds import TASK_TYPES
from dynamorouter.model.lora.config import LoraConfig
from dynamorouter.model.lora.factors import Factors
from dynamorouter.utils.files import read_json, read_tensors, write_json, write_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
_KEY = re.compile(r"(?P<layer>.+)\.lora_(?P<side>[AB])(\.[\w-]+)?\.weight")
_HEADS = re.compile(r"(classifier|score|qa_outputs|lm_head)(\.modules_to_save(\.[\w-]+)?)?\.(?P<rest>.+)")


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter folder's content.

    Attributes:
        factors: name of a linear layer of the base to the change to it.
        lora: the shape settings that all layers share.
        head: tensors of a head that was trained with it, by PEFT's names without prefix; may be empty.
        config: the folder's ``adapter_config.json``.
    """

    factors: dict[str, Factors]
    lora: LoraConfig
    head: dict[str, Tensor]
    config: dict[str, Any]


def save_adapter(folder: Path, factors: Mapping[str, Factors], lora: LoraConfig, base: Base) -> None:
    """Write a folder that ``PeftModel.from_pretrained`` loads over the same base, loaded by the class of its kind.

    Layers whose rank or scaling differs from ``lora`` are named in ``rank_pattern`` and ``alpha_pattern``.
    """
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for inner, change in factors.items():
        layer = base.prefix + inner
        tensors[f"{PREFIX}{layer}.lora_A.weight"] = change.a
        tensors[f"{PREFIX}{layer}.lora_B.weight"] = change.b
        rank = change.a.shape[0]
        alpha = change.scaling * (math.sqrt(rank) if lora.rslora else rank)
        if rank != lora.rank:
            ranks[re.escape(layer)] = rank
        if not math.isclose(alpha, lora.alpha):
            alphas[re.escape(layer)] = alpha
    write_json(
        folder / CONFIG,
        {
            "peft_type": "LORA",
            "task_type": TASK_TYPES[base.kind],
            "base_model_name_or_path": base.spec.fallback or base.spec.path,
            "r": lora.rank,
            "lora_alpha": int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha,
            "lora_dropout": lora.dropout,
            "use_rslora": lora.rslora,
            "target_modules": sorted(base.prefix + layer for layer in factors),
            "rank_pattern": ranks,
            "alpha_pattern": alphas,
            "fan_in_fan_out": any(isinstance(base.linear[layer], Conv1D) for layer in factors),
            "bias": "none",
            "use_dora": False,
            "inference_mode": True,
            "init_lora_weights": True,
            "modules_to_save": None,
        },
    )
    write_tensors(folder / WEIGHTS, tensors)


def load_adapter(folder: Path, base: Base) -> Adapter:
    """Read a PEFT adapter folder for this base.

    Raises:
        AdapterError: it holds something that cannot be represented exactly, or it was trained on another base.
    """
    if not (folder / CONFIG).is_file():
        raise AdapterError(f"{folder} has no {CONFIG}; give a folder that PEFT's save_pretrained wrote")
    config = read_json(folder / CONFIG)
    _refuse(folder, config)
    if not (folder / WEIGHTS).is_file():
        names = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise AdapterError(
            f"{folder} has no {WEIGHTS} (found: {names}); pickled adapters are not loaded: "
            "load it with PEFT and save it again with safe_serialization=True"
        )
    sides: dict[str, dict[str, Tensor]] = {}
    head: dict[str, Tensor] = {}
    unmatched = []
    for key, tensor in read_tensors(folder / WEIGHTS).items():
        name = key.removeprefix(PREFIX)
        if match := _KEY.fullmatch(name):
            sides.setdefault(_layer(match["layer"], base, folder), {})[match["side"]] = tensor
        elif match := _HEADS.fullmatch(name):
            head[f"{match[1]}.{match['rest']}"] = tensor
        else:
            unmatched.append(key)
    if unmatched:
        raise AdapterError(
            f"{folder / WEIGHTS} holds {len(unmatched)} tensors that are neither LoRA factors of a linear layer nor a "
            f"head: {', '.join(sorted(unmatched)[:5])}; train the adapter with bias='none' and without "
            "modules_to_save other than the head"
        )
    lora = LoraConfig(
        rank=int(config["r"]),
        alpha=float(config.get("lora_alpha", 8)),
        rslora=bool(config.get("use_rslora", False)),
        dropout=float(config.get("lora_dropout", 0.0)),
        targets=tuple(sorted(sides)),
        trunk_depth=_lowest_block(sides, base),
    )
    factors = {layer: _factors(layer, pair, config, base, folder) for layer, pair in sorted(sides.items())}
    return Adapter(factors=factors, lora=lora, head=head, config=config)


def _refuse(folder: Path, config: Mapping[str, Any]) -> None:
    """Name everything in the config that a plain low-rank change cannot represent."""
    plain = {None, True, False, "gaussian", "eva", "orthogonal"}
    initial = config.get("init_lora_weights", True)
    inexact = {
        f"peft_type={config.get('peft_type')!r} (only LORA is a low-rank change)": config.get("peft_type") != "LORA",
        "use_dora=True (DoRA rescales columns of the base)": config.get("use_dora"),
        f"bias={config.get('bias')!r} (biases of the base were trained)": config.get("bias", "none") != "none",
        "lora_bias=True (the factors have biases)": config.get("lora_bias"),
        "layer_replication (the base's blocks were repeated)": config.get("layer_replication"),
        "trainable_token_indices (embeddings were trained)": config.get("trainable_token_indices"),
        "target_parameters (parameters that are no linear layer were changed)": config.get("target_parameters"),
        "alora_invocation_tokens (it is active for part of the text only)": config.get("alora_invocation_tokens"),
        "use_qalora=True (inputs are pooled before the factors)": config.get("use_qalora"),
        f"init_lora_weights={initial!r} (the base's weights were changed with it)": initial not in plain,
    }
    refused = [setting for setting, is_set in inexact.items() if is_set]
    if refused:
        raise AdapterError(
            f"the adapter in {folder} cannot be represented exactly: {'; '.join(refused)}; "
            "train it as plain LoRA with bias='none', or convert it with PEFT first"
        )


def _layer(name: str, base: Base, folder: Path) -> str:
    """Find the base's own name of a layer, which may carry a task model's prefix such as ``bert.``."""
    for candidate in (name, name.partition(".")[2]):
        if candidate in base.linear:
            return candidate
    raise AdapterError(
        f"the adapter in {folder} changes {name!r}, which is no linear layer of base {base.spec.name!r} "
        f"({base.config.model_type}, {base.depth} blocks); it was trained on another base: name it with base="
    )


def _factors(layer: str, pair: Mapping[str, Tensor], config: Mapping[str, Any], base: Base, folder: Path) -> Factors:
    if set(pair) != {"A", "B"}:
        raise AdapterError(f"the adapter in {folder} has only lora_{'/'.join(pair)} for {layer!r}; both are needed")
    out, width = base.shape(layer)
    a, b = pair["A"].float(), pair["B"].float()
    if a.shape[1:] != (width,) or b.shape != (out, a.shape[0]):
        raise AdapterError(
            f"the adapter in {folder} has A {tuple(a.shape)} and B {tuple(b.shape)} for {layer!r}, but base "
            f"{base.spec.name!r} maps {width} to {out} there; it was trained on another base "
            f"({config.get('base_model_name_or_path')!r})"
        )
    rank = _pattern(config.get("rank_pattern"), layer, config["r"])
    if rank != a.shape[0]:
        raise AdapterError(f"the adapter in {folder} says rank {rank} for {layer!r}, but its factors have {a.shape[0]}")
    alpha = float(_pattern(config.get("alpha_pattern"), layer, config.get("lora_alpha", 8)))
    return Factors(a=a, b=b, scaling=alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _pattern(patterns: Mapping[str, Any] | None, layer: str, default: Any) -> Any:
    """Look a layer up as PEFT does: the first pattern that matches a name or its ending."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", layer):
            return value
    return default


def _lowest_block(layers: Mapping[str, Any], base: Base) -> int:
    inside = re.compile(re.escape(base.blocks_name) + r"\.(\d+)\.")
    decoder = base.decoder_name  # of an encoder-decoder: it comes after the whole trunk
    below = [layer for layer in layers if decoder is None or not layer.startswith(f"{decoder}.")]
    indices = [int(match[1]) if (match := inside.match(layer)) else 0 for layer in below]
    return min(indices, default=0)
