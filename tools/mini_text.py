"""The text that ``base=mini`` is trained on, as documents with a part held out of each source.

Only public-domain, CC BY, CC BY-SA, MIT and CDLA text is read. What is held out is decided by fixed rules (whole
books, whole articles, whole rows), then checked by text: a training document that shares runs of words with held-out
text is left out.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HELD_OUT_BOOKS = ("carroll-alice", "burgess-busterbrown", "shakespeare-macbeth")
HELD_OUT_GSM8K = 500
RUN = 13
"""Words in a row that two texts must share to count as the same passage."""
SHARED = 0.1
"""Share of such runs from which on a training document counts as a copy."""
SIZES = ("train_documents", "train_bytes", "held_out_documents", "held_out_bytes")
VERSE = ("blake-", "milton-", "shakespeare-", "whitman-")


@dataclass(frozen=True, slots=True)
class Document:
    """One book, article, story or row.

    Attributes:
        source: the source it belongs to.
        text: what is learned.
        held_out: whether it is only ever measured on.
    """

    source: str
    text: str
    held_out: bool


@dataclass(frozen=True, slots=True)
class Corpus:
    """All documents, and what the check by text found.

    Attributes:
        train: documents to learn.
        held_out: documents to measure on.
        dropped: per source, training documents left out as copies of held-out ones or of one another.
        overlap: per source, share of the held-out runs of `RUN` words that training text still contains.
    """

    train: list[Document]
    held_out: list[Document]
    dropped: dict[str, int]
    overlap: dict[str, float]


def read_corpus(data: Path) -> Corpus:
    """Read every source below ``data``, split it, and take copies of held-out text out of the training part."""
    found = [document for read in READERS for document in read(data) if document.text.strip()]
    held_out = [document for document in found if document.held_out]
    held_runs: set[int] = set().union(*(set(_runs(document.text)) for document in held_out))
    seen = {_digest(document.text) for document in held_out}
    train: list[Document] = []
    dropped: Counter[str] = Counter()
    met: set[int] = set()
    for document in found:
        if document.held_out:
            continue
        digest, runs = _digest(document.text), list(_runs(document.text))
        shared = [run for run in runs if run in held_runs]
        if digest in seen or (runs and len(shared) >= SHARED * len(runs)):
            dropped[document.source] += 1
            continue
        seen.add(digest)
        met.update(shared)
        train.append(document)
    return Corpus(train, held_out, dict(dropped), _overlap(held_out, met))


def describe(corpus: Corpus) -> dict[str, dict[str, float]]:
    """Return, per source, documents and bytes in both parts, copies dropped and the overlap that is left."""
    rows: dict[str, dict[str, float]] = {}
    for part, documents in (("train", corpus.train), ("held_out", corpus.held_out)):
        for document in documents:
            row = rows.setdefault(document.source, dict.fromkeys(SIZES, 0))
            row[f"{part}_documents"] += 1
            row[f"{part}_bytes"] += len(document.text.encode())
    for source, row in rows.items():
        row["dropped_documents"] = corpus.dropped.get(source, 0)
        row["overlap"] = corpus.overlap.get(source, 0.0)
    return rows


def question_text(question: str, answer: str) -> str:
    """Return one arithmetic question with its worked answer as the model reads it."""
    return f"Question: {question.strip()}\nAnswer: {answer.strip()}"


def code_text(task: str, code: str) -> str:
    """Return one programming task with its solution as the model reads it."""
    return f"# {task.strip()}\n{code.strip()}"


def _gutenberg(data: Path) -> Iterator[Document]:
    for path in sorted((data / "lm_text" / "gutenberg").glob("*.txt")):
        text = _plain(path)
        text = _tidy(text) if path.stem.startswith(VERSE) else _unwrap(text)
        yield Document("gutenberg", text, path.stem in HELD_OUT_BOOKS)


def _wikitext(data: Path) -> Iterator[Document]:
    """Read articles with spaces of the tokenised text undone; sentences with unknown words are left out."""
    for name in ("wikitext2.valid.txt", "wikitext2.test.txt"):
        text = _plain(data / "lm_text" / name)
        for article in re.split(r"\n(?= = [^=\n]+ = \n)", text):
            title = article.strip().split("\n")[0]
            yield Document("wikitext", _detokenize(article), _one_in(20, title))


def _tinystories(data: Path) -> Iterator[Document]:
    stories = _plain(data / "lm_text" / "tinystories_sample.txt").split("<|endoftext|>")
    for story in stories[:-1]:  # the last one is cut off
        yield Document("tinystories", _tidy(story), _one_in(25, story))


def _tinyshakespeare(data: Path) -> Iterator[Document]:
    text = _plain(data / "lm_text" / "tinyshakespeare.txt")
    cut = text.index("\n\n", len(text) * 19 // 20) + 2
    yield Document("tinyshakespeare", _tidy(text[:cut]), False)
    yield Document("tinyshakespeare", _tidy(text[cut:]), True)


def _gsm8k(data: Path) -> Iterator[Document]:
    rows = _rows(data / "gsm8k" / "train.jsonl")
    for place, row in enumerate(rows):
        yield Document("gsm8k", question_text(row["question"], row["answer"]), place >= len(rows) - HELD_OUT_GSM8K)


def _mbpp(data: Path) -> Iterator[Document]:
    for part in ("train", "validation"):
        for row in _rows(data / "mbpp" / f"{part}.jsonl"):
            code = row["code"].replace("\r\n", "\n").replace("\r", "\n")
            yield Document("mbpp", code_text(row["text"], code), part == "validation")


def _ud_ewt(data: Path) -> Iterator[Document]:
    for part in ("train", "validation"):
        texts: dict[str, list[str]] = defaultdict(list)
        for row in _rows(data / "ud_ewt" / f"{part}.jsonl"):
            texts[row["sent_id"].rpartition("-")[0]].append(row["text"])
        for sentences in texts.values():
            yield Document("ud_ewt", " ".join(sentences), part == "validation")


READERS: tuple[Callable[[Path], Iterable[Document]], ...] = (
    _gutenberg,
    _wikitext,
    _tinystories,
    _tinyshakespeare,
    _gsm8k,
    _mbpp,
    _ud_ewt,
)


def _plain(path: Path) -> str:
    """Return a file's text; two of the books are in Latin-1, in which every byte is a character."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    return text.replace("\r\n", "\n")


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def _tidy(text: str) -> str:
    """Return the text without spaces at line ends and with at most one empty line in a row."""
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", text)).strip()


