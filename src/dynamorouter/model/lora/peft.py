"""PEFT's adapter folders: the format that experts are exchanged in, read and written exactly.

What the bank cannot represent exactly (DoRA, biases, trained embeddings, keys that match nothing) is refused by name.

Letters: D in, O out, R rank.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from dynamorouter.errors import AdapterError, BankShapeError
from dynamorouter.model.base.base import Base
from dynamorouter.model.base.kinds import TASK_TYPES
from dynamorouter.model.lora.adapter_config import CONFIG, PeftConfig, read_config
from dynamorouter.model.lora.adapter_files import WEIGHTS, find_folder, read_weights
from dynamorouter.model.lora.adapter_names import PREFIX, matches_target, pattern_value
from dynamorouter.model.lora.adapter_origin import base_notes
from dynamorouter.model.lora.adapter_tensors import POOLER, Pair, SortedTensors, sort_tensors
from dynamorouter.model.lora.config import LoraConfig
from dynamorouter.model.lora.factors import Factors
from dynamorouter.model.lora.gates.row import RowGate
from dynamorouter.model.lora.mount import mount
from dynamorouter.model.text.tokenize import Batch
from dynamorouter.utils.files import write_json, write_tensors

NOTHING = 1e-7
"""A change this small beside the size of its factors is rounding."""
LARGEST = torch.finfo(torch.float32).max
"""A change of this size overflows where it is computed."""


@dataclass(frozen=True, slots=True)
class TaskForm:
    """A head as a task model of ``transformers`` has it, to be written beside the factors.

    Attributes:
        task_type: PEFT's name of the task.
        prefix: what the task model puts before the names of its body, such as ``bert.``.
        tensors: the head's weights by their full names in the task model.
        modules: the modules that they belong to, for ``modules_to_save``.
    """

    task_type: str
    prefix: str
    tensors: Mapping[str, Tensor]
    modules: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter folder's content.

    Attributes:
        factors: name of a linear layer of the base to the change to it.
        lora: the shape settings that all layers share.
        head: tensors of a head that was trained with it, by PEFT's names without prefix; may be empty.
        config: the folder's ``adapter_config.json``.
        folder: where it was found.
        head_factors: changes to layers of the head, such as ``pooler.dense``, by the same names as ``head``.
        notes: what a user should know, a sentence each.
    """

    factors: dict[str, Factors]
    lora: LoraConfig
    head: dict[str, Tensor]
    config: dict[str, Any]
    folder: Path
    head_factors: dict[str, Factors] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def matched_layers(self) -> int:
        """How many linear layers of the base it changes."""
        return len(self.factors)

    @property
    def delta_norm(self) -> float:
        """The Frobenius norm of all its changes ``scaling * B @ A`` together."""
        return math.sqrt(sum(change.squared_norm() for change in self.factors.values()))


def save_adapter(
    folder: Path, factors: Mapping[str, Factors], lora: LoraConfig, base: Base, *, form: TaskForm | None = None
) -> None:
    """Write a folder that ``PeftModel.from_pretrained`` loads over the same base.

    Layers whose rank or scaling differs from ``lora`` are named in ``rank_pattern`` and ``alpha_pattern``.

    Args:
        folder: where to.
        factors: name of a linear layer of the base to the change to it.
        lora: the shape settings that the layers share.
        base: the base.
        form: the head as a task model has it; PEFT then loads the folder over that model, else over the class of the
            base's kind.
    """
    prefix = base.prefix if form is None else form.prefix
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for inner, change in factors.items():
        layer = prefix + inner
        tensors[f"{PREFIX}{layer}.lora_A.weight"] = change.a
        tensors[f"{PREFIX}{layer}.lora_B.weight"] = change.b
        rank = change.a.shape[0]
        alpha = change.scaling * (math.sqrt(rank) if lora.rslora else rank)
        if rank != lora.rank:
            ranks[f"^{re.escape(layer)}"] = rank
        if not math.isclose(alpha, lora.alpha):
            alphas[f"^{re.escape(layer)}"] = alpha
    if form is not None:
        tensors |= {f"{PREFIX}{name}": value for name, value in form.tensors.items()}
    write_json(
        folder / CONFIG,
        {
            "peft_type": "LORA",
            "task_type": TASK_TYPES[base.kind] if form is None else form.task_type,
            "base_model_name_or_path": base.spec.fallback or base.spec.path,
            "r": lora.rank,
            "lora_alpha": int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha,
            "lora_dropout": lora.dropout,
            "use_rslora": lora.rslora,
            "target_modules": sorted(prefix + layer for layer in factors),
            "rank_pattern": ranks,
            "alpha_pattern": alphas,
            "fan_in_fan_out": any(isinstance(base.linear[layer], Conv1D) for layer in factors),
            "bias": "none",
            "use_dora": False,
            "inference_mode": True,
            "init_lora_weights": True,
            "modules_to_save": None if form is None else list(form.modules),
        },
    )
    write_tensors(folder / WEIGHTS, tensors)


