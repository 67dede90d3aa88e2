"""Train the small English pipeline that `complexity` falls back to, on the English Web Treebank (UD-EWT).

    python tools/train_english.py --data ../shared/data/ud_ewt --out runs/english --minutes 45

A convolutional token encoder over hashed features feeds three predictors: Penn tags (``tag_``), universal parts of
speech (``pos_``) and a transition parser, whose arcs also bound the sentences. The state that does best on the
validation part is kept, with averaged weights; training ends early when it has not improved for ``--patience``
rounds.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import spacy
from spacy.language import Language
from spacy.scorer import Scorer
from spacy.tokens import Doc
from spacy.training import Example
from spacy.training.batchers import minibatch_by_words
from spacy.vocab import Vocab
from thinc.api import Config, compounding, fix_random_seed

from english_card import card

PIPELINE = """
[nlp]
lang = "en"
pipeline = ["tok2vec", "tagger", "morphologizer", "parser"]

[components]

[components.tok2vec]
factory = "tok2vec"

[components.tok2vec.model]
@architectures = "spacy.Tok2Vec.v2"

[components.tok2vec.model.embed]
@architectures = "spacy.MultiHashEmbed.v2"
width = ${{system.width}}
attrs = ["NORM", "PREFIX", "SUFFIX", "SHAPE"]
rows = {rows}
include_static_vectors = false

[components.tok2vec.model.encode]
@architectures = "spacy.MaxoutWindowEncoder.v2"
width = ${{system.width}}
depth = {depth}
window_size = 1
maxout_pieces = 3

[components.tagger]
factory = "tagger"

[components.tagger.model]
@architectures = "spacy.Tagger.v2"

[components.tagger.model.tok2vec]
@architectures = "spacy.Tok2VecListener.v1"
width = ${{system.width}}

[components.morphologizer]
factory = "morphologizer"

[components.morphologizer.model]
@architectures = "spacy.Tagger.v2"

[components.morphologizer.model.tok2vec]
@architectures = "spacy.Tok2VecListener.v1"
width = ${{system.width}}

[components.parser]
factory = "parser"
min_action_freq = 20

[components.parser.model]
@architectures = "spacy.TransitionBasedParser.v2"
state_type = "parser"
extra_state_tokens = false
hidden_width = 96
maxout_pieces = 2
use_upper = true

[components.parser.model.tok2vec]
@architectures = "spacy.Tok2VecListener.v1"
width = ${{system.width}}

[system]
width = {width}
"""


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence of the treebank; `head` of a token is the place of its governor, its own for the root."""

    document: str
    words: list[str]
    spaces: list[bool]
    tags: list[str]
    parts: list[str]
    heads: list[int]
    labels: list[str]


def main() -> None:
    """Train, keep the best state, measure it and write it with its card."""
    args = _arguments()
    fix_random_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    train, validation = (read_sentences(args.data / f"{part}.jsonl") for part in ("train", "validation"))
    if args.minutes:
        fit(build(args.width, args.depth, args.rows), train, validation, args=args)
    out = args.out / "pipeline"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(args.out / "best", out)
    trim(out)
    measured = {
        "treebank": {"train_sentences": len(train), "validation_sentences": len(validation)},
        **measure(spacy.load(out), validation),
        **json.loads((args.out / "kept.json").read_text(encoding="utf-8")),
    }
    (out / "measured.json").write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    (out / "README.md").write_text(card(measured, size=size), encoding="utf-8")
    print(f"written to {out}, {size / 1e6:.2f} MB:", json.dumps(measured["validation"]), flush=True)


def read_sentences(path: Path) -> list[Sentence]:
    """Read one part of the treebank; the spaces between tokens are those of the sentence's text."""
    found = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        if not line.strip():
            continue
        row = json.loads(line)
        heads = [head - 1 if head else place for place, head in enumerate(row["heads"])]
        labels = ["ROOT" if label == "root" else label for label in row["deprels"]]
        found.append(
            Sentence(
                document=row["sent_id"].rpartition("-")[0],
                words=row["tokens"],
                spaces=_spaces(row["tokens"], row["text"]),
                tags=row["xpos"],
                parts=row["upos"],
                heads=heads,
                labels=labels,
            )
        )
    return found


