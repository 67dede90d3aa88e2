"""Adapter folders as people have them: each is used as PEFT uses it, in memory and after a round trip, or refused."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM

from dynamorouter.errors import AdapterError, LibraryError
from dynamorouter.model.base.base import Base
from dynamorouter.model.lora.adapter_files import source_of
from dynamorouter.model.lora.factors import Factors
from dynamorouter.model.lora.gates.row import RowGate
from dynamorouter.model.lora.mount import mount
from dynamorouter.model.lora.peft import load_adapter, read_adapter, save_adapter
from dynamorouter.model.text.tokenize import Batch
from support.banks import Change
from support.peftmodels import open_base, peft_adapter, write_family
from support.shared import made_once

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
IDS = torch.arange(8, 20).reshape(2, 6)
pytestmark = [  # PEFT says what it does
    pytest.mark.filterwarnings("ignore:The following alpha_pattern keys:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`"),
    pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed"),
    pytest.mark.filterwarnings("ignore:Adapter 'default'. 2 LoRA tensor"),
]
Alter = Callable[[Path], object]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "family/llama", lambda folder: write_family(folder, "llama"))


@pytest.fixture(scope="module")
def base(decoder: Path) -> Base:
    return open_base(decoder)


@pytest.fixture(scope="module")
def plain(decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an adapter as PEFT writes it, which no test may change."""
    return write_adapter(decoder, tmp_path_factory.mktemp("plain") / "adapter")


def write_adapter(decoder: Path, folder: Path, **options: Any) -> Path:
    options = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"], **options}
    peft_adapter(AutoModelForCausalLM.from_pretrained(decoder), **options).save_pretrained(str(folder))
    return folder


@torch.inference_mode()
def peft_logits(decoder: Path, folder: Path) -> Tensor:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(decoder), folder).eval()
    return model(input_ids=IDS).logits


@torch.inference_mode()
def our_logits(base: Base, factors: dict[str, Factors]) -> Tensor:
    with mount(base, [Change("x", factors)]):
        batch = Batch(ids=IDS, types=None, mask=torch.ones_like(IDS))
        return base.logits(base.forward(batch, RowGate(torch.zeros(2, dtype=torch.int64))))


