"""What a run writes while it goes on: a JSONL log always, TensorBoard and Weights & Biases when asked.

Each line of the log is one object: ``{"step": 12, "phase": "experts", ...values}``. The log's size in bytes is part
of a checkpoint, so that a resumed run cuts off what was written after it and goes on as if never interrupted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from dynamorouter.errors import DataError, MissingExtraError
from dynamorouter.utils.options import Options


class Sink(Protocol):
    """A further place that numbers go to."""

    def log(self, step: int, phase: str, values: Mapping[str, Any]) -> None:
        """Take the numbers of one step."""

    def close(self) -> None:
        """Flush and let go."""


class Tracker:
    """Writes the log of a run, and whatever else the settings ask for.

    Args:
        folder: the run's folder; the log is ``folder/log.jsonl``.
        settings: further places to log to; ``None`` for none.
        resume_at: size in bytes that the log is cut to before going on; ``None`` starts a new log.
        config: plain values shown beside the run by services that can.

    Raises:
        MissingExtraError: a package that ``settings`` asks for is not installed.
        DataError: the log is shorter than ``resume_at``, so it is not the one the checkpoint belongs to.
    """

    def __init__(
        self,
        folder: str | Path,
        settings: TrackingConfig | None = None,
        *,
        resume_at: int | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(folder) / "log.jsonl"
        self.sinks: list[Sink] = []
        if settings is not None and settings.tensorboard:
            self.sinks.append(_TensorBoard(self.path.parent / "tensorboard"))
        if settings is not None and settings.wandb:
            self.sinks.append(_WandB(self.path.parent, settings, config or {}))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if resume_at is not None:
            self._cut(resume_at)
        self._file = self.path.open("w" if resume_at is None else "a", encoding="utf-8", buffering=1)

    def _cut(self, size: int) -> None:
        present = self.path.stat().st_size if self.path.exists() else 0
        if present < size:
            raise DataError(
                f"{str(self.path)!r} holds {present} bytes, but the checkpoint was made when it held {size}; "
                "put the log back, or start again in another folder"
            )
        if present > size:
            with self.path.open("r+b") as file:
                file.truncate(size)

    def log(self, step: int, phase: str, **values: Any) -> None:
        """Write one line; numbers that are not finite are written as strings, as JSON has none."""
        line = {"step": step, "phase": phase, **{key: _plain(value) for key, value in values.items()}}
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        for sink in self.sinks:
            sink.log(step, phase, values)

    def offset(self) -> int:
        """Return the log's size in bytes, all lines so far being written."""
        self._file.flush()
        return self.path.stat().st_size

    def close(self) -> None:
        """Flush and close everything."""
        self._file.close()
        for sink in self.sinks:
            sink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _plain(value: Any) -> Any:
    """Return ``value`` as JSON: scalars of numpy and torch become numbers, NaN and infinities strings."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return str(value) if isinstance(value, Path) else value


def _scalars(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}/{key}")
        else:
            plain = value.item() if hasattr(value, "item") else value
            if isinstance(plain, (int, float)) and not isinstance(plain, bool):
                yield f"{prefix}/{key}", float(plain)


class _TensorBoard:
    """Event files under one folder."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("tracking.tensorboard=true", "tensorboard") from error
        self._writer: Any = SummaryWriter(str(folder))

    def log(self, step: int, phase: str, values: Mapping[str, Any]) -> None:
        for name, value in _scalars(values, phase):
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _WandB:
    """A Weights & Biases run, offline unless the settings say otherwise."""

    def __init__(self, folder: Path, settings: TrackingConfig, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise _missing("tracking.wandb=true", "wandb") from error
        folder.mkdir(parents=True, exist_ok=True)
        self._run: Any = wandb.init(
            project=settings.project, name=settings.name, mode=settings.mode, dir=str(folder), config=dict(config)
        )

    def log(self, step: int, phase: str, values: Mapping[str, Any]) -> None:
        # Steps begin anew with each phase, which the service's own counter does not allow.
        self._run.log({f"{phase}/step": step, **dict(_scalars(values, phase))})

    def close(self) -> None:
        self._run.finish()


def _missing(setting: str, package: str) -> MissingExtraError:
    return MissingExtraError(
        f"{setting} needs the package {package!r}, which is not installed; "
        f"install it with: pip install 'dynamorouter[track]'"
    )


class TrackingConfig(Options):
    """What is written beside ``log.jsonl``, which always is."""

    tensorboard: bool = False
    """Write event files under ``OUT/tensorboard``."""
    wandb: bool = False
    """Log to Weights & Biases."""
    project: str = "dynamorouter"
    """Weights & Biases project."""
    name: str | None = None
    """Name of the run there; ``null`` lets the service choose."""
    mode: Literal["online", "offline"] = "offline"
    """Whether Weights & Biases is reached over the network."""
