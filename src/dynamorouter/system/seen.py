"""Which rows a system has learned from, as hashes, so that whatever scores it can leave them out.

A row counts by its normalised text and pair (``tasks.text.text_key``), under whatever task it comes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dynamorouter.errors import LibraryError
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.text import text_key
from dynamorouter.utils.files import read_form, write_json

SEEN, FORMAT = "seen.json", 1
"""The file, and the version of its form: ``rows`` has the hashes of each expert, 8 bytes each, as base64."""
Hashes = NDArray[np.uint64]


class SeenRows:
    """The rows that experts and the router of a system were trained, chosen or calibrated on.

    Args:
        by_expert: hashes of rows, sorted, by the name of the expert whose task they are of.
    """

    def __init__(self, by_expert: Mapping[str, Hashes] | None = None) -> None:
        self.by_expert: dict[str, Hashes] = dict(by_expert or {})

    def add(self, expert: str, records: Iterable[Record]) -> None:
        """Remember rows of an expert's task."""
        before = self.by_expert.get(expert, np.zeros(0, dtype=np.uint64))
        self.by_expert[expert] = np.union1d(before, row_hashes(records))

    def unseen(self, records: Sequence[Record]) -> list[Record]:
        """Return the rows that nothing was learned from, in their order."""
        if not self.by_expert:
            return list(records)
        seen = np.isin(row_hashes(records), np.concatenate(list(self.by_expert.values())))
        return [record for record, is_seen in zip(records, seen, strict=True) if not is_seen]

    @staticmethod
    def load(system: Path) -> SeenRows:
        """Read what lies in a saved system's folder; systems of earlier versions have nothing.

        Raises:
            LibraryError: the file is damaged.
        """
        path = system / SEEN
        if not path.is_file():
            return SeenRows()
        texts = read_form(path, format=FORMAT, entries={"rows": dict})["rows"]
        try:
            return SeenRows({name: _hashes(base64.b64decode(text)) for name, text in texts.items()})
        except (TypeError, ValueError) as error:
            raise LibraryError(
                f"{path} is damaged ({error}); restore it from a copy, or delete it: seen rows are unknown then"
            ) from error

    def save(self, system: Path) -> None:
        """Write the hashes into a system's folder; where none are known, what lies there stays."""
        if self.by_expert:
            rows = {
                name: base64.b64encode(hashes.astype("<u8").tobytes()).decode()
                for name, hashes in self.by_expert.items()
            }
            write_json(system / SEEN, {"format": FORMAT, "rows": rows})


def row_hashes(records: Iterable[Record]) -> Hashes:
    """Return a hash of 64 bits for each row."""
    digests = b"".join(
        hashlib.blake2b(text_key(record.text, record.pair).encode("utf-8", "surrogatepass"), digest_size=8).digest()
        for record in records
    )
    return _hashes(digests)


def _hashes(raw: bytes) -> Hashes:
    return np.frombuffer(raw, dtype="<u8").astype(np.uint64)
