"""A frozen base model: loading, its blocks, and a pass that can stop at the trunk and go on from there.

Letters: B batch, S positions, D width.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from dynamorouter.errors import ConfigError, MissingExtraError
from dynamorouter.model.bank import Dropout, Gate, GateSlot, LoraBank
from dynamorouter.model.encode import Batch, TextEncoder

ATTENTION_NAMES = {"query", "value", "q_proj", "v_proj", "q_lin", "v_lin", "query_proj", "value_proj", "c_attn"}
"""Names that the supported architectures give to their query and value projections."""


@dataclass(frozen=True, slots=True)
class BaseSpec:
    """Where a base is found.

    Attributes:
        name: the name that experts refer to.
        path: a local folder, a hub id, or ``package:PACKAGE/FOLDER`` for one that a Python package carries.
        fallback: hub id to use when the package of ``path`` is not installed.
        revision: branch, tag or commit on the hub.
    """

    name: str
    path: str
    fallback: str | None = None
    revision: str | None = None

    def locate(self) -> str:
        """Return a folder or a hub id that ``transformers`` can load."""
        if not self.path.startswith("package:"):
            return self.path
        package, _, inner = self.path.removeprefix("package:").partition("/")
        folder = package_folder(package)
        if folder is not None and (folder / inner / "config.json").is_file():
            return str(folder / inner)
        if self.fallback is not None:
            return self.fallback
        raise MissingExtraError(
            f"base {self.name!r} comes from the package {package!r}, which is not installed; "
            "install it with: pip install 'dynamorouter[offline]'"
        )


def package_folder(package: str) -> Path | None:
    """Return the folder of an installed package without importing it."""
    from importlib.util import find_spec

    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        return None
    return Path(next(iter(found.submodule_search_locations)))


class Base:
    """A frozen model with its tokenizer, and the banks of the experts that sit on it.

    Args:
        spec: name and place.
        model: a ``transformers`` model that returns hidden states; it is frozen and put in evaluation mode.
        tokenizer: its tokenizer.
        dtype: the precision to compute in; the digest is that of the weights as they were given.

    Raises:
        ConfigError: the model has no list of blocks.
    """

    def __init__(self, spec: BaseSpec, model: nn.Module, tokenizer: Any, *, dtype: torch.dtype | None = None) -> None:
        self.spec = spec
        self.digest = weights_digest(model)
        model = model if dtype is None else model.to(dtype)
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.slot = GateSlot()
        self.banks: dict[str, LoraBank] = {}
        config: Any = model.config
        self.config = config
        self.blocks_name, self.blocks = find_blocks(model)
        positions = getattr(config, "max_position_embeddings", None) or 10**6
        if config.model_type in {"roberta", "xlm-roberta", "camembert"}:
            positions -= config.pad_token_id + 1  # its positions are counted from there
        segments = getattr(self.config, "type_vocab_size", 0) > 1
        self.encoder = TextEncoder(tokenizer, segments=segments, limit=positions)

    @staticmethod
    def load(spec: BaseSpec, *, device: torch.device, dtype: torch.dtype = torch.float32) -> Base:
        """Load a base from a folder, a package or the hub.

        Raises:
            ConfigError: there is no model at that place, or it has no safetensors.
        """
        place = spec.locate()
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            options = {} if Path(place).is_dir() else {"revision": spec.revision}
            config = AutoConfig.from_pretrained(place, **options)
            tokenizer = AutoTokenizer.from_pretrained(place, **options)
            with torch.random.fork_rng():
                torch.manual_seed(0)  # layers that the checkpoint lacks, such as a pooler, are the same every time
                model = AutoModel.from_pretrained(
                    place, config=config, dtype=torch.float32, use_safetensors=True, **options
                )
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(
                f"base {spec.name!r} cannot be loaded from {place!r}: {error}; "
                "give a folder with config.json, model.safetensors and a tokenizer, or the id of a hub model"
            ) from error
        return Base(spec, model.to(device), tokenizer, dtype=dtype)

    @property
    def device(self) -> torch.device:
        """The device of the base's parameters."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the base's parameters."""
        return next(self.model.parameters()).dtype

    @property
    def width(self) -> int:
        """Width D of the hidden states."""
        return int(self.config.hidden_size)

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    def parameters(self) -> int:
        """Count the frozen parameters, banks left out."""
        adapters = {id(p) for bank in self.banks.values() for p in (bank.a, bank.b)}
        return sum(p.numel() for p in self.model.parameters() if id(p) not in adapters)

    def targets(self, wanted: str | Sequence[str], *, trunk_depth: int) -> list[str]:
        """List the linear layers above the trunk that ``wanted`` names.

        Args:
            wanted: ``"all-linear"``, ``"attention"`` (query and value), a regular expression for whole names, or a
                list of name endings, as PEFT takes them.
            trunk_depth: blocks below this one are left alone.

        Raises:
            ConfigError: nothing matches, or the trunk is deeper than the base.
        """
        if not 0 <= trunk_depth < self.depth:
            raise ConfigError(
                f"trunk_depth is {trunk_depth}, but base {self.spec.name!r} has {self.depth} blocks; "
                f"allowed are 0 to {self.depth - 1}"
            )
        linear = [
            f"{self.blocks_name}.{index}.{name}"
            for index in range(trunk_depth, self.depth)
            for name, module in self.blocks[index].named_modules()
            if isinstance(module, nn.Linear | Conv1D | LoraBank) and not name.endswith(".base")
        ]
        found = [name for name in linear if _matches(name, wanted)]
        if not found:
            endings = sorted({name.rsplit(".", 1)[-1] for name in linear})
            raise ConfigError(
                f"targets={wanted!r} match no linear layer of base {self.spec.name!r} from block {trunk_depth} up; "
                f"there are {', '.join(endings)}, or say 'all-linear' or 'attention'"
            )
        return found

    def shape(self, layer: str) -> tuple[int, int]:
        """Return (O, D) of a linear layer, whether or not a bank lies over it.

        Raises:
            AttributeError: the base has no module of that name.
        """
        module = self.model.get_submodule(layer)
        module = module.base if isinstance(module, LoraBank) else module
        weight: Any = module.weight
        return (weight.shape[1], weight.shape[0]) if isinstance(module, Conv1D) else tuple(weight.shape)

    def install(self, layers: Mapping[str, int], *, experts: int) -> dict[str, LoraBank]:
        """Put fresh banks over the named layers, replacing those that are there.

        Args:
            layers: name of a linear layer to the largest rank on it.
            experts: number of experts E.
        """
        self.uninstall()
        for name, rank in layers.items():
            parent, leaf = self._parent(name)
            bank = LoraBank(getattr(parent, leaf), self.slot, experts=experts, rank=rank, name=name)
            setattr(parent, leaf, bank)
            self.banks[name] = bank
        return self.banks

    def uninstall(self) -> None:
        """Give the frozen layers their places back."""
        for name, bank in self.banks.items():
            parent, leaf = self._parent(name)
            setattr(parent, leaf, bank.base)
        self.banks = {}

    def trunk(self, batch: Batch, depth: int, *, keep: Collection[int] = ()) -> dict[int, Tensor]:
        """Run the first ``depth`` blocks without experts.

        Returns:
            Hidden states ``{layer: (B, S, D)}`` for ``depth`` and every layer in ``keep`` up to it; layer 0 is the
            embeddings' output.
        """
        states: dict[int, Tensor] = {}
        recorded = self._record(0, {*keep, depth}, states)
        with self._blocks(0, max(depth, 1)), recorded, self.slot.hold(None), suppress(_DeepEnough):
            self._forward(batch)
        return states

    def finish(self, hidden: Tensor, mask: Tensor, gate: Gate | None, *, depth: int, dropout: Dropout = 0.0) -> Tensor:
        """Go on from the hidden states ``(B, S, D)`` of layer ``depth`` through the gated experts to the end."""
        types = torch.zeros_like(mask) if self.encoder.segments else None
        batch = Batch(ids=torch.zeros_like(mask), types=types, mask=mask)
        with self._blocks(depth, self.depth), self._feed(hidden), self.slot.hold(gate, dropout=dropout):
            return self._forward(batch)

    def full(self, batch: Batch, gate: Gate | None, *, dropout: Dropout = 0.0) -> Tensor:
        """Run the whole base on a batch through the gated experts: ``(B, S, D)``."""
        with self.slot.hold(gate, dropout=dropout):
            return self._forward(batch)

    def _forward(self, batch: Batch) -> Tensor:
        extra = {} if batch.types is None else {"token_type_ids": batch.types}
        output = self.model(input_ids=batch.ids, attention_mask=batch.mask, **extra)
        return output.last_hidden_state  # type: ignore[no-any-return]

    def _parent(self, name: str) -> tuple[nn.Module, str]:
        path, _, leaf = name.rpartition(".")
        return self.model.get_submodule(path), leaf

    @contextmanager
    def _blocks(self, first: int, last: int) -> Iterator[None]:
        """Let the model see only blocks ``first`` to ``last - 1`` for a while."""
        if (first, last) == (0, self.depth):
            yield
            return
        parent, leaf = self._parent(self.blocks_name)
        setattr(parent, leaf, nn.ModuleList(list(self.blocks)[first:last]))
        try:
            yield
        finally:
            setattr(parent, leaf, self.blocks)

    @contextmanager
    def _record(self, first: int, layers: Collection[int], states: dict[int, Tensor]) -> Iterator[None]:
        """Note the inputs of blocks and the output of the deepest one; stop the pass once all is there."""
        deepest = max(layers)

        def before(layer: int) -> Any:
            def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                states[layer] = args[0] if args else kwargs["hidden_states"]
                if layer == deepest:
                    raise _DeepEnough

            return note

        def after(_: nn.Module, __: Any, output: Any) -> None:
            states[deepest] = output[0] if isinstance(output, tuple) else output
            raise _DeepEnough

        hooks = [
            self.blocks[layer].register_forward_pre_hook(before(layer), with_kwargs=True)
            for layer in layers
            if layer < deepest or deepest == first
        ]
        if deepest > first:
            hooks.append(self.blocks[deepest - 1].register_forward_hook(after))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def _feed(self, hidden: Tensor) -> Iterator[None]:
        """Give the first block that runs these hidden states instead of the embeddings."""
        parent, leaf = self._parent(self.blocks_name)
        block = getattr(parent, leaf)[0]

        def replace(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

        hook = block.register_forward_pre_hook(replace, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()


class _DeepEnough(Exception):  # noqa: N818 - a signal, not an error
    """Ends a pass at the trunk."""


def weights_digest(model: nn.Module) -> str:
    """Return 16 hexadecimal digits that name a model's weights: names, sizes, and a sample of every tensor.

    A pooler is left out: a checkpoint may lack it, and no expert depends on it.
    """
    sha = hashlib.sha256()
    for name, tensor in sorted(model.named_parameters()):
        if "pooler" in name:
            continue
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // 64)][:64].to("cpu", torch.float32)
        sha.update(f"{name}({flat.numel()})".encode())
        sha.update(sample.contiguous().numpy().tobytes())
    return sha.hexdigest()[:16]


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the name and the list of the model's transformer blocks: its longest ``ModuleList``.

    Raises:
        ConfigError: there is none.
    """
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise ConfigError(f"{type(model).__name__} has no list of blocks, so there is no place for a trunk or experts")
    return max(lists, key=lambda item: sum(p.numel() for p in item[1].parameters()))


def _matches(name: str, wanted: str | Sequence[str]) -> bool:
    if wanted == "all-linear":
        return True
    if wanted == "attention":
        return name.rsplit(".", 1)[-1] in ATTENTION_NAMES
    if isinstance(wanted, str):
        return re.fullmatch(wanted, name) is not None
    return any(name == ending or name.endswith("." + ending) for ending in wanted)