def assert_as_in_peft(base: Base, decoder: Path, folder: Path, again: Path, *, oracle: Path | None = None) -> None:
    """Compare with PEFT's own logits in memory, after saving and loading, and of what PEFT makes of what was saved."""
    adapter, expected = load_adapter(folder, base), peft_logits(decoder, oracle or folder)
    torch.testing.assert_close(our_logits(base, adapter.factors), expected, atol=1e-5, rtol=1e-5)
    assert float((expected - our_logits(base, {})).abs().max()) > 0.1
    save_adapter(again, adapter.factors, adapter.lora, base)
    torch.testing.assert_close(our_logits(base, read_adapter(again, base).factors), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(peft_logits(decoder, again), expected, atol=1e-5, rtol=1e-5)


VARIETIES: dict[str, dict[str, Any]] = {
    "all linear layers": {"target_modules": "all-linear"},
    "rsLoRA": {"use_rslora": True, "rank_pattern": {"q_proj": 5}},
    "short names": {"rank_pattern": {"q_proj": 5}, "alpha_pattern": {"v_proj": 40}},
    "names inside the body": {
        "alpha_pattern": {"layers.1.self_attn.q_proj": 40},
        "rank_pattern": {"layers.0.self_attn.v_proj": 1},
    },
    "full names": {"alpha_pattern": {"model.layers.1.self_attn.q_proj": 40}},
    "full names from the start": {"rank_pattern": {"^model.layers.1.self_attn.q_proj": 7}},
    "a start that is none": {"alpha_pattern": {"^layers.1.self_attn.q_proj": 40}},
    "regular expressions": {
        "rank_pattern": {r"layers\.(0|1)\..*q_proj": 2},
        "alpha_pattern": {r".*\.\d+\..*v_proj": 17.5},
    },
    "the first of two patterns": {"alpha_pattern": {"q_proj": 2, "layers.1.self_attn.q_proj": 40}},
    "a pattern of no layer": {"alpha_pattern": {"zzz": 40}},
    "a layer that is off": {"alpha_pattern": {"v_proj": 0}},
    "target by regular expression": {"target_modules": r".*\.1\..*(q|v)_proj"},
    "some blocks": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "one block": {"layers_to_transform": 1},
    "all but": {"target_modules": "all-linear", "exclude_modules": ["o_proj", "model.layers.0.mlp.up_proj"]},
    "embeddings saved beside it": {"modules_to_save": ["embed_tokens"]},
    "half precision": {},
}


@pytest.mark.parametrize("case", VARIETIES)
def test_an_adapter_is_used_as_peft_uses_it(base: Base, decoder: Path, tmp_path: Path, case: str) -> None:
    options = VARIETIES[case]
    folder = write_adapter(decoder, tmp_path / "theirs", **options)
    if case == "embeddings saved beside it":
        change_tensors(folder, embedded_as_in(decoder))
    if case == "half precision":
        change_tensors(folder, lambda tensors: {key: value.half() for key, value in tensors.items()})
    assert_as_in_peft(base, decoder, folder, tmp_path / "ours")


def embedded_as_in(decoder: Path) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    own = load_file(decoder / "model.safetensors")["model.embed_tokens.weight"]
    return lambda tensors: {key: own if "embed_tokens" in key else value for key, value in tensors.items()}


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    changed = {key: value.contiguous() for key, value in change(load_file(folder / WEIGHTS)).items()}
    save_file(changed, folder / WEIGHTS, {"format": "pt"})


def config(**values: Any) -> Alter:
    """Change the config of a folder; ``...`` takes a key out."""

    def change(folder: Path) -> None:
        whole = {**json.loads((folder / CONFIG).read_text()), **values}
        (folder / CONFIG).write_text(json.dumps({key: value for key, value in whole.items() if value is not ...}))

    return change


def tensors(change: Callable[[str, Tensor], Tensor]) -> Alter:
    return lambda folder: change_tensors(folder, lambda all_: {key: change(key, value) for key, value in all_.items()})


def keys(change: Callable[[str], str]) -> Alter:
    return lambda folder: change_tensors(folder, lambda all_: {change(key): value for key, value in all_.items()})


def shard(folder: Path, *, index: bool = True) -> Path:
    whole = load_file(folder / WEIGHTS)
    names = {key: f"adapter_model-0000{1 + i % 2}-of-00002.safetensors" for i, key in enumerate(whole)}
    for name in set(names.values()):
        save_file({key: whole[key] for key in whole if names[key] == name}, folder / name, {"format": "pt"})
    (folder / WEIGHTS).unlink()
    if index:
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return folder


def into_subfolder(folder: Path) -> Path:
    (folder / "mine").mkdir()
    for name in (WEIGHTS, CONFIG):
        (folder / name).rename(folder / "mine" / name)
    return folder / "mine"


TAKEN: dict[str, Alter] = {
    "torch.compile around PEFT": keys(lambda key: f"_orig_mod.{key}"),
    "torch.compile inside PEFT": keys(lambda key: key.replace("base_model.model.", "base_model.model._orig_mod.")),
    "DDP": keys(lambda key: f"module.{key}"),
    "FSDP and checkpointing": keys(lambda key: key.replace(".self_attn", "._checkpoint_wrapped_module.self_attn")),
    "a text model inside another": keys(lambda key: key.replace(".model.model.", ".model.language_model.model.")),
    "the name of PEFT's adapter": keys(lambda key: key.replace(".weight", ".default.weight")),
    "the body alone": keys(lambda key: key.replace("base_model.model.model.", "base_model.model.")),
    "shards": shard,
    "shards without an index": lambda folder: shard(folder, index=False),
    "a named subfolder": into_subfolder,
    "unset keys of a later PEFT": config(use_new_thing=False, new_config=None, other={}),
    "a key that changes nothing": config(velora_config=None, megatron_core="megatron.core", peft_version="9.0"),
    "nulls that PEFT takes": config(bias=None, use_rslora=None, init_lora_weights=None, fan_in_fan_out=True),
}


@pytest.mark.parametrize("case", TAKEN)
def test_what_means_the_same_is_taken(base: Base, decoder: Path, plain: Path, tmp_path: Path, case: str) -> None:
    folder = Path(shutil.copytree(plain, tmp_path / "adapter"))
    TAKEN[case](folder)
    assert_as_in_peft(base, decoder, folder, tmp_path / "ours", oracle=plain)


ODD_CONFIGS: dict[str, tuple[Alter, str]] = {
    "r is null": (config(r=None), "r: got None, should be a valid integer"),
    "r is a word": (config(r="x"), "r: got 'x'"),
    "r is a fraction": (config(r=3.0), r"r: got 3\.0"),
    "r is true": (config(r=True), "r: got True"),
    "r is zero": (config(r=0), "r: got 0"),
    "r is missing": (config(r=...), "says rank 8 .* but its factors have 3"),
    "alpha is null": (config(lora_alpha=None), "lora_alpha: got None"),
    "alpha is NaN": (config(lora_alpha=float("nan")), "lora_alpha: got nan, should be a finite number"),
    "alpha is infinite": (config(lora_alpha=float("inf")), "lora_alpha: got inf"),
    "alpha is zero": (config(lora_alpha=0), "lora_alpha: got 0"),
    "alpha is a word": (config(lora_alpha="6"), "lora_alpha: got '6'"),
    "dropout is null": (config(lora_dropout=None), "lora_dropout: got None"),
    "ranks are null": (config(rank_pattern=None), "rank_pattern: got None"),
    "alphas are a list": (config(alpha_pattern=[1]), r"alpha_pattern: got \[1\]"),
    "an alpha is a word": (config(alpha_pattern={"q_proj": "4"}), "alpha_pattern: got '4'"),
    "a rank that the factors have not": (config(rank_pattern={"q_proj": 4}), "says rank 4"),
    "start is an object": (config(init_lora_weights={"a": 1}), r"init_lora_weights: got \{'a': 1\}"),
    "start is a list": (config(init_lora_weights=["gaussian"]), "init_lora_weights: got"),
    "two mistakes": (config(r=None, lora_alpha=None), "r: got None.*lora_alpha: got None"),
    "modules_to_save is a word": (config(modules_to_save="lm_head"), "modules_to_save: got 'lm_head'"),
    "no targets": (config(target_modules=...), "target_modules: missing"),
    "a task that is none": (config(task_type="FOO"), "task_type: got 'FOO'"),
    "not LoRA": (config(peft_type="ADALORA"), "peft_type='ADALORA'"),
    "no type": (config(peft_type=...), "peft_type=None"),
    "trained biases": (config(bias="all"), "bias='all' .biases of the base were trained"),
    "an unknown bias": (config(bias="x"), "bias: got 'x'"),
    "PiSSA": (config(init_lora_weights="pissa_niter_4"), "init_lora_weights='pissa_niter_4'"),
    "DoRA": (config(use_dora=True), "use_dora=True"),
    "block-diagonal": (config(use_bdlora={"nblocks": 2}), "use_bdlora="),
    "a set key of a later PEFT": (config(use_new_thing=True), "use_new_thing=True .a setting of another PEFT"),
    "a broken pattern": (config(alpha_pattern={"layers.(1.q_proj": 4}), "alpha_pattern .*no regular expression"),
    "a broken target": (config(target_modules="(q_proj"), "target_modules .*no regular expression"),
    "a list": (lambda folder: (folder / CONFIG).write_text("[]"), "holds a JSON list"),
    "no JSON": (lambda folder: (folder / CONFIG).write_text("{"), "is not JSON"),
    "not UTF-8": (lambda folder: (folder / CONFIG).write_bytes(b'{"\xff": 1}'), "is not JSON"),
    "factors that no target names": (config(target_modules=["q_proj"]), "factors of 2 layers that target_modules"),
    "factors of a block that is left out": (config(layers_to_transform=[0]), "factors of 2 layers"),
    "factors that are excluded": (config(exclude_modules=["v_proj"]), "factors of 2 layers"),
    "layers drawn at random": (
        config(target_modules=["q_proj", "v_proj", "o_proj"], init_lora_weights=False),
        "lacks 2 layers .*at random",
    ),
}


def lost(part: str) -> Alter:
    return lambda folder: change_tensors(folder, lambda all_: {k: v for k, v in all_.items() if part not in k})


def added(key: str, value: Tensor) -> Alter:
    return lambda folder: change_tensors(folder, lambda all_: {**all_, f"base_model.model.{key}": value})


ODD_FILES: dict[str, tuple[Alter, str]] = {
    "B is zero": (tensors(lambda key, value: value * 0 if "lora_B" in key else value), "changes nothing"),
    "A is zero": (tensors(lambda key, value: value * 0 if "lora_A" in key else value), "changes nothing"),
    "all alphas are zero": (config(alpha_pattern={".*": 0}), "changes nothing"),
    "NaN": (tensors(lambda key, value: value * float("nan") if "lora_B" in key else value), "holds NaN in"),
    "infinity": (tensors(lambda key, value: value / 0 if "lora_B" in key else value), "holds Inf in"),
    "an alpha too large": (config(alpha_pattern={"q_proj": 1e308}), "changes too much"),
    "too large together": (tensors(lambda key, value: value.abs() / value.abs() * 1e38), "changes too much"),
    "integers": (tensors(lambda key, value: (9 * value).long()), "as int64; weights are floating"),
    "booleans": (tensors(lambda key, value: value > 0), "as bool; weights are floating"),
    "complex numbers": (tensors(lambda key, value: value.to(torch.complex64)), "as complex64; weights are floating"),
    "empty tensors": (tensors(lambda key, value: torch.zeros(0)), r"empty tensor .*\(0,\).*ZeRO-3"),
    "three axes": (tensors(lambda key, value: value[None]), "has A"),
    "no factors": (lambda folder: save_file({}, folder / WEIGHTS), "matches no layer: .*holds nothing"),
    "B is missing": (lost("lora_B"), "has only lora_A"),
    "factors twice": (
        lambda folder: change_tensors(
            folder,
            lambda all_: all_ | {key.replace(".weight", ".other.weight"): value + 1 for key, value in all_.items()},
        ),
        "twice, of several adapters",
    ),
    "DoRA's magnitudes": (
        added("model.layers.0.self_attn.q_proj.lora_magnitude_vector", torch.ones(16)),
        "lora_magnitude",
    ),
    "a bias": (added("model.layers.0.self_attn.q_proj.bias", torch.ones(16)), "neither LoRA factors|whole weights"),
    "a trained head": (added("lm_head.weight", torch.ones(260, 16)), "whole weights of lm_head"),
    "a resized vocabulary": (added("model.embed_tokens.weight", torch.ones(300, 16)), "whole weights of embed_tokens"),
    "a norm": (added("model.norm.weight", torch.ones(16) * 2), "whole weights of norm"),
    "a norm's factors": (added("model.norm.lora_A.weight", torch.ones(3, 16)), "a LlamaRMSNorm; only linear layers"),
    "factors of another base": (keys(lambda key: key.replace("layers.1", "layers.7")), "trained on another base"),
    "a wider base": (
        tensors(lambda key, value: value.repeat(1, 2) if "lora_A" in key else value),
        "trained on another base",
    ),
    "truncated": (
        lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:90]),
        "truncated or corrupt",
    ),
    "pickled": (
        lambda folder: (folder / WEIGHTS).rename(folder / "adapter_model.bin"),
        "pickled adapters are not loaded",
    ),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), f"has no {WEIGHTS} .found: README.md, {CONFIG}."),
    "a lost shard": (
        lambda folder: (shard(folder) / "adapter_model-00002-of-00002.safetensors").unlink(),
        "lacks adapter_model-00002-of-00002",
    ),
    "an index that leaves the folder": (
        lambda folder: (
            (folder / WEIGHTS)
            .rename(folder / f"{WEIGHTS}.index.json")
            .write_text('{"weight_map": {"a": "../x.safetensors"}}')
        ),
        "no file beside it",
    ),
    "a damaged index": (
        lambda folder: (folder / WEIGHTS).rename(folder / f"{WEIGHTS}.index.json").write_text("[]"),
        "index.json is damaged",
    ),
    "several adapters": (
        lambda folder: shutil.copytree(into_subfolder(folder), folder / "yours"),
        "several adapters: mine, yours; name one",
    ),
}