def _unwrap(text: str) -> str:
    """Return prose with each paragraph on one line; short lines, such as headings and verse, stay lines."""
    paragraphs = []
    for paragraph in _tidy(text).split("\n\n"):
        lines = paragraph.split("\n")
        prose = all(len(line) >= 45 for line in lines[:-1])
        paragraphs.append(re.sub(r" {2,}", " ", (" " if prose else "\n").join(lines)))
    return "\n\n".join(paragraphs)


def _detokenize(article: str) -> str:
    lines = []
    for line in article.split("\n"):
        kept = [part for part in re.split(r"(?<= [.!?]) (?=[A-Z\"])", line.strip()) if "<unk>" not in part]
        text = re.sub(r" @([-,.])@ ", r"\1", " ".join(kept))
        text = re.sub(r'" ([^"]*) "', r'"\1"', text)
        text = re.sub(r" ([,.;:!?)\]%]|'s\b|n't\b)", r"\1", text)
        lines.append(re.sub(r"([(\[$£]) ", r"\1", text))
    return _tidy("\n".join(lines))


def _one_in(share: int, text: str) -> bool:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % share == 0


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _digest(text: str) -> str:
    return hashlib.sha256(" ".join(_words(text)).encode()).hexdigest()


def _runs(text: str) -> Iterator[int]:
    words = _words(text)
    return (hash(" ".join(words[start : start + RUN])) for start in range(len(words) - RUN + 1))


def _overlap(held_out: list[Document], met: set[int]) -> dict[str, float]:
    total: Counter[str] = Counter()
    shared: Counter[str] = Counter()
    for document in held_out:
        runs = list(_runs(document.text))
        total[document.source] += len(runs)
        shared[document.source] += sum(run in met for run in runs)
    return {source: round(shared[source] / max(1, total[source]), 5) for source in total}
