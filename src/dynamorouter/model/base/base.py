"""A frozen base model: loading, its blocks, and a pass that can stop at the trunk and go on from there.

Letters: B batch, S positions, D width.
"""

from __future__ import annotations

import inspect
import struct
from collections.abc import Callable, Collection
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, Cache, DynamicCache
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from dynamorouter.errors import ConfigError, MissingExtraError
from dynamorouter.model.base.blocks import Blocks, StopForward, name_inside
from dynamorouter.model.base.config import BaseSpec, is_gguf
from dynamorouter.model.base.context import PassContext
from dynamorouter.model.base.digest import weights_digest
from dynamorouter.model.base.gate import Dropout, Gate
from dynamorouter.model.base.kinds import (
    LOADERS,
    Kind,
    LanguageHead,
    Parts,
    check_logits,
    embedding_rows,
    kind_of_config,
    special_ids,
)
from dynamorouter.model.base.probes import check_cut, check_packing
from dynamorouter.model.text.tokenize import Batch, TextEncoder
from dynamorouter.utils.quiet import without_log


class Base:
    """A frozen model with its tokenizer, over whose linear layers experts can be mounted (see ``model.lora.mount``).

    Args:
        spec: name and place.
        model: a ``transformers`` model: one that returns hidden states, or a causal or sequence-to-sequence language
            model, whose class then tells the kind; it is frozen and put in evaluation mode.
        tokenizer: its tokenizer.
        dtype: the precision to compute in; the digest is that of the weights as they were given.

    Attributes:
        kind: ``encoder``, ``decoder`` or ``seq2seq``.
        model: what experts' layers are named in: a decoder without its head, and all of an encoder-decoder.
        prefix: what PEFT puts before those names.
        weights: the frozen parameters by name, and
        linear: the frozen linear layers by name, whatever is mounted over them.
        context: what belongs to the pass that is running, and what is mounted.
        blocks: the blocks that a trunk is cut from; those of the encoder, where there are two stacks.
        language_head: turns hidden states into words, where the model can.
        eos_ids: tokens that end a text.
        start_id, forced_id: what the decoder of an encoder-decoder begins with, and what it is forced to generate
            first, if anything.
        missing: names of weights that the checkpoint lacks, and that were drawn anew.
        positions, takes_positions: how many positions the model can tell apart, and whether it can be told them.

    Raises:
        ConfigError: the model has no list of blocks.
    """

    def __init__(self, spec: BaseSpec, model: nn.Module, tokenizer: Any, *, dtype: torch.dtype | None = None) -> None:
        self.spec = spec
        self.parts = Parts.of(model)
        self.kind: Kind = self.parts.kind
        self.prefix = self.parts.prefix
        self.model = self.parts.body
        self.digest = weights_digest(self.model, head=self.parts.untied_head())
        (model if dtype is None else model.to(dtype)).eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.context = PassContext()
        self.linear: dict[str, nn.Linear | Conv1D] = {
            name: module for name, module in self.model.named_modules() if isinstance(module, nn.Linear | Conv1D)
        }
        self.weights = dict(self.model.named_parameters())
        self.missing: frozenset[str] = frozenset()
        self._parameters = sum(p.numel() for p in (self.parts.language or self.model).parameters())
        config: Any = model.config
        self.config = config
        self._stack = self.parts.stack
        self._cut = Blocks(self._stack)
        self.blocks = self._cut.list
        self.blocks_name = f"{name_inside(self.model, self._stack)}.{self._cut.name}".lstrip(".")
        self.language_head = None if self.parts.language is None else LanguageHead(self.parts.language)
        self.eos_ids, self.start_id, self.forced_id = special_ids(model, tokenizer, name=spec.name)
        self.takes_positions = "position_ids" in inspect.signature(self._stack.forward).parameters
        self._probed: set[int | str] = set()
        positions = getattr(config, "max_position_embeddings", None) or 10**6
        if config.model_type in {"roberta", "xlm-roberta", "camembert"}:
            positions -= config.pad_token_id + 1  # its positions are counted from there
        self.positions = int(positions)
        segments = self.kind == "encoder" and getattr(self.config, "type_vocab_size", 0) > 1
        self.encoder = TextEncoder(
            tokenizer,
            segments=segments,
            limit=self.positions,
            vocabulary=embedding_rows(model),
            escape_special=spec.special_in_text == "escape",
        )

    @staticmethod
    def load(spec: BaseSpec, *, device: torch.device, dtype: torch.dtype = torch.float32) -> Base:
        """Load a base from a folder, a package or the hub.

        Raises:
            ConfigError: there is no model at that place, it has no safetensors, or it lacks what its kind needs.
        """
        location = spec.locate()
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            source, options = _asked_for(spec)
            config = AutoConfig.from_pretrained(source, **options)
            kind = kind_of_config(config) if spec.kind == "auto" else spec.kind
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            with torch.random.fork_rng(), without_log("transformers.modeling_utils", "LOAD REPORT"):
                torch.manual_seed(0)  # layers that the checkpoint lacks, such as a pooler, are the same every time
                model, info = LOADERS[kind].from_pretrained(
                    source,
                    config=config,
                    dtype=torch.float32,
                    use_safetensors=True,
                    output_loading_info=True,
                    **options,
                )
        except (OSError, ValueError, KeyError, struct.error) as error:
            online = "" if Path(location).exists() else " (which is asked only where HF_HUB_OFFLINE is not 1)"
            raise ConfigError(
                f"base {spec.name!r} cannot be loaded from {location!r}: {error}; give a folder with config.json, "
                f"model.safetensors and a tokenizer, a GGUF file, or the id of a hub model{online}"
            ) from error
        missing = sorted(key for key in info["missing_keys"] if kind != "encoder" or not key.startswith("pooler."))
        if missing:
            other = "" if kind == "encoder" else "say kind=encoder to use it without a language-model head, or "
            raise ConfigError(
                f"base {spec.name!r} is to be loaded as a {kind}, but {location!r} lacks {', '.join(missing[:3])}; "
                f"{other}give the whole checkpoint"
            )
        base = Base(spec, model.to(device), tokenizer, dtype=dtype)
        base.missing = frozenset(info["missing_keys"])
        if base.language_head is not None:
            check_logits(base.parts, base.language_head, spec.name)
        return base

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

    @property
    def decoder_name(self) -> str | None:
        """Name of the decoder stack beside an encoder, as experts' layers begin there."""
        return None if self.parts.decoder is None else name_inside(self.model, self.parts.decoder)

    def parameters(self) -> int:
        """Count the frozen parameters; those of experts do not belong to them."""
        return self._parameters

    def shape(self, layer: str) -> tuple[int, int]:
        """Return (O, D) of a linear layer.

        Raises:
            KeyError: the base has no linear layer of that name.
        """
        frozen = self.linear[layer]
        weight = frozen.weight
        return (weight.shape[1], weight.shape[0]) if isinstance(frozen, Conv1D) else (weight.shape[0], weight.shape[1])

    def cover(self, layer: str, module: nn.Module) -> None:
        """Put a module in the place of a linear layer; the layer itself, to uncover it."""
        path, _, leaf = layer.rpartition(".")
        setattr(self.model.get_submodule(path), leaf, module)

    def forward_to(
        self, batch: Batch, depth: int, *, keep: Collection[int] = (), cache: Cache | None = None
    ) -> dict[int, Tensor]:
        """Run the first ``depth`` blocks without experts.

        Args:
            batch: what to read.
            depth: how many blocks are run.
            keep: layers whose hidden states are wanted.
            cache: takes the keys and values of a decoder's blocks up to there, for ``forward_from`` to complete.

        Returns:
            Hidden states ``{layer: (B, S, D)}`` for ``depth`` and every layer in ``keep`` up to it; layer 0 is the
            embeddings' output.
        """
        self._admit(batch.positions)
        states: dict[int, Tensor] = {}
        recorded = self._cut.capture({*keep, depth}, states)
        with self.context.hold(None), self._cut.slice(0, max(depth, 1)), recorded, suppress(StopForward):
            self._forward(batch, cache)
        return states

    def forward_from(
        self,
        hidden: Tensor,
        mask: Tensor,
        gate: Gate | None,
        *,
        depth: int,
        dropout: Dropout = 0.0,
        positions: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Go on from the hidden states ``(B, S, D)`` of layer ``depth`` through the gated experts to the end.

        Args:
            hidden: what ``forward_to`` returned for ``depth``.
            mask: ``(B, S)``.
            gate: the experts of each row.
            depth: where the trunk ended.
            dropout: on the experts' input.
            positions: of a packed batch, as in ``Batch``.
            cache: what ``forward_to`` was given; it then holds all blocks.

        Raises:
            ConfigError: the architecture cannot be cut there.
        """
        if depth and depth not in self._probed:
            self._probe(depth, check_cut, depth)
        self._admit(positions)
        types = torch.zeros_like(mask) if self.encoder.segments else None
        batch = Batch(ids=torch.zeros_like(mask), types=types, mask=mask, positions=positions)
        with self.context.hold(gate, dropout=dropout):
            return self._upper(batch, hidden, depth, cache)

    def forward(self, batch: Batch, gate: Gate | None, *, dropout: Dropout = 0.0, cache: Cache | None = None) -> Tensor:
        """Run the whole base, or the encoder of two stacks, on a batch through the gated experts: ``(B, S, D)``."""
        self._admit(batch.positions)
        with self.context.hold(gate, dropout=dropout):
            return self._forward(batch, cache)

    def encode(self, batch: Batch, gate: Gate | None, *, dropout: Dropout = 0.0) -> Tensor:
        """Return the encoder's hidden states ``(B, S, D)`` of an encoder-decoder, through the gated experts."""
        self._decoder()
        return self.forward(batch, gate, dropout=dropout)

    def decode_hidden(
        self, states: Tensor, mask: Tensor, labels: Tensor, gate: Gate | None, *, dropout: Dropout = 0.0
    ) -> Tensor:
        """Return the decoder's hidden states ``(B, T, D)``, whose position t predicts label t.

        Args:
            states: what ``encode`` returned, ``(B, S, D)``.
            mask: of the encoder's batch, ``(B, S)``.
            labels: the target text ``(B, T)``, padded on the right with -100 or the padding token.
            gate: the experts of each row.
            dropout: on the experts' input.
        """
        decoder = self._decoder()
        begin = torch.full_like(labels[:, :1], self.start_id if self.start_id is not None else self.encoder.pad_id)
        shifted = torch.cat([begin, labels[:, :-1]], dim=1)
        shifted = shifted.masked_fill(shifted < 0, self.encoder.pad_id)
        with self.context.hold(gate, dropout=dropout):
            inputs = {"encoder_hidden_states": states, "encoder_attention_mask": mask}
            output = decoder(input_ids=shifted, use_cache=False, **inputs)
        return output.last_hidden_state  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """Map the last hidden states ``(..., D)`` of a decoder to float32 logits of the vocabulary, ``(..., V)``.

        Raises:
            ConfigError: the base is an encoder.
        """
        if self.language_head is None:
            raise ConfigError(
                f"base {self.spec.name!r} is of kind 'encoder' and has no language-model head; use a decoder, or an "
                "encoder-decoder, for text (a checkpoint with a language-model head, kind=decoder or kind=seq2seq)"
            )
        return self.language_head(hidden)

    def _decoder(self) -> nn.Module:
        if self.parts.decoder is None:
            raise ConfigError(
                f"base {self.spec.name!r} is of kind {self.kind!r} and has no decoder stack beside an encoder; "
                "use a base of kind seq2seq, such as T5, BART or Pegasus"
            )
        return self.parts.decoder

    def _forward(self, batch: Batch, cache: Cache | None = None) -> Tensor:
        extra: dict[str, Any] = {} if batch.types is None else {"token_type_ids": batch.types}
        if self.kind == "decoder":
            extra |= {"use_cache": False} if cache is None else {"use_cache": True, "past_key_values": cache}
        mask: Tensor | None = batch.mask
        if batch.positions is not None:
            extra["position_ids"], mask = batch.positions, None  # examples are told apart by their positions
        output = self._stack(input_ids=batch.ids, attention_mask=mask, **extra)
        return output.last_hidden_state  # type: ignore[no-any-return]

    def _upper(self, batch: Batch, hidden: Tensor, depth: int, cache: Cache | None) -> Tensor:
        """Run the blocks from ``depth`` up; their keys and values join those of the trunk."""
        upper = None if cache is None else DynamicCache()
        with self._cut.slice(depth, self.depth), self._cut.inject(depth, hidden):
            output = self._forward(batch, upper)
        if cache is not None and upper is not None:
            cache.layers[depth:] = upper.layers[depth:]
        return output

    def _admit(self, positions: Tensor | None) -> None:
        """Refuse rows of several examples on a base that mixes them up; found out once, outside of any other pass."""
        if positions is not None and "packing" not in self._probed:
            self._probe("packing", check_packing, self.takes_positions)

    def _probe(self, capability: int | str, check: Callable[[Base, Any], None], value: object) -> None:
        """Check once whether the architecture can do something; the check itself does it, too."""
        with self.context.lock:
            self._probed.add(capability)
            try:
                check(self, value)
            except ConfigError:
                self._probed.remove(capability)
                raise


def _asked_for(spec: BaseSpec) -> tuple[str, dict[str, Any]]:
    """Return what ``transformers`` is asked to load a base from, and the options that go with it.

    Raises:
        MissingExtraError: it is a GGUF file, and the package that reads them is not installed.
    """
    location = spec.locate()
    path = Path(location)
    if not is_gguf(location):
        return location, {} if path.is_dir() else {"revision": spec.revision}
    if find_spec("gguf") is None:
        raise MissingExtraError(f"{location} is a GGUF file; install what reads it: pip install 'dynamorouter[gguf]'")
    return str(path.parent), {"gguf_file": path.name}  # its weights are dequantised
