"""The card of the small English pipeline, written from its measured figures."""

from __future__ import annotations

from typing import Any

HEAD = """\
---
language: en
license: cc-by-sa-4.0
library_name: spacy
---
# english

A small spaCy pipeline of our own, which measures the complexity of instructions where `en_core_web_sm` is not
installed: a convolutional token encoder over hashed features, a tagger, a predictor of parts of speech and a
transition parser.

This card and `measured.json` are written by `tools/train_english.py`.

## Data and licence

Trained on the Universal Dependencies English Web Treebank (UD-EWT; Silveira et al., 2014, and the UD English
developers; text from the English Web Treebank of the Linguistic Data Consortium),
<https://universaldependencies.org/treebanks/en_ewt/>, licensed **CC BY-SA 4.0**; the weights are given under the same
licence. No sentence of it is contained: the string table holds labels only. The state that did best on the validation
part was kept, so the figures below are of the part that chose it, not of a test set.
"""
LABELS = """\
## Labels

The labels are those of Universal Dependencies with English subtypes, and differ from the ClearNLP labels of
`en_core_web_sm`:

| meaning | here | `en_core_web_sm` |
| --- | --- | --- |
| root of a sentence | `ROOT` | `ROOT` |
| clause as modifier of a noun | `acl` | `acl` |
| relative clause | `acl:relcl`, `advcl:relcl` | `relcl` |
| adverbial clause | `advcl` | `advcl` |
| clause as object | `ccomp`, `xcomp` | `ccomp`, `xcomp` |
| clause as subject | `csubj`, `csubj:pass`, `csubj:outer` | `csubj`, `csubjpass` |
| clause under a preposition | `advcl` or `acl` with `mark` | `pcomp` |
| subject, passive subject | `nsubj`, `nsubj:pass`, `nsubj:outer` | `nsubj`, `nsubjpass` |
| object, indirect object | `obj`, `iobj` | `dobj`, `dative` |
| with a preposition | noun `obl`, `nmod`; preposition below it `case` | preposition `prep`; noun below it `pobj` |
| copula | predicate is the head, verb `cop` | verb is the head, predicate `attr`, `acomp` |
| coordination | `conj`; `cc` below the later part | `conj`; `cc` below the first part |

`tag_` is a Penn tag (`NNP`, `VBD`, ...) and `pos_` a universal part of speech (`PROPN`, `VERB`, ...) in both. There
is no entity recogniser and no lemmatizer here; runs of `PROPN` stand in for entities. Sentence bounds are the
parser's.
"""
SAFE = """\
## Files

Weights, table of features and tokenizer are msgpack, the rest is JSON and an INI-like `config.cfg` that names only
spaCy's own
functions: there is no pickle and no code among the files, and nothing in them is executed on loading.
"""
LIMITS = """\
## Limits

- Trained on 200,000 words of blogs, mail, newsgroups, answers and reviews, so it knows code, formulas and technical
  terms badly.
- Pretrained vectors are not used; rare names are often taken for other nouns.
- Sentences are bounded by the parser and are found worse than parses; see above.
"""
NAMES = {
    "uas": "UAS, punctuation left out",
    "las": "LAS, punctuation left out",
    "uas_all": "UAS, punctuation counted",
    "las_all": "LAS, punctuation counted",
    "tag_accuracy": "Penn tags, accuracy",
    "pos_accuracy": "parts of speech, accuracy",
}


def card(measured: dict[str, Any], *, size: int) -> str:
    """Return the card, every figure of which is in ``measured`` but for the size of the files in bytes."""
    return "\n".join([HEAD, _scores(measured, size), LABELS, SAFE, LIMITS])


def _scores(measured: dict[str, Any], size: int) -> str:
    found, options = measured["validation"], measured["options"]
    lines = ["| | gold tokens | raw text |", "| --- | --- | --- |"]
    lines += [f"| {NAMES[key]} | {found['gold_tokens'][key]:.4f} | {found['raw_text'][key]:.4f} |" for key in NAMES]
    return (
        f"## Measured\n\nOn all {measured['treebank']['validation_sentences']:,} validation sentences of UD-EWT, one "
        "at a time, with the treebank's\ntokens, and as raw text that spaCy's tokenizer divides (scored by F1: a token "
        "that does not align is missed).\n\n" + "\n".join(lines) + "\n\n"
        f"Sentence bounds in whole raw documents: F1 {found['sentence_f1_whole_documents']:.4f}.\n\n"
        f"Trained on {measured['treebank']['train_sentences']:,} sentences on one processor thread for "
        f"{measured['minutes']} minutes, {measured['rounds']} rounds,\nthe state after round {measured['best_round']} "
        f"kept; width {options['width']}, depth {options['depth']}, dropout {options['dropout']}, "
        f"{options['lower']:.0%} of the examples in lower case. {size / 1e6:.1f} MB without this card.\n"
    )