def build(width: int, depth: int, rows: Sequence[int]) -> Language:
    """Return the untrained pipeline."""
    text = PIPELINE.format(width=width, depth=depth, rows=list(rows))
    nlp = spacy.util.load_model_from_config(Config().from_str(text), auto_fill=True)
    nlp.meta.update(
        name="dynamorouter_english",
        version="1.0.0",
        license="CC BY-SA 4.0",
        description="Tags, parts of speech and dependencies of English, trained on UD-EWT",
        url="https://universaldependencies.org/treebanks/en_ewt/",
    )
    return nlp


def reference(vocab: Vocab, sentences: Sequence[Sentence]) -> Doc:
    """Return sentences in a row as one annotated document."""
    heads: list[int] = []
    for sentence in sentences:
        before = len(heads)
        heads += [before + head for head in sentence.heads]
    return Doc(
        vocab,
        words=[word for sentence in sentences for word in sentence.words],
        spaces=[space for sentence in sentences for space in (*sentence.spaces[:-1], True)],
        tags=[tag for sentence in sentences for tag in sentence.tags],
        pos=[part for sentence in sentences for part in sentence.parts],
        heads=heads,
        deps=[label for sentence in sentences for label in sentence.labels],
        sent_starts=[place == 0 for sentence in sentences for place in range(len(sentence.words))],
    )


def fit(nlp: Language, train: Sequence[Sentence], validation: Sequence[Sentence], *, args: argparse.Namespace) -> None:
    """Train until the minutes or the patience are over; ``best`` holds the best state and ``kept.json`` says which."""
    started = time.monotonic()
    chance = random.Random(args.seed)
    sample = [Example(nlp.make_doc(doc.text), doc) for doc in _documents(nlp.vocab, train, chance)]
    optimizer = nlp.initialize(lambda: sample)
    optimizer.learn_rate = args.lr
    sizes: Any = compounding(args.batch[0], args.batch[1], 1.002)
    deadline = started + args.minutes * 60
    best, best_round, rounds = -1.0, 0, 0
    while time.monotonic() < deadline and rounds - best_round < args.patience:
        rounds += 1
        losses: dict[str, float] = {}
        examples = [_example(nlp, doc, chance, args.lower) for doc in _documents(nlp.vocab, train, chance)]
        for batch in minibatch_by_words(examples, size=sizes):
            nlp.update(batch, sgd=optimizer, losses=losses, drop=args.dropout)
            if time.monotonic() >= deadline:
                break
        with nlp.use_params(optimizer.averages):
            scores = _gold_scores(nlp, validation)
            if scores["uas"] > best:
                best, best_round = scores["uas"], rounds
                nlp.to_disk(args.out / "best")
        left = (deadline - time.monotonic()) / 60
        kept = {
            "rounds": rounds,
            "best_round": best_round,
            "minutes": round(args.minutes - left, 1),
            "options": {name: value for name, value in vars(args).items() if name not in {"data", "out"}},
        }
        (args.out / "kept.json").write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
        print(rounds, {name: round(value, 4) for name, value in scores.items()}, f"{left:.1f} min left", flush=True)


def measure(nlp: Language, validation: Sequence[Sentence]) -> dict[str, Any]:
    """Return scores on the validation part: gold tokens, raw sentences, and sentence bounds in whole documents."""
    raw = []
    for sentence in validation:
        gold = reference(nlp.vocab, [sentence])
        raw.append(Example(nlp(gold.text), gold))
    whole = []
    for sentences in _grouped(validation):
        gold = reference(nlp.vocab, sentences)
        whole.append(Example(nlp(gold.text), gold))
    bounds = Scorer.score_spans(whole, "sents", getter=lambda doc, _: doc.sents, has_annotation=lambda doc: True)
    return {
        "validation": {
            "gold_tokens": _rounded(_gold_scores(nlp, validation)),
            "raw_text": _rounded(_scores(raw)),
            "sentence_f1_whole_documents": round(bounds["sents_f"], 4),
        }
    }


