"""What all branches of the tree of settings share: the base class, other names of settings, numbers within limits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    create_model,
    model_serializer,
    model_validator,
)


def _no_truth_value(value: Any) -> Any:
    """Refuse ``true`` and ``false``, which Python and pydantic take for 1 and 0."""
    if isinstance(value, bool):
        raise ValueError(f"got {value}; should be a number")
    return value


Whole = Annotated[int, BeforeValidator(_no_truth_value)]
Number = Annotated[float, BeforeValidator(_no_truth_value)]
Count = Annotated[Whole, Field(ge=1)]
Size = Annotated[Whole, Field(ge=0)]
Share = Annotated[Number, Field(ge=0.0, le=1.0)]
Rate = Annotated[Number, Field(gt=0.0)]
Weight = Annotated[Number, Field(ge=0.0)]
Rows = Count | None
Name = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True)
class Alias:
    """Another name that a setting may be given by, as metadata of its field: that of PEFT or of the Trainer.

    Settings are written and shown by their own name alone.
    """

    name: str


Epochs = Annotated[Count, Alias("num_train_epochs")]
BatchRows = Annotated[Count, Alias("per_device_train_batch_size"), Alias("batch_size")]
TRAIN_SAMPLES = Alias("max_train_samples")
WARMUP = Alias("warmup_ratio")
PATIENCE = Alias("early_stopping_patience")


@dataclass(frozen=True)
class Later:
    """Marks a setting that came after digests were kept: while it has its default, digests stay what they were."""


FOR_DIGEST = "digest"
"""Context of ``model_dump`` that leaves out what is ``Later`` and has its default."""


class Options(BaseModel):
    """A frozen branch of the tree; unknown keys, NaN and infinity are refused, and aliases are understood."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @classmethod
    def aliases(cls) -> dict[str, str]:
        """Return the setting's own name by each other name that it may be given by."""
        fields = cls.model_fields.items()
        return {mark.name: field for field, info in fields for mark in info.metadata if isinstance(mark, Alias)}

    @model_validator(mode="before")
    @classmethod
    def _understand_aliases(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        renamed, clashes = own_names(values, cls)
        if clashes:
            raise ValueError("; ".join(clashes))
        return renamed

    @model_serializer(mode="wrap")
    def _leave_out(self, dump: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        if info.context == FOR_DIGEST:
            for name, field in type(self).model_fields.items():
                if Later() in field.metadata and getattr(self, name) == field.default:
                    del values[name]
        return values


class OptimConfig(Options):
    """How long and how fast a phase trains: what all of them have, with defaults of their own."""

    epochs: Epochs = 3
    """Most epochs over the rows."""
    learning_rate: Rate = 1e-3
    """Peak learning rate."""
    weight_decay: Weight = 0.01
    """Decoupled weight decay."""


def own_names(values: Mapping[Any, Any], model: type[Options]) -> tuple[dict[Any, Any], list[str]]:
    """Return values by the own names of ``model``'s settings, and what is wrong: settings that are given twice."""
    aliases = model.aliases()
    renamed: dict[Any, Any] = {}
    given_as: dict[Any, Any] = {}
    clashes = []
    for key, value in values.items():
        name = aliases.get(key, key)
        if name in given_as:
            clashes.append(f"{given_as[name]!r} and {key!r} are two names of one setting; give one of them")
        given_as[name], renamed[name] = key, value
    return renamed, clashes


def changes_of(title: str, model: type[Options], names: Iterable[str]) -> type[Options]:
    """Make the model of what may be changed of another's settings: the same fields, all of them optional.

    Args:
        title: the name of the class.
        model: whose settings they are; a field's limits, description and aliases stay.
        names: of the fields.
    """
    fields: dict[str, Any] = {}
    for name in names:
        info = model.model_fields[name]
        marks = [mark for mark in info.metadata if isinstance(mark, Alias)]
        limits = [mark for mark in info.metadata if not isinstance(mark, Alias)]
        value = Annotated[(info.annotation, *limits)] if limits else info.annotation
        optional = value | None  # type: ignore[operator]
        fields[name] = (
            Annotated[(optional, *marks)] if marks else optional,
            Field(default=None, description=info.description),
        )
    return create_model(title, __base__=Options, __module__=model.__module__, **fields)
