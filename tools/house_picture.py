"""Draws the rooms of the package, one floor above the other, as docs/assets/house.svg.

The floors are those of the import contract in pyproject.toml, the captions those of the table in docs/architecture.md:

    python tools/house_picture.py
"""

from __future__ import annotations

import re
import tomllib
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "assets" / "house.svg"
WIDTH, FLOOR, GAP, ROOF, SIDE = 760, 26, 4, 54, 20
# Fills are light and every text stands on one, so that the picture reads on white and on black paper.
SHADES = ("#fde9c8", "#fde9c8", "#f3d9e4", "#e6dcf5", "#d9e6f2", "#ddf0dd", "#f4f4f4")


def contract() -> list[list[str]]:
    """Read the floors from the import contract, highest first, without the rooms that are still to come."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    built = {path.stem for path in (ROOT / "src" / "dynamorouter").iterdir() if path.is_dir() or path.suffix == ".py"}
    floors = [[room for room in re.findall(r"\w+", layer) if room in built] for layer in layers]
    return [rooms for rooms in floors if rooms]


def documented() -> list[dict[str, str]]:
    """Read the floors from the table in docs/architecture.md: of each floor, the caption by room."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = page.partition("## The house\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`\w.*?`) \| (.+) \|$", section, flags=re.MULTILINE)
    return [dict(zip(re.findall(r"\w+", rooms), captions.split(" · "), strict=True)) for rooms, captions in rows]


def picture(floors: list[dict[str, str]]) -> str:
    """Draw the floors, of each the caption by room, under a roof."""
    height = ROOF + len(floors) * (FLOOR + GAP) + SIDE
    middle, eaves = WIDTH // 2, ROOF - 2
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="DejaVu Sans, Arial, sans-serif" font-size="11.5">',
        f'  <path d="M{SIDE - 12} {eaves} L{middle} 4 L{WIDTH - SIDE + 12} {eaves} Z" fill="#8a5a00"/>',
        f'  <text x="{middle}" y="{eaves - 12}" text-anchor="middle" fill="#fff">imports run downward</text>',
    ]
    for number, captions in enumerate(floors):
        top = ROOF + GAP // 2 + number * (FLOOR + GAP)
        shade = SHADES[number * len(SHADES) // len(floors)]
        width = (WIDTH - 2 * SIDE - GAP * (len(captions) - 1)) // len(captions)
        box = f'y="{top}" width="{width}" height="{FLOOR}" rx="4" fill="{shade}" stroke="#555"'
        for place, (room, caption) in enumerate(captions.items()):
            left = SIDE + place * (width + GAP)
            lines += [
                f'  <rect x="{left}" {box}/>',
                f'  <text x="{left + 12}" y="{top + 17}" fill="#1f2d3d" font-weight="bold">{room}</text>',
                f'  <text x="{left + 96}" y="{top + 17}" fill="#333">{escape(caption.replace("`", ""))}</text>',
            ]
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(picture(documented()), encoding="utf-8")
