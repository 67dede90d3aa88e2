"""The task models of ``transformers`` (sequence and token classifiers, question answerers) that heads come from.

A head that has such a form can be exchanged with PEFT, in both directions, as trained modules beside the factors.

Letters: B batch, S positions, C outputs.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.auto import modeling_auto

from dynamorouter.errors import AdapterError
from dynamorouter.model.base.base import Base
from dynamorouter.model.heads.base import Head
from dynamorouter.model.lora.peft import TaskForm
from dynamorouter.model.text.tokenize import Batch

CLASSES = {
    "classification": ("SEQ_CLS", modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES),
    "tags": ("TOKEN_CLS", modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES),
    "span": ("QUESTION_ANS", modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES),
}
"""By head: what PEFT calls the task, and the classes by type of model."""
PEFT_TASKS = {task for task, _ in CLASSES.values()}
"""What PEFT calls the tasks of these models."""


def task_form(head: Head, base: Base) -> TaskForm | None:
    """Return a head in the form of the base's task model; ``None`` where there is none that computes the same."""
    exported = head.export_state(base)
    model_class = _task_class(head, base)
    if exported is None or model_class is None:
        return None
    prefix = f"{model_class.base_model_prefix}."
    tensors = {f"{prefix}{name}" if name in base.weights else name: value for name, value in exported.items()}
    modules = dict.fromkeys(name.partition(".")[0] for name in exported)
    return TaskForm(CLASSES[head.kind][0], prefix, tensors, tuple(modules))


def check_head(head: Head, base: Base, *, where: str) -> None:
    """Compare a head that came with an adapter with the task model that it was trained in, on a few tokens.

    Raises:
        AdapterError: the base has no such task model, or it computes something else.
    """
    form = task_form(head, base)
    if form is None:
        raise AdapterError(
            f"the head in {where} has no known form over a {base.config.model_type} base; take it out of the folder "
            "(its tensors, and modules_to_save in adapter_config.json), and it is trained anew on --data"
        )
    body: Any = base.model
    tokens = body.get_input_embeddings().weight.shape[0]
    ids = torch.arange(tokens // 2, tokens // 2 + 6, device=base.device)[None]  # none of them is special
    mask = torch.ones_like(ids)
    with torch.no_grad():
        expected = _task_logits(form, head, base, ids, mask)
        logits = head.logits(base.forward(Batch(ids=ids, types=None, mask=mask), None), mask)
    tolerance = 1e-3 if base.dtype == torch.float32 else 0.1
    if logits.shape != expected.shape or not torch.allclose(logits, expected.float(), atol=tolerance, rtol=tolerance):
        raise AdapterError(
            f"the head in {where} does not compute what {_task_class(head, base).__name__} does with it, so that its "
            "answers would be wrong; take it out of the folder, and it is trained anew on --data"
        )


def _task_class(head: Head, base: Base) -> Any:
    _, names = CLASSES.get(head.kind, ("", {}))
    return getattr(transformers, names.get(base.config.model_type, ""), None)


def task_shell(head: Head, base: Base, body: nn.Module) -> Any:
    """Return the task model of a base's head around a body; its head's weights are yet to come.

    Raises:
        AdapterError: it has weights beside the body that the head has not.
    """
    form, model_class = task_form(head, base), _task_class(head, base)
    assert form is not None  # as check_head makes sure, and who writes one knows
    config = copy.deepcopy(base.config)
    config.num_labels = 2 if form.task_type == "QUESTION_ANS" else len(head.labels)
    with torch.device("meta"):
        model = model_class(config).eval()
    outside = {name for name, _ in model.named_parameters() if not name.startswith(form.prefix)}
    unknown = sorted(outside ^ {name for name in form.tensors if not name.startswith(form.prefix)})
    if unknown:
        raise AdapterError(
            f"{model_class.__name__} has a head of other layers ({', '.join(unknown)}) than a {head.kind} head can "
            "have; take it out of the adapter's folder, and it is trained anew on --data"
        )
    setattr(model, form.prefix.removesuffix("."), nn.Identity())
    model.to_empty(device=base.device)
    setattr(model, form.prefix.removesuffix("."), body)
    return model


def _task_logits(form: TaskForm, head: Head, base: Base, ids: Tensor, mask: Tensor) -> Tensor:
    """Run the task model around the base's own body with the head's weights: ``(B, C)`` or ``(B, S, C)``."""
    model = task_shell(head, base, base.model)
    weights = {name: value.to(base.device, base.dtype) for name, value in form.tensors.items()}
    with base.context.hold(None):
        out = torch.func.functional_call(model, weights, kwargs={"input_ids": ids, "attention_mask": mask})
    return torch.stack([out.start_logits, out.end_logits], dim=-1) if head.kind == "span" else out.logits
