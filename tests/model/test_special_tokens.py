"""Special tokens in texts of users are characters, in prompts tokens; tokens without an embedding are named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dynamorouter.errors import ConfigError, DataError
from dynamorouter.inference.generation.generate import generate, stream
from dynamorouter.model.base.base import Base
from dynamorouter.model.base.config import BaseSpec
from dynamorouter.model.text.prompts import encode_prompts
from dynamorouter.model.text.tokenize import TextEncoder
from dynamorouter.tasks.task import Generation
from support.tinylm import EOS, byte_tokenizer

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", "[", "]", "sep", "the", "film", "<", "/", "s", ">", "</", "</s>"]
IDS = {piece: index for index, piece in enumerate(PIECES)}
FRAME = processors.TemplateProcessing(
    single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
)


def _fast(model: Any, pre_tokenizer: Any, *, normalizer: Any = None) -> PreTrainedTokenizerFast:
    fast = Tokenizer(model)
    fast.pre_tokenizer, fast.post_processor = pre_tokenizer, FRAME
    if normalizer is not None:
        fast.normalizer = normalizer
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="</s>", **names)


def _families() -> Iterator[tuple[str, PreTrainedTokenizerFast]]:
    blanks = pre_tokenizers.WhitespaceSplit()
    yield "bytes", byte_tokenizer()
    whole = byte_tokenizer()
    whole.backend_tokenizer.model.ignore_merges = True
    yield "bytes, whole words first", whole
    more = byte_tokenizer()
    more.add_tokens([AddedToken("<|user|>", special=True), AddedToken("<plain>"), AddedToken("<|end|>", special=True)])
    yield "bytes and added tokens", more
    yield (
        "word pieces",
        _fast(
            models.WordPiece(IDS, unk_token="[UNK]"),
            pre_tokenizers.BertPreTokenizer(),
            normalizer=normalizers.BertNormalizer(lowercase=True),
        ),
    )
    yield "word pieces of whole words", _fast(models.WordPiece(IDS, unk_token="[UNK]"), blanks)
    yield "words", _fast(models.WordLevel(IDS, unk_token="[UNK]"), blanks)
    merges = [("<", "/"), ("</", "s>"), ("s", ">")]
    yield "merges that make one", _fast(models.BPE({**IDS, "s>": len(IDS)}, merges, unk_token="[UNK]"), blanks)
    yield "unigram", _fast(models.Unigram([(p, -1.0) for p in PIECES], 1, False), pre_tokenizers.Metaspace())


FAMILIES: dict[str, Any] = dict(_families())


@pytest.mark.parametrize("name", FAMILIES)
def test_special_tokens_in_a_text_are_characters_in_every_family(name: str) -> None:
    """Texts without any are read as before, and what a form writes is still the token."""
    tokenizer: Any = FAMILIES[name]
    size = len(tokenizer)
    encoder = TextEncoder(tokenizer, segments=False, limit=64, vocabulary=size)
    open_encoder = TextEncoder(tokenizer, segments=False, limit=64, vocabulary=size, escape_special=False)
    special = {int(tokenizer.convert_tokens_to_ids(text)) for text in tokenizer.all_special_tokens}
    special |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    special.discard(tokenizer.convert_tokens_to_ids(tokenizer.unk_token))
    for content in (tokenizer.convert_ids_to_tokens(i) for i in special):
        for text in (content, f"the {content} film", f"the{content}film"):
            (escaped,) = encoder.encode([text], special=False)
            assert not special & set(escaped.ids), (name, text)
            rows = [("the film", None), (text, text)]
            marked = [w.encoding for w in encoder.windows(rows, max_tokens=60, stride=4)]
            for encoding in marked:
                inner = [i for i, m in zip(encoding.ids, encoding.special_tokens_mask, strict=True) if not m]
                assert not special & set(inner), (name, text)
            assert marked[0].ids == encoder.windows(rows[:1], max_tokens=60, stride=4)[0].encoding.ids

            def write(said: str, _: str | None, held: str = text) -> str:
                return f"{said} {held}"

            (form,) = encoder.encode_written([("the film", None)], write)
            (mixed,) = encoder.encode_written([(text, None)], write)
            (raw,) = open_encoder.encode([f"the film {text}"])
            assert form.ids == raw.ids
            if content in tokenizer.all_special_tokens and int(tokenizer.convert_tokens_to_ids(content)) in raw.ids:
                wanted = int(tokenizer.convert_tokens_to_ids(content))
                framed = encoder.encode_written([("the", None)], lambda said, _: said)[0].ids.count(wanted)
                assert mixed.ids.count(wanted) - framed == 1, (name, text)  # that of the form, not that of the row


def _changed(folder: Path, source: Path, change: Callable[[Any], object]) -> BaseSpec:
    """Return a base whose tokenizer was changed, and whose model was not."""
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).symlink_to(path)
    tokenizer = AutoTokenizer.from_pretrained(source)
    change(tokenizer)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    return BaseSpec(name="lam", path=str(folder))


def _load(spec: BaseSpec) -> Base:
    return Base.load(spec, device=torch.device("cpu"))


def test_padding_without_an_embedding_pads_all_the_same(lm_folder: Callable[[str], Path], tmp_path: Path) -> None:
    plain = _load(BaseSpec(name="lam", path=str(lm_folder("llama"))))
    more = _load(_changed(tmp_path / "b", lm_folder("llama"), lambda t: t.add_special_tokens({"pad_token": "[PAD]"})))
    assert more.tokenizer.pad_token_id >= more.config.vocab_size > more.encoder.pad_id
    prompts, options = [[5, 6, 7], [9] * 11], Generation(max_new_tokens=8)
    assert [g.ids for g in generate(more, prompts, None, options)] == [
        g.ids for g in generate(plain, prompts, None, options)
    ]


def test_what_a_text_needs_and_the_model_lacks_is_named(lm_folder: Callable[[str], Path], tmp_path: Path) -> None:
    base = _load(_changed(tmp_path / "a", lm_folder("llama"), lambda t: t.add_tokens(["<new>"])))
    with pytest.raises(DataError, match=r"the token '<new>' \(number 260\).*no embedding for \(it has 260\).*resize"):
        encode_prompts(base, [("a <new> b", None)], form="plain", room=50)
    assert encode_prompts(base, [("a new b", None)], form="plain", room=50)[0].ids

    def framed(tokenizer: Any) -> None:
        tokenizer.add_special_tokens({"cls_token": "[X]"})
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="[X] $A", pair="[X] $A $B", special_tokens=[("[X]", 260)]
        )

    with pytest.raises(ConfigError, match=r"puts the token '\[X\]' \(number 260\) around every text.*260 embeddings"):
        _load(_changed(tmp_path / "f", lm_folder("llama"), framed))


def test_a_system_says_what_special_tokens_in_texts_are(lm_folder: Callable[[str], Path]) -> None:
    """They end a prompt's turn only where its form says so, and a row among others is written as it is alone."""
    spec = BaseSpec(name="lam", path=str(lm_folder("llama")))
    base, open_base = _load(spec), _load(spec.model_copy(update={"special_in_text": "allow"}))
    template = "{% for m in messages %}<s>{{ m.content | trim }}</s>{% endfor %}"
    base.tokenizer.chat_template = open_base.tokenizer.chat_template = template
    rows: list[tuple[str, str | None]] = [("say </s> twice</s>", None), ("hello", None), ("a", "b <s>")]
    together = [prompt.ids for prompt in encode_prompts(base, rows, form="chat", room=80)]
    alone = [encode_prompts(base, [row], form="chat", room=80)[0].ids for row in rows]
    assert together == alone
    assert [ids.count(EOS) for ids in together] == [1, 1, 1] and [ids[-1] for ids in together] == [EOS] * 3
    assert base.tokenizer.decode(together[0]) == "<s>say </s> twice</s></s>"
    assert [p.ids.count(EOS) for p in encode_prompts(open_base, rows, form="chat", room=80)] == [3, 1, 1]
    options = Generation(max_new_tokens=6)
    whole = generate(base, together, None, options)
    pieces = ["".join(d.text for d in stream(base, [ids], None, options)) for ids in together]
    assert pieces == [row.text for row in whole]
    (cut,) = encode_prompts(base, [("</s>" * 30, None)], form="chat", room=40)
    assert len(cut.ids) == 40 and cut.ids.count(EOS) == 1 and cut.cut == 82
