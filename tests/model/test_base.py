"""Laws of the base: a pass cut at the trunk is the whole pass; experts over it are PEFT's."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
)

from dynamorouter.errors import AdapterError, ConfigError, LibraryError, MissingExtraError
from dynamorouter.model.base.base import Base
from dynamorouter.model.base.config import BaseSpec
from dynamorouter.model.lora.config import LoraConfig
from dynamorouter.model.lora.expert import fresh_factors
from dynamorouter.model.lora.gates import RowGate, SoftGate
from dynamorouter.model.lora.mount import mount
from dynamorouter.model.lora.peft import load_adapter, save_adapter
from dynamorouter.model.lora.targets import target_layers
from dynamorouter.model.text.tokenize import Batch
from support.banks import Change, random_change

ARCHITECTURES = ["bert", "roberta", "distilbert", "gpt2", "llama"]
ROWS = [("the film was dull", None), ("who won", "the team won the match in paris"), ("joy", None)]
Loader = Callable[..., Base]


def batch_of(base: Base) -> Batch:
    windows = base.encoder.windows(ROWS, max_tokens=32, stride=8)
    return base.encoder.collate([window.encoding for window in windows], base.device)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_trunk_then_finish_is_the_whole_pass(tiny_base: Loader, architecture: str) -> None:
    base = tiny_base(architecture)
    batch = batch_of(base)
    extra = {} if batch.types is None else {"token_type_ids": batch.types}
    with torch.inference_mode():
        whole = base.model(input_ids=batch.ids, attention_mask=batch.mask, output_hidden_states=True, **extra)
        for depth in range(base.depth):
            states = base.forward_to(batch, depth, keep=range(depth + 1))
            assert sorted(states) == list(range(depth + 1))
            for layer, state in states.items():
                torch.testing.assert_close(state, whole.hidden_states[layer])
            done = base.forward_from(states[depth], batch.mask, None, depth=depth)
            live = batch.mask.bool()
            torch.testing.assert_close(done[live], whole.last_hidden_state[live])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("rslora", [False, True])
def test_bank_equals_peft_for_the_same_adapter(
    tiny_base: Loader, tiny_folder: Callable[[str], Path], tmp_path: Path, architecture: str, rslora: bool
) -> None:
    base = tiny_base(architecture)
    names = {name.rsplit(".", 1)[-1] for name in target_layers(base, "all-linear", trunk_depth=0)}
    config = PeftConfig(
        r=3,
        lora_alpha=7,
        use_rslora=rslora,
        target_modules=sorted(names),
        rank_pattern={r".*\.1\..*": 5},
        alpha_pattern={r".*\.2\..*": 2},
        fan_in_fan_out=architecture == "gpt2",
        init_lora_weights=False,
    )
    torch.manual_seed(1)
    oracle = get_peft_model(AutoModel.from_pretrained(tiny_folder(architecture)), config).eval()
    oracle.save_pretrained(str(tmp_path))
    adapter = load_adapter(tmp_path, base)
    assert {change.a.shape[0] for change in adapter.factors.values()} == {3, 5}
    layers = dict.fromkeys(adapter.factors, 6)
    others = [random_change(base, name, layers) for name in ("before", "after")]
    mounted = mount(base, [others[0], Change("theirs", adapter.factors), others[1]])
    assert {bank.rank for bank in mounted.banks.values()} == {6}
    batch = batch_of(base)
    extra = {} if batch.types is None else {"token_type_ids": batch.types}
    with torch.inference_mode():
        want = oracle(input_ids=batch.ids, attention_mask=batch.mask, **extra).last_hidden_state
        bare = base.forward(batch, None)
        for gate in (RowGate(torch.tensor([1, -1, 1])), SoftGate(torch.tensor([[0, 1.0, 0], [0, 0, 0], [0, 1, 0]]))):
            got = base.forward(batch, gate)
            live = batch.mask.bool()
            torch.testing.assert_close(got[0][live[0]], want[0][live[0]], atol=6e-6, rtol=1e-5)
            torch.testing.assert_close(got[1][live[1]], bare[1][live[1]], atol=6e-6, rtol=1e-5)
            torch.testing.assert_close(got[2][live[2]], want[2][live[2]], atol=6e-6, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_saved_adapter_is_loaded_by_peft_and_by_us(
    tiny_base: Loader, tiny_folder: Callable[[str], Path], tmp_path: Path, architecture: str
) -> None:
    base = tiny_base(architecture)
    lora = LoraConfig(rank=2, alpha=5, trunk_depth=1)
    factors = fresh_factors(base, lora, seed=3, name="x")
    factors = {layer: type(f)(f.a, 0.1 * torch.randn_like(f.b), f.scaling * 1.5) for layer, f in factors.items()}
    save_adapter(tmp_path, factors, lora, base)
    again = load_adapter(tmp_path, base)
    assert again.lora.trunk_depth == 1
    for layer, change in factors.items():
        assert torch.equal(again.factors[layer].a, change.a) and torch.equal(again.factors[layer].b, change.b)
        assert again.factors[layer].scaling == pytest.approx(change.scaling)
    oracle = PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_folder(architecture)), tmp_path).eval()
    _mounted = mount(base, [Change("x", factors)])
    batch = batch_of(base)
    extra = {} if batch.types is None else {"token_type_ids": batch.types}
    with torch.inference_mode():
        want = oracle(input_ids=batch.ids, attention_mask=batch.mask, **extra).last_hidden_state
        got = base.forward(batch, RowGate(torch.zeros(len(ROWS), dtype=torch.int64)))
    live = batch.mask.bool()
    torch.testing.assert_close(got[live], want[live], atol=6e-6, rtol=1e-5)


def test_adapter_of_a_task_model_brings_its_head(
    tiny_base: Loader, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    base = tiny_base("bert")
    for kind, cls, key in (
        ("SEQ_CLS", AutoModelForSequenceClassification, "classifier.weight"),
        ("QUESTION_ANS", AutoModelForQuestionAnswering, "qa_outputs.weight"),
    ):
        model = get_peft_model(
            cls.from_pretrained(tiny_folder("bert")),
            PeftConfig(task_type=kind, r=2, target_modules=["query"], init_lora_weights=False),
        )
        model.save_pretrained(str(tmp_path / kind))
        adapter = load_adapter(tmp_path / kind, base)
        assert key in adapter.head
        assert all(layer.startswith("encoder.layer.") for layer in adapter.factors)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "lora_only"}, "bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
    ],
)
def test_what_cannot_be_exact_is_refused_by_name(
    tiny_base: Loader, tiny_folder: Callable[[str], Path], tmp_path: Path, options: dict[str, Any], word: str
) -> None:
    config = PeftConfig(r=2, target_modules=["query"], **options)
    get_peft_model(AutoModel.from_pretrained(tiny_folder("bert")), config).save_pretrained(str(tmp_path))
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    saved.update(options)  # PEFT itself rewrites pissa when it saves
    (tmp_path / "adapter_config.json").write_text(json.dumps(saved))
    with pytest.raises(AdapterError, match=word):
        load_adapter(tmp_path, tiny_base())


def test_unmatched_keys_and_other_bases_are_refused(
    tiny_base: Loader, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    base = tiny_base()
    lora = LoraConfig(rank=2, targets=("query",))
    save_adapter(
        tmp_path,
        random_change(base, "x", dict.fromkeys(target_layers(base, "attention", trunk_depth=0), 2)).factors,
        lora,
        base,
    )
    path = tmp_path / "adapter_model.safetensors"
    whole = load_file(path)
    save_file({**whole, "base_model.model.embeddings.word_embeddings.weight": torch.ones(2, 2)}, path)
    with pytest.raises(AdapterError, match="word_embeddings"):
        load_adapter(tmp_path, base)
    save_file(whole, path)
    with pytest.raises(AdapterError, match="another base"):
        load_adapter(tmp_path, tiny_base("gpt2"))
    first = next(iter(whole))
    save_file({**whole, first: torch.ones(2, 7)}, path)
    with pytest.raises(AdapterError, match="another base"):
        load_adapter(tmp_path, base)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(LibraryError, match="truncated or corrupt"):
        load_adapter(tmp_path, base)


def test_targets_by_group_regex_and_ending(tiny_base: Loader) -> None:
    base = tiny_base("bert")
    assert len(target_layers(base, "all-linear", trunk_depth=0)) == 24
    assert len(target_layers(base, "all-linear", trunk_depth=3)) == 6
    assert len(target_layers(base, "attention", trunk_depth=0)) == 8
    assert target_layers(base, r".*layer\.0\..*key", trunk_depth=0) == ["encoder.layer.0.attention.self.key"]
    assert len(target_layers(base, ["query", "output.dense"], trunk_depth=2)) == 6
    with pytest.raises(ConfigError, match=r"match no linear layer.*query"):
        target_layers(base, ["quary"], trunk_depth=0)
    with pytest.raises(ConfigError, match=r"trunk_depth is 4.*0 to 3"):
        target_layers(base, "all-linear", trunk_depth=4)


def test_a_base_that_is_not_there_says_how_to_get_it(tmp_path: Path) -> None:
    device = torch.device("cpu")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        Base.load(BaseSpec(name="b", path=str(tmp_path)), device=device)
    with pytest.raises(MissingExtraError, match="offline"):
        Base.load(BaseSpec(name="b", path="package:no_such_package/model"), device=device)


def test_a_task_model_loads_without_a_report_and_half_a_checkpoint_is_refused(
    tiny_folder: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(tiny_folder("bert"), tmp_path, dirs_exist_ok=True)
    config = AutoConfig.from_pretrained(tmp_path)
    model = AutoModelForMaskedLM.from_config(config)
    model.save_pretrained(tmp_path)  # has a head that a base does without, and lacks the pooler
    spec, device = BaseSpec(name="tiny", path=str(tmp_path)), torch.device("cpu")
    source = logging.getLogger("transformers")
    source.addHandler(caplog.handler)
    try:
        Base.load(spec, device=device)
        assert not [record for record in caplog.records if "LOAD REPORT" in record.getMessage()]
        AutoModel.from_pretrained(tmp_path)
        assert [record for record in caplog.records if "LOAD REPORT" in record.getMessage()]
    finally:
        source.removeHandler(caplog.handler)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["bert.encoder.layer.3.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks encoder\.layer\.3\.output\.dense\.weight; give the whole checkpoint"):
        Base.load(spec, device=device)


def test_windows_overlap_cover_the_text_and_keep_the_question(tiny_base: Loader) -> None:
    base = tiny_base()
    words = [f"the {'film' if i % 2 else 'bank'}" for i in range(60)]
    windows = base.encoder.windows([("who won ?", " ".join(words))], max_tokens=32, stride=8)
    covered = set()
    for window in windows:
        assert len(window) <= 32
        assert window.encoding.tokens[1:4] == ["who", "won", "?"]
        pairs = zip(window.encoding.offsets, window.encoding.sequence_ids, strict=True)
        covered |= {offset for offset, kind in pairs if kind == 1}
    assert len(covered) == 120
    assert [window.part for window in windows] == list(range(len(windows)))