@pytest.mark.parametrize("case", [*ODD_CONFIGS, *ODD_FILES])
def test_what_peft_would_not_use_is_refused_by_name(base: Base, plain: Path, tmp_path: Path, case: str) -> None:
    folder = Path(shutil.copytree(plain, tmp_path / "adapter"))
    alter, message = (ODD_CONFIGS | ODD_FILES)[case]
    alter(folder)
    with pytest.raises((AdapterError, LibraryError), match=rf"(?s){message}"):
        load_adapter(folder, base)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_modules": ["q_proj", "lm_head"]}, "changes lm_head.*without lm_head in target_modules"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "the embeddings model.embed_tokens.*target_modules"),
        ({"target_modules": ["q_proj"], "use_dora": True}, "use_dora=True"),
        ({"target_modules": ["q_proj"], "lora_bias": True}, "lora_bias=True"),
    ],
)
def test_what_peft_can_and_experts_cannot_is_named(
    base: Base, decoder: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(AdapterError, match=message) as refused:
        load_adapter(write_adapter(decoder, tmp_path, **options), base)
    assert "another base" not in str(refused.value)


@pytest.mark.parametrize("setting", ["rank_pattern", "alpha_pattern", "target_modules", "exclude_modules"])
def test_a_pattern_cannot_hang(base: Base, plain: Path, tmp_path: Path, setting: str) -> None:
    folder = Path(shutil.copytree(plain, tmp_path / "adapter"))
    bad = r"(?:.|.)+(?:.|.)+\B(?!.)"
    config(**{setting: {bad: 3} if "pattern" in setting else bad})(folder)
    begin = time.process_time()
    with pytest.raises(AdapterError, match=f"{setting} .*takes too long"):
        load_adapter(folder, base)
    assert time.process_time() - begin < 10


def test_layers_and_norm_are_counted(base: Base, decoder: Path, plain: Path, tmp_path: Path) -> None:
    adapter = load_adapter(plain, base)
    assert adapter.matched_layers == 4 and adapter.notes == ()
    changes = [f.scaling * f.b.double() @ f.a.double() for f in adapter.factors.values()]
    assert adapter.delta_norm == pytest.approx(float(torch.cat([c.flatten() for c in changes]).norm()))
    fewer = Path(shutil.copytree(plain, tmp_path / "fewer"))
    lost("layers.1")(fewer)
    (note,) = load_adapter(fewer, base).notes
    assert "lacks 2 layers that target_modules names" in note
    idle = Path(shutil.copytree(plain, tmp_path / "idle"))
    config(alpha_pattern={"zzz": 3, "q_proj": 6})(idle)
    (note,) = load_adapter(idle, base).notes
    assert "'zzz'" in note and "q_proj" not in note
    source = source_of(plain)
    assert source["adapter"] == str(plain) and source != source_of(fewer) and len(source["sha256"]) == 64


def test_another_base_is_said(decoder: Path, base: Base, plain: Path, tmp_path: Path) -> None:
    def notes(**values: Any) -> tuple[str, ...]:
        folder = Path(shutil.copytree(plain, tmp_path / "adapter", dirs_exist_ok=True))
        config(**values)(folder)
        return load_adapter(folder, base).notes

    copy = Path(shutil.copytree(decoder, tmp_path / "copy of the base"))
    assert notes(base_model_name_or_path=str(copy)) == ()
    assert notes(base_model_name_or_path="somebody/tiny") == ()
    (note,) = notes(base_model_name_or_path="somebody/another-7b")
    assert "trained on 'somebody/another-7b'" in note and "differ" not in note
    change = load_file(copy / "model.safetensors")
    change["model.layers.1.mlp.up_proj.weight"] += 1
    save_file(change, copy / "model.safetensors", {"format": "pt"})
    (note,) = notes(base_model_name_or_path=str(copy))
    assert "and the weights differ" in note


def test_an_adapter_of_the_body_alone_is_as_in_peft(decoder: Path, base: Base, tmp_path: Path) -> None:
    model = peft_adapter(AutoModel.from_pretrained(decoder), target_modules=["q_proj"])
    model.save_pretrained(str(tmp_path))
    adapter = load_adapter(tmp_path, base)
    with torch.inference_mode(), mount(base, [Change("x", adapter.factors)]):
        batch = Batch(ids=IDS, types=None, mask=torch.ones_like(IDS))
        hidden = base.forward(batch, RowGate(torch.zeros(2, dtype=torch.int64)))
        torch.testing.assert_close(hidden, model(input_ids=IDS).last_hidden_state, atol=1e-5, rtol=1e-5)
