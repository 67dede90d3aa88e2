"""spaCy behind one small class: which pipeline is there, and the features it gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.resources import as_file, files
from typing import TYPE_CHECKING, Any

from dynamorouter.data.complexity.features import Features, measure
from dynamorouter.errors import ConfigError, MissingExtraError
from dynamorouter.utils.progress import SILENT, Progress

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Doc

INSTALLED = "en_core_web_sm"
"""The pipeline of spaCy's own that is taken when it is installed."""
OWN = "models/english"
"""The pipeline that comes with this package."""
PIPELINES = ("auto", "own", INSTALLED)
_UNUSED = ("lemmatizer", "textcat", "textcat_multilabel")
_BATCH = 256

Pair = tuple[str, str | None]
"""An instruction and its input."""


class Analyzer:
    """Parses instructions and measures them.

    Args:
        nlp: a spaCy pipeline with a tagger and a parser, in either label scheme.
        name: what reports call it.

    Raises:
        ConfigError: the pipeline has no parser.
    """

    def __init__(self, nlp: Language, *, name: str) -> None:
        if "parser" not in nlp.pipe_names:
            raise ConfigError(
                f"spaCy pipeline {name!r} has {', '.join(nlp.pipe_names) or 'nothing'} but no parser, which depths and "
                f"clauses need; install {INSTALLED} with 'python -m spacy download {INSTALLED}'"
            )
        self.nlp = nlp
        self.name = name

    @staticmethod
    def load(pipeline: str = "auto") -> Analyzer:
        """Load a pipeline.

        Args:
            pipeline: ``auto`` takes an installed ``en_core_web_sm`` and else the one that comes with this package;
                ``own`` the latter; any other name or folder is loaded as spaCy does.

        Raises:
            MissingExtraError: spaCy is not installed.
            ConfigError: the pipeline is not there or has no parser.
        """
        spacy = _spacy()
        if pipeline == "auto":
            pipeline = INSTALLED if spacy.util.is_package(INSTALLED) else "own"
        try:
            if pipeline == "own":
                with as_file(files("dynamorouter").joinpath(OWN)) as folder:
                    meta = spacy.util.load_meta(folder / "meta.json") if (folder / "meta.json").is_file() else {}
                    name = f"{meta.get('lang', 'en')}_{meta.get('name', 'own')}-{meta.get('version', '0')}"
                    return Analyzer(spacy.load(folder, exclude=_UNUSED), name=name)
            nlp = spacy.load(pipeline, exclude=_UNUSED)
        except (OSError, ValueError, ImportError) as error:  # not there, of other parts, or of another version
            raise ConfigError(
                f"complexity.pipeline is {pipeline!r}, which spaCy cannot load ({error}); allowed: "
                f"{', '.join(PIPELINES)}, or the folder of a pipeline"
            ) from error
        return Analyzer(nlp, name=f"{nlp.meta['lang']}_{nlp.meta['name']}-{nlp.meta['version']}")

    def parse(self, texts: Sequence[str]) -> Iterator[Doc]:
        """Parse texts in order."""
        return self.nlp.pipe(texts, batch_size=_BATCH)

    def features(self, pairs: Sequence[Pair], *, progress: Progress = SILENT) -> Iterator[Features]:
        """Measure instructions, each with its input if it has one, in order.

        Args:
            pairs: instructions and inputs; each is parsed by itself.
            progress: advanced by 1 after each instruction.
        """
        parts = [part for text, more in pairs for part in (text, more) if part]
        docs = self.parse(parts)
        for text, more in pairs:
            measures = measure([next(docs) for part in (text, more) if part])
            progress.advance()
            yield measures


def _spacy() -> Any:
    try:
        import spacy
    except ImportError as error:
        raise MissingExtraError(
            "measuring the complexity of instructions needs spaCy; install it with "
            "`pip install 'dynamorouter[complexity]'` (a fitted router runs without it)"
        ) from error
    return spacy
