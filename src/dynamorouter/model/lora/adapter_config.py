"""What an ``adapter_config.json`` may say, as PEFT understands it; what plain low-rank factors cannot hold is refused.

Every key that the newest known PEFT writes stands in one of three tables: those that are read here, those that change
no arithmetic (``HARMLESS``), and those that do (``INEXACT``). A key of a later PEFT is passed while it is unset.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dynamorouter.errors import AdapterError, DataError
from dynamorouter.utils.files import read_json

CONFIG = "adapter_config.json"
HARMLESS = {
    *("auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version", "fan_in_fan_out"),
    *("megatron_config", "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    *("qalora_group_size", "runtime_config", "ensure_weight_tying", "velora_config"),
    *("id2label", "label2id"),  # the names of a head's outputs, where somebody wrote them down
}
"""Keys that say where an adapter comes from, or how its training began or was sharded."""
INEXACT = {
    "use_dora": "DoRA rescales columns of the base",
    "lora_bias": "the factors have biases",
    "layer_replication": "the base's blocks were repeated",
    "trainable_token_indices": "embeddings were trained",
    "target_parameters": "parameters that are no linear layer were changed",
    "alora_invocation_tokens": "it is active for part of the text only",
    "use_qalora": "inputs are pooled before the factors",
    "use_bdlora": "the factors are block-diagonal",
    "kasa_config": "KaSA truncates the base's weights",
    "monteclora_config": "the factors are drawn anew at each pass",
    "arrow_config": "it routes among other adapters by itself",
}
"""Keys that change what an adapter computes, and how; refused when set."""
PLAIN_STARTS = {None, True, False, "gaussian", "eva", "orthogonal"}
"""Values of ``init_lora_weights`` that leave the base's weights alone."""
TASK_NAMES = Literal["SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class PeftConfig(BaseModel):
    """The keys of ``adapter_config.json`` that say what its tensors mean, with PEFT's defaults."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    peft_type: Literal["LORA"]
    task_type: TASK_NAMES | None = None
    base_model_name_or_path: str | None = None
    r: Annotated[int, Field(ge=1)] = 8
    lora_alpha: Annotated[Finite, Field(gt=0)] = 8
    lora_dropout: Annotated[Finite, Field(ge=0, lt=1)] = 0.0
    bias: Literal["none"] | None = "none"
    use_rslora: bool | None = False
    target_modules: str | list[str]
    exclude_modules: str | list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    alpha_pattern: dict[str, Finite] = Field(default_factory=dict)
    modules_to_save: list[str] | None = None
    init_lora_weights: bool | str | None = True


def read_config(folder: Path) -> tuple[PeftConfig, dict[str, Any]]:
    """Read the config of an adapter folder; also as it stands there.

    Raises:
        AdapterError: it is missing or damaged, holds values that PEFT does not take, or says something that plain
            low-rank factors cannot represent; all that is wrong is named.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise AdapterError(f"{folder} has no {CONFIG}; give a folder that PEFT's save_pretrained wrote")
    try:
        values = read_json(path)
    except DataError as error:
        raise AdapterError(f"{error}; or save the adapter again with PEFT") from error
    if not isinstance(values, dict):
        raise AdapterError(
            f"{path} holds a JSON {type(values).__name__}, where PEFT writes an object; save the adapter again"
        )
    refused = _inexact(values)
    if refused:
        raise AdapterError(
            f"the adapter in {folder} cannot be represented exactly: {'; '.join(refused)}; "
            "train it as plain LoRA with bias='none', or convert it with PEFT first"
        )
    try:
        return PeftConfig.model_validate(values), values
    except ValidationError as error:
        raise AdapterError(f"{path}: {'; '.join(_mistakes(error))}; correct it, or save the adapter again") from None


def _inexact(values: Mapping[str, Any]) -> list[str]:
    """Name everything in the config that a plain low-rank change cannot represent."""
    refused = []
    if values.get("peft_type") != "LORA":
        refused.append(f"peft_type={values.get('peft_type')!r} (only LORA is a low-rank change)")
    if values.get("bias") in ("all", "lora_only"):
        refused.append(f"bias={values['bias']!r} (biases of the base were trained)")
    initial = values.get("init_lora_weights", True)
    if isinstance(initial, str) and initial not in PLAIN_STARTS:
        refused.append(f"init_lora_weights={initial!r} (the base's weights were changed with it)")
    refused += [f"{key}={_short(values[key])} ({why})" for key, why in INEXACT.items() if values.get(key)]
    known_keys = {*PeftConfig.model_fields, *HARMLESS, *INEXACT}
    later = [key for key, value in values.items() if key not in known_keys and value not in (None, False, "", [], {})]
    refused += [f"{key}={_short(values[key])} (a setting of another PEFT whose effect is not known)" for key in later]
    return refused


def _mistakes(error: ValidationError) -> list[str]:
    """Return one clause for each key whose value PEFT does not take."""
    reasons: dict[str, list[str]] = {}
    for item in error.errors():
        key = str(item["loc"][0])
        got = "missing" if item["type"] == "missing" else f"got {_short(item['input'])}"
        reasons.setdefault(f"{key}: {got}", []).append(item["msg"].replace("Input should be", "should be"))
    return [f"{start}, {' or '.join(dict.fromkeys(messages))}" for start, messages in reasons.items()]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
