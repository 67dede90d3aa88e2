"""Experts on an encoder-decoder in a system: trained, answered, scored, saved, and loaded by PEFT."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM

from dynamorouter.inference.policy import Assignment
from dynamorouter.model.lora.gates import RowGate
from dynamorouter.system.merge import verify
from dynamorouter.system.system import System
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.task import Columns, Generation, Task
from dynamorouter.training.config import ExpertConfig
from dynamorouter.training.experts import fit_experts
from dynamorouter.training.learner import ExpertPlan
from dynamorouter.training.loop import LoopOptions
from dynamorouter.utils.files import read_json
from support.tinylm import load_lm, write_lm

ROWS = [Record(f"row {i} a cat", None, 0, "short", {"texts": [f"cat {i % 3}"]}, str(i)) for i in range(12)]
SHORT = Task(
    name="short",
    head="seq2seq",
    columns=Columns(text="a", target="b"),
    metrics=("lm_loss",),
    generation=Generation(max_new_tokens=8),
)


@pytest.mark.parametrize("architecture", ["t5", pytest.param("pegasus", marks=pytest.mark.e2e)])
def test_an_encoder_decoder_in_a_system(tmp_path: Path, architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base = load_lm(write_lm(tmp_path / architecture, architecture))
    tasks = [SHORT, SHORT.model_copy(update={"name": "other"})]
    plans = [ExpertPlan(task, ExpertConfig(rank=2, alpha=8, trunk_depth=0, epochs=2, batch_rows=4)) for task in tasks]
    rows = {task.name: ROWS for task in tasks}
    options = LoopOptions(tokens_per_batch=128)
    experts = fit_experts(base, plans, rows, rows, options=options)
    name = base.spec.name
    system = System({name: base}, experts, None, router_base=name)
    texts, names = ["row 1 a cat", "row 22 a dog sat", "row 3"], ["short", "other", "short"]
    found = [p.answer for p in system.predict(texts, tasks=names)]
    assert [system.predict([text], tasks=[task])[0].answer for text, task in zip(texts, names, strict=True)] == found
    losses = system.engine.losses(ROWS, Assignment.fixed([0] * len(ROWS)))
    total = sum(loss for loss, _ in losses if loss)  # type: ignore[misc]
    count = sum(tokens for _, tokens in losses)  # type: ignore[misc]
    assert -total / count == pytest.approx(experts[0].card["training"]["select_score"], abs=1e-4)

    again = System.load(system.save(tmp_path / "system"))
    assert [p.answer for p in again.predict(texts, tasks=names)] == found
    folder = tmp_path / "system" / "experts" / "short"
    assert read_json(folder / "adapter_config.json")["task_type"] == "SEQ_2_SEQ_LM"
    oracle = PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(base.spec.path), folder).eval()
    batch = base.encoder.pad([[5, 9, 12, 30], [7, 8]], [[0] * 4, [0] * 2], base.device)
    labels = torch.tensor([[4, 9, 2], [30, 31, 2]])
    gate = RowGate(torch.tensor([0, 0]))
    with torch.inference_mode():
        want = oracle(input_ids=batch.ids, attention_mask=batch.mask, labels=labels).logits
        got = base.logits(base.decode_hidden(base.encode(batch, gate), batch.mask, labels, gate))
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)

    (same,) = verify(tmp_path / "system", "short")
    assert same["ok"] and same["change"] > 0
    tensors = load_file(folder / "adapter_model.safetensors")
    wrong = {key: value * (2 if ".decoder." in key else 1) for key, value in tensors.items()}
    assert any(not torch.equal(wrong[key], tensors[key]) for key in tensors)
    monkeypatch.setattr("peft.PeftModel.from_pretrained", _with(PeftModel.from_pretrained, wrong))
    (differs,) = verify(tmp_path / "system", "short")
    assert not differs["ok"], "the decoder's half is compared too"


def _with(load: Callable[..., PeftModel], tensors: Mapping[str, torch.Tensor]) -> Callable[..., PeftModel]:
    """Return PEFT's loader with other weights put in."""

    def loaded(model: Any, folder: str) -> PeftModel:
        found = load(model, folder)
        set_peft_model_state_dict(found, dict(tensors))
        return found

    return loaded
