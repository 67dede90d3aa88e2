"""Kinds of bases: which class of ``transformers`` loads one, where its stacks are, and how it reads off words.

Letters: B batch, S positions, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.models.auto import modeling_auto

from dynamorouter.errors import ConfigError

Kind = Literal["encoder", "decoder", "seq2seq"]
LOADERS: dict[Kind, Any] = {
    "encoder": AutoModel,
    "decoder": AutoModelForCausalLM,
    "seq2seq": AutoModelForSeq2SeqLM,
}
"""The class that loads each kind; PEFT folders of its experts are loaded over the same one."""
TASK_TYPES: dict[Kind, str] = {
    "encoder": "FEATURE_EXTRACTION",
    "decoder": "CAUSAL_LM",
    "seq2seq": "SEQ_2_SEQ_LM",
}
"""What PEFT calls each kind."""
_CAUSAL = set(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
_SEQ2SEQ = set(modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values())
_MASKED = set(modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES)


def kind_of_config(config: Any) -> Kind:
    """Tell how a checkpoint is to be loaded.

    It goes by the config: an encoder-decoder says so; a decoder names a class with a language-model head among
    its architectures, or, naming none, is of a type that has only such; everything else is read as an encoder, a bare
    body without a head included.
    """
    if getattr(config, "is_encoder_decoder", False):
        return "seq2seq"
    architectures = getattr(config, "architectures", None) or []
    if is_bidirectional(config):
        return "encoder"
    is_causal_type = config.model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return (
        "decoder"
        if any(name in _CAUSAL for name in architectures) or (is_causal_type and not architectures)
        else "encoder"
    )


def is_bidirectional(config: Any) -> bool:
    """Tell whether a model's tokens see those that follow them, as BERT's do."""
    return config.model_type in _MASKED and not getattr(config, "is_decoder", False)


def kind_of_model(model: nn.Module) -> Kind:
    """Tell the kind of a model that is already loaded, by its class."""
    name, config = type(model).__name__, getattr(model, "config", None)
    if name in _SEQ2SEQ:
        return "seq2seq"
    if name in _CAUSAL and not getattr(config, "is_encoder_decoder", False):
        return "decoder"
    return "encoder"


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a loaded model.

    Attributes:
        kind: its kind.
        body: what experts' layers are named in: the model without its head, or all of an encoder-decoder.
        prefix: what PEFT puts before those names: the body's own name in the model with a head, and a dot.
        stack: the module that turns token ids into hidden states: the body, or the encoder of an encoder-decoder.
        decoder: the decoder of an encoder-decoder.
        language: the whole model with its language-model head, where it has one.
    """

    kind: Kind
    body: nn.Module
    prefix: str
    stack: nn.Module
    decoder: nn.Module | None
    language: Any

    @staticmethod
    def of(model: Any) -> Parts:
        """Find the parts of a model.

        Raises:
            ConfigError: a decoder's body or head has no place of its own.
        """
        kind = kind_of_model(model)
        if kind == "encoder":
            return Parts(kind, model, "", model, None, None)
        if model.get_output_embeddings() is None:
            raise ConfigError(f"{type(model).__name__} has no language-model head; load the base with kind=encoder")
        if kind == "seq2seq":
            return Parts(kind, model, "", model.get_encoder(), model.get_decoder(), model)
        body = model.base_model
        if body is model:
            raise ConfigError(
                f"{type(model).__name__} does not keep its body apart from its head; load the base with kind=encoder"
            )
        return Parts(kind, body, f"{model.base_model_prefix}.", body, None, model)

    def untied_head(self) -> Tensor | None:
        """Return the weight of a decoder's language head, where it is no parameter of the body."""
        if self.kind != "decoder":
            return None
        weight: Tensor = self.language.get_output_embeddings().weight
        return None if any(weight is p for p in self.body.parameters()) else weight


