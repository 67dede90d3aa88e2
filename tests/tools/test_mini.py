"""The embedded decoder: small files, any text kept, language learned, and a card that says what was measured."""

from __future__ import annotations

import json
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

import dynamorouter
from dynamorouter.model.base.base import Base
from dynamorouter.model.base.config import BaseSpec

PACKAGE = Path(dynamorouter.__file__).parent
FOLDER = PACKAGE / "models" / "mini"
DOCS = Path(__file__).parents[2] / "docs" / "models.md"
TEXT = (
    "Once there was a small boy who lived near the sea. Every morning he went down to the water with his sister, and "
    "they looked for shells in the sand. One day they found a box. It was old and heavy, and they could not open it. "
    "They took it home and asked their mother what to do. She smiled and said that it was hers when she was a child."
)
"""Written for this test, so in no training text."""


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return _tokenizer()


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(FOLDER).eval()


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "measured.json").read_text(encoding="utf-8"))
    return found


def test_files_are_small_and_hold_no_code() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16e6
    assert {path.suffix for path in files} == {".json", ".safetensors", ".md"}


def test_computes_in_float32_from_half_precision(model: Any, measured: dict[str, Any]) -> None:
    assert model.dtype == torch.float32
    stored = getattr(torch, measured["stored_as"])
    weights = model.transformer.h[0].attn.c_attn.weight
    assert torch.equal(weights, weights.to(stored).float())
    assert sum(parameter.numel() for parameter in model.parameters()) == measured["parameters"]


def test_configured_base_is_this_folder() -> None:
    wanted = yaml.safe_load((PACKAGE / "conf" / "base" / "mini.yaml").read_text(encoding="utf-8"))
    spec = BaseSpec(name=wanted["name"], path=wanted["path"])
    assert Path(spec.locate()) == FOLDER
    base = Base.load(spec, device=torch.device("cpu"))
    assert len(base.blocks) == base.config.n_layer
    assert base.tokenizer.eos_token == "<|endoftext|>"


def test_special_tokens(tokenizer: Any, model: Any) -> None:
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == model.config.eos_token_id
    assert tokenizer.pad_token_id == model.config.pad_token_id != tokenizer.eos_token_id
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.model_max_length == model.config.n_positions
    assert tokenizer.chat_template is None


@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_comes_back(text: str) -> None:
    tokenizer = _tokenizer()
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(FOLDER)


def test_every_digit_is_a_token(tokenizer: Any) -> None:
    assert tokenizer.tokenize("1984") == ["1", "9", "8", "4"]


def test_text_costs_less_than_by_chance_or_by_token_frequency(
    model: Any, tokenizer: Any, measured: dict[str, Any]
) -> None:
    ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(TEXT)["input_ids"]]])
    with torch.inference_mode():
        scores = model(input_ids=ids).logits.log_softmax(-1)  # (1, S, V)
    learned = -scores[0, :-1].gather(1, ids[0, 1:, None]).sum().item() / math.log(2)
    uniform = (ids.shape[1] - 1) * math.log2(len(tokenizer))
    easiest = min(measured["bits_per_byte_unigram"].values())  # token frequencies do worse on every held-out source
    assert learned / len(TEXT.encode()) < 0.7 * easiest
    assert learned < 0.5 * uniform


def test_order_of_words_matters(model: Any, tokenizer: Any) -> None:
    def nats(text: str) -> float:
        ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(text)["input_ids"]]])
        with torch.inference_mode():
            return float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)

    assert nats("She went to the house and sat down.") + 5 < nats("She down the and to house sat went.")


def test_generates_words_alone_and_in_a_padded_batch(model: Any, tokenizer: Any) -> None:
    prompts = ["Once upon a time, there was a little girl", "Question: Tom has 3 apples."]
    options = {"max_new_tokens": 20, "do_sample": False}
    alone = []
    for prompt in prompts:
        found = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        made = model.generate(**found, **options)[0, found["input_ids"].shape[1] :]
        alone.append(tokenizer.decode(made, skip_special_tokens=True))
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False)
    made = model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]
    assert tokenizer.batch_decode(made, skip_special_tokens=True) == alone
    assert all(len(set(text.split())) >= 3 for text in alone)


def test_samples_of_the_card_come_again(model: Any, tokenizer: Any, measured: dict[str, Any]) -> None:
    for sample in measured["samples"]:
        found = tokenizer(sample["prompt"], return_tensors="pt", return_token_type_ids=False)
        made = model.generate(**found, max_new_tokens=10, do_sample=False)[0, found["input_ids"].shape[1] :]
        text = tokenizer.decode(made, skip_special_tokens=True)
        assert sample["text"].startswith(text.rstrip("\ufffd"))


def test_card_says_what_was_measured(measured: dict[str, Any]) -> None:
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for source, score in measured["bits_per_byte"].items():
        assert f"| {source} | {score:.4f} | {measured['bits_per_byte_unigram'][source]:.4f} |" in card
        assert score < measured["bits_per_byte_unigram"][source]
    for value in (measured["parameters"], measured["tokens"], measured["steps"]):
        assert f"{value:,}" in card
    for value in (measured["machine"], measured["stored_as"], f"{measured['minutes']} minutes"):
        assert value in card
    for name, row in measured["sources"].items():
        assert f"| {name} | " in card
        assert f"{row['held_out_bytes']:,}" in card
    for sample in measured["samples"]:
        assert sample["text"].rstrip() in card


def test_page_says_what_was_measured(measured: dict[str, Any]) -> None:
    page = DOCS.read_text(encoding="utf-8")
    for source, score in measured["bits_per_byte"].items():
        assert f"| {source} | {score:.4f} | {measured['bits_per_byte_unigram'][source]:.4f} |" in page


def test_the_better_half_precision_is_stored(measured: dict[str, Any]) -> None:
    scores = measured["bits_per_byte_other"]
    assert scores[measured["stored_as"]] == min(scores["float16"], scores["bfloat16"])
    assert measured["bits_per_byte"]["overall"] == scores[measured["stored_as"]]


def test_held_out_text_is_apart(measured: dict[str, Any]) -> None:
    for name, row in measured["sources"].items():
        assert row["held_out_documents"] >= 1, name
        assert row["overlap"] < 0.01, name
    assert measured["sources"]["gsm8k"]["held_out_documents"] == 500
    assert measured["sources"]["mbpp"]["held_out_documents"] == 90
