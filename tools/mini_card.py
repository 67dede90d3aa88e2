"""The model card of the embedded decoder, written from its measured figures."""

from __future__ import annotations

from typing import Any

LICENCES = {
    "gutenberg": "17 books of Project Gutenberg; public domain",
    "wikitext": "WikiText-2, validation and test articles (Merity et al., 2017), from Wikipedia; CC BY-SA",
    "tinystories": "2 MiB of TinyStories (Eldan and Li, 2023); CDLA-Sharing-1.0",
    "tinyshakespeare": "plays of Shakespeare; public domain",
    "gsm8k": "GSM8K train (Cobbe et al., 2021), question and answer; MIT",
    "mbpp": "MBPP (Austin et al., 2021), text and code; CC BY 4.0",
    "ud_ewt": "Universal Dependencies English Web Treebank, the text only; CC BY-SA 4.0",
}
HEAD = """\
---
language: en
license: cc-by-sa-4.0
pipeline_tag: text-generation
library_name: transformers
---
# mini

A small English decoder of our own in GPT-2's architecture, trained from random weights. It exists so that every
generative feature of DynamoRouter runs on real learned language out of the box: `base=mini`. It is no assistant.

This card and `measured.json` are written by `tools/pretrain_mini.py`.
"""
HELD_OUT = """\
Held out, never trained on: of Gutenberg the books `carroll-alice`, `burgess-busterbrown` and `shakespeare-macbeth`;
of WikiText and TinyStories every article or story whose SHA-256 says so (1 in 20, 1 in 25); of tinyshakespeare the
last twentieth; of GSM8K the **last 500 rows of train** (places 6973 to 7472); of MBPP all 90 rows of validation; of
UD-EWT the validation part. MBPP's and UD-EWT's are the splits that `data prepare` holds out as well. GSM8K's are not:
a carve from GSM8K train may draw rows that this model has read. To measure experts on rows that neither they nor this
model have read, give the last 500 rows as a file of their own (`tail -n 500 train.jsonl > validation.jsonl`, `head -n
-500` for train).

Then a check by text: training documents that share a tenth or more of their runs of 13 words with held-out text, and
exact copies, were left out (*dropped*); *overlap* is the share of held-out runs that the remaining training text
still contains.
"""
LIMITS = """\
## Limits

- It is tiny and has read about as much as a shelf of books: it writes local grammar, knows no facts, cannot reckon
  and writes no working code beyond luck. Its arithmetic answers have the form of answers.
- A large part of its text is of the 17th to early 20th century, with the attitudes and words of its time; nothing was
  filtered.
- English only; any other text is encoded byte by byte and not understood.
- 512 positions, learned; rows of 256 came first, rows of 512 in the last part of the run.
- Sentences of WikiText with unknown words were left out before training, so articles have gaps.
- Half precision is for storage; `config.json` names float32 to compute in.

## Licence

The weights are given under CC BY-SA 4.0, the most demanding of their sources' licences for text; the sources are
named above.
"""


def card(measured: dict[str, Any]) -> str:
    """Return the card, every figure of which is in ``measured``."""
    parts = [HEAD, _facts(measured), _text(measured), HELD_OUT, _bits(measured), _samples(measured), LIMITS]
    return "\n".join(parts)


def _facts(measured: dict[str, Any]) -> str:
    plan = measured["plan"]
    rows = {
        "parameters": f"{measured['parameters']:,}, input and output embedding shared",
        "shape": f"{plan['layers']} layers, {plan['width']} wide, {plan['heads']} heads, {plan['positions']} positions",
        "tokenizer": f"byte-level BPE, {plan['vocabulary']:,} entries, each digit a token, trained on the same text",
        "special tokens": "`<|endoftext|>` (0) begins and ends text, `<|pad|>` (1); no chat template",
        "stored as": f"{measured['stored_as']} safetensors",
        "machine": measured["machine"],
        "training time": f"{measured['minutes']} minutes ({measured['cpu_minutes']} of processor time)",
        "steps": f"{measured['steps']:,} of {plan['batch_tokens']:,} tokens",
        "tokens": f"{measured['tokens']:,}, {measured['rounds']} rounds over the text (small sources repeated)",
        "optimizer": f"AdamW, peak {plan['lr']:g}, betas 0.9 and {plan['beta2']:g}, decay {plan['decay']:g}, warmup "
        f"{plan['warmup']:.0%} of the time, cosine to zero{_changes(measured)}",
        "rows": f"{plan['short']} positions for {plan['short_share']:.0%} of the time, then {plan['positions']}",
    }
    return _table(("", ""), [(name, value) for name, value in rows.items()])


def _changes(measured: dict[str, Any]) -> str:
    """Return what was set before a resumed run changed it."""
    told = []
    for change in measured["changes"]:
        old = ", ".join(f"{name} {value:g}" for name, value in change.items() if name != "minute")
        told.append(f"; until minute {change['minute']}: {old}")
    return "".join(told)


def _text(measured: dict[str, Any]) -> str:
    rows = []
    for name, row in measured["sources"].items():
        sizes = (f"{row[f'{part}_documents']:,} / {row[f'{part}_bytes']:,}" for part in ("train", "held_out"))
        rows.append((name, LICENCES[name], *sizes, str(row["dropped_documents"]), f"{row['overlap']:.3%}"))
    head = ("source", "what and licence", "train documents / bytes", "held-out documents / bytes", "dropped", "overlap")
    form = (
        "GSM8K rows read `Question: ...` and, on the next line, `Answer: ...`, with the calculator marks of the data;\n"
        "MBPP rows read `# task` and the code from the next line. "
        "MBPP text comes 3 times in a round,\nUD-EWT and WikiText 2 times."
    )
    return f"## Text\n\n{_table(head, rows)}\n{form}\n"


def _bits(measured: dict[str, Any]) -> str:
    names = ("bits_per_byte", "bits_per_byte_unigram")
    rows = [(name, *(f"{measured[key][name]:.4f}" for key in names)) for name in measured["bits_per_byte"]]
    table = _table(("held-out text", "bits per byte", "token frequencies alone"), rows)
    kinds = ", ".join(f"{name} {score:.4f}" for name, score in measured["bits_per_byte_other"].items())
    limit = measured["held_out_bytes_limit"]
    which = "all held-out text" if limit is None else f"the first {limit:,} bytes of each source"
    return (
        f"## Measured\n\n{table}\nOn {which}, rows of {measured['plan']['positions']} tokens without overlap, "
        f"`overall` over all bytes. Overall by precision: {kinds}; the better half precision is stored.\n"
    )


def _samples(measured: dict[str, Any]) -> str:
    shown = []
    for sample in measured["samples"]:
        shown.append(f"```text\n{sample['prompt']}\n>>>{sample['text'].rstrip()}\n```\n")
    return "## Samples\n\nGreedy, at most 60 tokens; `>>>` marks where the model begins.\n\n" + "\n".join(shown)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"