def trim(folder: Path) -> None:
    """Keep only the labels in the string table: the words of the treebank are not needed and not passed on."""
    pipes: list[Any] = [pipe for _, pipe in spacy.load(folder).pipeline]
    labels = {label for pipe in pipes[1:] for label in pipe.labels}
    labels |= {str(part) for label in labels for part in (label.partition("-")[2], label.partition("=")[2]) if part}
    labels |= {"ROOT", "dep"}
    (folder / "vocab" / "strings.json").write_text(json.dumps(sorted(labels), indent=0) + "\n", encoding="utf-8")


def _gold_scores(nlp: Language, sentences: Sequence[Sentence]) -> dict[str, float]:
    """Return scores with the treebank's tokens, one sentence a document."""
    golds = [reference(nlp.vocab, [sentence]) for sentence in sentences]
    plain = [Doc(nlp.vocab, words=s.words, spaces=[*s.spaces[:-1], True]) for s in sentences]
    found = nlp.pipe(plain, batch_size=64)
    return _scores([Example(doc, gold) for doc, gold in zip(found, golds, strict=True)])


def _scores(examples: list[Example]) -> dict[str, float]:
    """Return the scores of aligned parses; ``uas`` and ``las`` leave punctuation out, ``_all`` count it."""
    deps: dict[str, Any] = {}
    for suffix, ignored in (("", ("punct",)), ("_all", ())):
        scored = Scorer.score_deps(examples, "dep", getter=_label, ignore_labels=ignored)
        deps |= {f"uas{suffix}": scored["dep_uas"], f"las{suffix}": scored["dep_las"]}
    tags = Scorer.score_token_attr(examples, "tag")["tag_acc"]
    parts = Scorer.score_token_attr(examples, "pos", getter=_part)["pos_acc"]
    return {**deps, "tag_accuracy": tags, "pos_accuracy": parts}


def _label(token: Any, _: str) -> str:
    return str(token.dep_)


def _part(token: Any, _: str) -> str:
    return str(token.pos_)


def _example(nlp: Language, gold: Doc, chance: random.Random, lower: float) -> Example:
    """Return a training example; some are in lower case throughout, as prompts often are."""
    words = [token.text for token in gold]
    if chance.random() < lower:
        words = [word.lower() for word in words]
    return Example(Doc(nlp.vocab, words=words, spaces=[bool(token.whitespace_) for token in gold]), gold)


def _documents(vocab: Vocab, sentences: Sequence[Sentence], chance: random.Random) -> list[Doc]:
    """Return neighbouring sentences of a document, one to four at a time, in a new order."""
    docs = []
    for group in _grouped(sentences):
        start = 0
        while start < len(group):
            size = chance.choice((1, 1, 2, 3, 4))
            docs.append(reference(vocab, group[start : start + size]))
            start += size
    chance.shuffle(docs)
    return docs


def _grouped(sentences: Sequence[Sentence]) -> Iterator[list[Sentence]]:
    groups: dict[str, list[Sentence]] = {}
    for sentence in sentences:
        groups.setdefault(sentence.document, []).append(sentence)
    return iter(groups.values())


def _spaces(words: Sequence[str], text: str) -> list[bool]:
    """Return whether a space follows each word in ``text``; where the words are not found in it, one does."""
    spaces, place = [], 0
    for word in words:
        at = text.find(word, place)
        if at < 0:
            spaces.append(True)
            continue
        place = at + len(word)
        spaces.append(place >= len(text) or text[place].isspace())
    return spaces


def _rounded(scores: dict[str, float]) -> dict[str, float]:
    return {name: round(score, 4) for name, score in scores.items()}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl and validation.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="folder for the best state and for pipeline/")
    parser.add_argument("--minutes", type=float, default=45.0, help="0 measures the best state again")
    parser.add_argument("--patience", type=int, default=6, help="rounds without a better score")
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--rows", type=int, nargs=4, default=[3500, 1000, 2000, 1500], help="hash rows of each feature")
    parser.add_argument("--dropout", type=float, default=0.15)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, nargs=2, default=[200, 600], help="words a step, at first and at last")
    parser.add_argument("--lower", type=float, default=0.1, help="share of examples in lower case")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