def load_adapter(folder: str | Path, base: Base) -> Adapter:
    """Read an adapter that was trained elsewhere, for this base.

    Args:
        folder: what PEFT's ``save_pretrained`` wrote, or what holds one such folder.
        base: the base to use it over.

    Raises:
        AdapterError: it holds something that cannot be represented exactly, was trained on another base, matches no
            layer, or changes nothing.
        LibraryError: its weights are truncated or corrupt.
    """
    source = find_folder(Path(folder))
    adapter = read_adapter(source, base)
    size = sum(abs(f.scaling) * float(f.a.double().norm() * f.b.double().norm()) for f in adapter.factors.values())
    norm = adapter.delta_norm
    if not NOTHING * size < norm < LARGEST:
        what = "nothing: B @ A is zero" if norm < LARGEST else "too much: B @ A overflows"
        raise AdapterError(
            f"the adapter in {source} changes {what} in the {adapter.matched_layers} layers that it names; "
            "it was saved before it was trained, or its training failed"
        )
    _check_rows(adapter, base)
    named = (f"the adapter was read from {source}",) if source != Path(folder) else ()
    return replace(adapter, notes=(*named, *adapter.notes, *base_notes(source, adapter.config, base)))


def read_adapter(folder: Path, base: Base) -> Adapter:
    """Read a PEFT adapter folder of this base, whatever its factors change.

    Raises:
        AdapterError: it holds something that cannot be represented exactly, or it was trained on another base.
        LibraryError: its weights are truncated or corrupt.
    """
    config, values = read_config(folder)
    parts = sort_tensors(read_weights(folder), base, folder)
    notes = _check_targets(parts, config, base, folder)
    if config.modules_to_save and config.task_type not in (None, "CAUSAL_LM", "SEQ_2_SEQ_LM") and not parts.head:
        notes.append(f"modules_to_save names {', '.join(config.modules_to_save)}, but the file holds no head")
    if parts.head_layers and not parts.head:
        notes.append(
            f"{', '.join(parts.head_layers)}: changed by the adapter, but read by no head that is trained here"
        )
    if parts.copies:
        notes.append(f"{', '.join(parts.copies)}: saved with the adapter, and the same as the base's own")
    lora = LoraConfig(
        rank=config.r,
        alpha=config.lora_alpha,
        rslora=bool(config.use_rslora),
        dropout=config.lora_dropout,
        targets=tuple(sorted(parts.layers)),
        trunk_depth=_lowest_block(parts.layers, base),
    )
    return Adapter(
        factors={layer: _factors(layer, pair, config, base, folder) for layer, pair in sorted(parts.layers.items())},
        lora=lora,
        head=parts.head,
        config=values,
        folder=folder,
        head_factors={
            layer: _factors(layer, pair, config, base, folder) for layer, pair in sorted(parts.head_layers.items())
        },
        notes=tuple(notes),
    )


@dataclass(frozen=True, slots=True)
class _Trial:
    """An adapter that is mounted to be tried."""

    name: str
    factors: Mapping[str, Factors]


@torch.no_grad()
def _check_rows(adapter: Adapter, base: Base) -> None:
    """Try an adapter on two rows of a few tokens.

    Raises:
        AdapterError: the base runs a layer on what all rows share, where no row can have an expert of its own.
    """
    ids = torch.arange(6, device=base.device).reshape(2, 3)
    gate = RowGate(torch.zeros(2, dtype=torch.int64, device=base.device))
    try:
        with mount(base, [_Trial("trial", adapter.factors)]):
            base.forward(Batch(ids=ids, types=None, mask=torch.ones_like(ids)), gate)
    except BankShapeError as error:
        raise AdapterError(
            f"the adapter in {adapter.folder} changes layers that base {base.spec.name!r} ({base.config.model_type}) "
            f"also runs on what all rows share, such as relative positions, so that rows cannot differ in them "
            f"({error}); train it without them in target_modules (value and dense layers can be changed)"
        ) from error


