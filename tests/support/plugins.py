"""Distributions that exist for one test: a module, and the metadata by which it is found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

DIST_INFO = "Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"


def install(
    folder: Path,
    name: str,
    *,
    modules: Mapping[str, str],
    points: Mapping[str, Mapping[str, str]],
    version: str = "1.0",
) -> None:
    """Put a distribution into a folder that is, or will be, on the import path.

    Args:
        folder: where packages lie.
        name: of the distribution.
        modules: source by module name.
        points: by group without ``dynamorouter.``, the target of each name.
        version: of the distribution.
    """
    for module, source in modules.items():
        (folder / f"{module}.py").write_text(source, encoding="utf-8")
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(DIST_INFO.format(name=name, version=version), encoding="utf-8")
    lines = []
    for group, targets in points.items():
        lines += [f"[dynamorouter.{group}]", *(f"{key} = {target}" for key, target in targets.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