class LanguageHead:
    """Turns hidden states into the logits of a model's vocabulary, as the model itself does.

    Args:
        model: a model with a language-model head.
    """

    def __init__(self, model: Any) -> None:
        config = model.config
        self.project: nn.Module = model.get_output_embeddings()
        scaled = getattr(config, "scale_decoder_outputs", False)  # T5 with tied embeddings
        self.before = float(config.d_model) ** -0.5 if scaled else 1.0
        self.bias: Tensor | None = getattr(model, "final_logits_bias", None)  # BART and its kin
        self.after = float(getattr(config, "logit_scale", None) or 1.0) / float(
            getattr(config, "logits_scaling", None) or 1.0
        )
        self.cap: float | None = getattr(config, "final_logit_softcapping", None)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Map ``(..., D)`` to float32 logits ``(..., V)``."""
        if self.before != 1.0:
            hidden = hidden * self.before
        logits: Tensor = self.project(hidden)
        if self.bias is not None:
            logits = logits + self.bias[0]
        if self.after != 1.0:
            logits = logits * self.after
        if self.cap is not None:
            logits = torch.tanh(logits / self.cap) * self.cap
        return logits.float()


@torch.no_grad()
def check_logits(parts: Parts, head: LanguageHead, name: str) -> None:
    """Compare the head's logits with the model's own on a few tokens.

    Raises:
        ConfigError: they differ, so that the model does more to its logits than is known here.
    """
    model = parts.language
    ids = torch.arange(min(4, model.config.vocab_size), device=model.device)[None]
    inputs = {"input_ids": ids}
    hidden: Tensor = parts.stack(**inputs).last_hidden_state
    if parts.decoder is not None:
        inputs["decoder_input_ids"] = ids
        hidden = parts.decoder(input_ids=ids, encoder_hidden_states=hidden).last_hidden_state
    expected = model(**inputs).logits.float()
    logits = head(hidden)
    if logits.shape != expected.shape or not torch.allclose(logits, expected, atol=1e-3, rtol=1e-3):
        raise ConfigError(
            f"{type(model).__name__} of base {name!r} computes its logits in a way that is not known here, so that "
            "text would be wrong; load the base with kind=encoder, or use another base"
        )


def embedding_rows(model: Any) -> int:
    """Return how many tokens a model has embeddings for, which may be fewer than its tokenizer knows."""
    return int(model.get_input_embeddings().weight.shape[0])


def special_ids(model: Any, tokenizer: Any, *, name: str) -> tuple[frozenset[int], int | None, int | None]:
    """Return the ids that end a text, the id a decoder starts from, and the id that it is forced to generate first.

    An id that the model has no embedding for ends no text, since the model cannot write it.

    Args:
        model: the base's model.
        tokenizer: its tokenizer.
        name: of the base, for messages.

    Raises:
        ConfigError: a decoder starts from an id that the model has no embedding for.
    """
    rows = embedding_rows(model)
    id_of: dict[str, Any] = {}
    for key in ("eos_token_id", "decoder_start_token_id", "forced_bos_token_id", "bos_token_id"):
        for source in (getattr(model, "generation_config", None), model.config):
            if id_of.get(key) is None:
                id_of[key] = getattr(source, key, None)
    eos = id_of["eos_token_id"]
    if eos is None:
        eos = getattr(tokenizer, "eos_token_id", None)
    eos_ids = [] if eos is None else eos if isinstance(eos, list | tuple) else [eos]
    start = id_of["bos_token_id"] if id_of["decoder_start_token_id"] is None else id_of["decoder_start_token_id"]
    forced = id_of["forced_bos_token_id"]
    for key, token in {"decoder_start_token_id": start, "forced_bos_token_id": forced}.items():
        if getattr(model.config, "is_encoder_decoder", False) and token is not None and token >= rows:
            raise ConfigError(
                f"base {name!r} has {key} {token}, but {rows} embeddings; correct its config.json, or resize the model"
            )
    return frozenset(int(token) for token in eos_ids if token < rows), start, forced