def _check_targets(parts: SortedTensors, config: PeftConfig, base: Base, folder: Path) -> list[str]:
    """Compare the layers that the file holds with those that PEFT would change by its config; returns notes.

    Raises:
        AdapterError: PEFT would leave some of the file's factors out, or draw at random what the file lacks.
    """
    pairs = {**parts.layers, **parts.head_layers}
    ignored = sorted(pair.name for pair in pairs.values() if not matches_target(config, pair.name))
    if ignored:
        raise AdapterError(
            f"the adapter in {folder} holds factors of {len(ignored)} layers that target_modules in {CONFIG} does not "
            f"name, so that PEFT leaves them out ({', '.join(ignored[:3])}); correct target_modules, or save it again"
        )
    layer, pair = next(iter(parts.layers.items()))
    prefix = pair.name.removesuffix(layer)
    lacking = [
        name
        for name in base.linear
        if name not in parts.layers and not name.startswith(POOLER) and matches_target(config, prefix + name)
    ]
    notes = _idle_patterns(config, [pair.name for pair in pairs.values()])
    if not lacking:
        return notes
    listed = f"{len(lacking)} layers that target_modules names ({', '.join(lacking[:3])})"
    if not config.init_lora_weights:
        raise AdapterError(
            f"the adapter in {folder} lacks {listed}; with init_lora_weights=False PEFT draws them at random: "
            "save it again with all of them"
        )
    return [*notes, f"the adapter's file lacks {listed}: they stay as they are in the base, as with PEFT"]


def _idle_patterns(config: PeftConfig, names: Sequence[str]) -> list[str]:
    """Say which patterns of ranks and alphas match no layer, so that they do nothing."""
    notes = []
    for setting, patterns in (("rank_pattern", config.rank_pattern), ("alpha_pattern", config.alpha_pattern)):
        idle = [repr(p) for p in patterns if not any(pattern_value({p: 1}, name, 0, setting) for name in names)]
        if idle:
            notes.append(f"{setting} has {', '.join(idle)}, which match no layer of the adapter and do nothing")
    return notes


def _factors(layer: str, pair: Pair, config: PeftConfig, base: Base, folder: Path) -> Factors:
    """Make the change to one layer; of a layer of a head, the shape is not known here."""
    if set(pair.sides) != {"A", "B"}:
        raise AdapterError(f"the adapter in {folder} has only lora_{'/'.join(pair.sides)} for {layer!r}; give both")
    a, b = pair.sides["A"].float(), pair.sides["B"].float()
    out, width = base.shape(layer) if layer in base.linear else (b.shape[0], a.shape[-1])
    if a.shape[1:] != (width,) or b.shape != (out, a.shape[0]):
        raise AdapterError(
            f"the adapter in {folder} has A {tuple(a.shape)} and B {tuple(b.shape)} for {layer!r}, but base "
            f"{base.spec.name!r} maps {width} to {out} there; it was trained on another base "
            f"({config.base_model_name_or_path!r})"
        )
    rank = pattern_value(config.rank_pattern, pair.name, config.r, "rank_pattern")
    if rank != a.shape[0]:
        raise AdapterError(f"the adapter in {folder} says rank {rank} for {layer!r}, but its factors have {a.shape[0]}")
    alpha = pattern_value(config.alpha_pattern, pair.name, config.lora_alpha, "alpha_pattern")
    return Factors(a=a, b=b, scaling=alpha / (math.sqrt(rank) if config.use_rslora else rank))


def _lowest_block(layers: Mapping[str, Any], base: Base) -> int:
    inside = re.compile(re.escape(base.blocks_name) + r"\.(\d+)\.")
    decoder = base.decoder_name  # of an encoder-decoder: it comes after the whole trunk
    below = [layer for layer in layers if decoder is None or not layer.startswith(f"{decoder}.")]
    indices = [int(match[1]) if (match := inside.match(layer)) else 0 for layer in below]
    return min(indices, default=0)
