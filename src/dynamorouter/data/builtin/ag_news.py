"""Built-in news-topic rows: hand-written headlines and leads in the manner of wire agencies, widened by combination.

The cores stand in ``ag_news_cores.txt`` under ``[label]`` headings. They are split first and varied afterwards, so no core is in both
splits. Datelines, agencies and layouts are drawn alike for all labels and so do not give the topic away.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType

LABELS = ("World", "Sports", "Business", "Sci-Tech")
SEED = 20240612
ROWS: Mapping[str, int] = MappingProxyType({"train": 1200, "validation": 200})
VALIDATION_SHARE = 7
"""One core in this many belongs to validation."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.replace("_", " ") for word in text.split())


_LAST = _words(
    "Abara Adler Bakker Barros Castillo Chen Dalton Danso Eriksen Fenwick Ferrara Gardiner Haddad Hollis Ibarra Ivanov Jansen Kaplan Kato "
    "Keane Kovacs Lambert Larsen Mansour Marek Moreno Nakata Novak Okafor Olsen Petrov Quigley Rahman Romero Sandoval Shah Silva Sorensen "
    "Tanaka Thapa Tran Vance Vega Walsh Weber Whitlock Yilmaz Zhang"
)
_FIRST = _words(
    "Adam Aisha Alan Ana Andre Carlos Chris Daniel David Elena Emma Erik Felix Grace Hans Helen Igor Ivan James Jason Jorge Juan Karen Kevin "
    "Lars Laura Li Linda Lucas Luis Maria Mark Martin Mike Miguel Nadia Nick Omar Paul Peter Rosa Sam Sara Steve Tom Victor Yuki"
)
_COUNTRIES = _words(
    "Argentina Australia Austria Bangladesh Belgium Bolivia Brazil Bulgaria Canada Chile China Colombia Croatia Denmark Egypt Ethiopia Finland "
    "France Germany Ghana Greece Hungary India Indonesia Iran Ireland Italy Japan Kenya Malaysia Mexico Morocco Nepal Nigeria Norway Pakistan Peru "
    "Poland Portugal Romania Russia South_Africa South_Korea Spain Sweden Switzerland Thailand Turkey Ukraine Venezuela Vietnam"
)
_CAPITALS = _words(
    "Amman Ankara Athens Baghdad Bangkok Beijing Beirut Berlin Brussels Bucharest Cairo Caracas Damascus Dhaka Geneva Havana Islamabad Jakarta Kabul "
    "Kathmandu Khartoum Kiev Lagos Lima London Madrid Manila Mexico_City Moscow Nairobi New_Delhi Oslo Ottawa Paris Prague Rome Santiago Seoul "
    "Stockholm Tehran Tokyo Vienna Warsaw"
)
_CITIES = _words(
    "Atlanta Baltimore Boston Buffalo Charlotte Chicago Cincinnati Cleveland Dallas Denver Detroit Houston Kansas_City Los_Angeles Miami Milwaukee "
    "Minneapolis Montreal Nashville New_Orleans New_York Oakland Philadelphia Phoenix Pittsburgh Portland San_Diego San_Francisco Seattle "
    "St._Louis Tampa Toronto Vancouver"
)
_COMPANIES = _words(
    "Altamont Amberline Arcadis_Grove Ashgrove Balfour_Crane Beaconfield Bluecrest Brightwell Calderon Castlegate Cobaltine Corvane Dorset_Lane "
    "Eastbrook Fairmont_Dale Ferrostar Glenhaven Granite_Peak Halvorsen Harwick Ironbridge Kestrel Kingsmere Lakeshore Larkfield Lumenta Marlowe "
    "Meridian Nordhaven Northgate Orbis Palisade Pinecrest Quantrel Redwood_Union Rivermark Sterling_Hale Summit Telvara Tridex Unifor Vantage "
    "Velocom Westmark Zentara"
)
_DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
_MONTHS = _words("January February March April May June July August September October November December")
_NTH = _words("second third fourth fifth sixth seventh eighth ninth")
_SLOTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "last": _LAST, "last2": _LAST, "first": _FIRST, "first2": _FIRST, "country": _COUNTRIES, "country2": _COUNTRIES,
        "capital": _CAPITALS, "capital2": _CAPITALS, "city": _CITIES, "city2": _CITIES, "company": _COMPANIES, "company2": _COMPANIES,
        "day": _DAYS, "month": _MONTHS, "nth": _NTH,
        "nick": _words("Tigers Lions Eagles Hawks Rangers Kings Giants Bears Panthers Wolves Falcons Knights Royals Stars Pirates Cardinals"),
        "animal": _words("honeybee cow chimpanzee dog rat chicken sea_urchin pufferfish poplar_tree mosquito"),
        "habit": ("long walks", "naps", "coffee breaks", "meals of oily fish", "puzzle evenings"),
    }
)  # fmt: skip
_NUMBERS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {"n": (4, 9), "low": (1, 3), "nn": (12, 78), "nn2": (11, 19), "hundreds": (110, 980), "pct": (6, 58)}
)
_AGENCIES = ("Agency", "Newswire", "UNP", "GNA", "Intl. Press", "NWS", "Wire", "TPA")


@cache
def _cores() -> dict[str, tuple[tuple[str, ...], ...]]:
    """Return the cores by label: headline, lead and, in some, a further sentence."""
    found: dict[str, list[tuple[str, ...]]] = {}
    label = ""
    for line in files(__package__).joinpath("ag_news_cores.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            label = line.strip("[]")
        elif line and not line.startswith("#"):
            found.setdefault(label, []).append(tuple(part.strip() for part in line.split(" | ")))
    return {name: tuple(items) for name, items in found.items()}


def split_cores(split: str) -> dict[str, list[tuple[str, ...]]]:
    """Return the cores of one split by label.

    Raises:
        ValueError: if ``split`` is neither ``train`` nor ``validation``.
    """
    if split not in ROWS:
        raise ValueError(f"built-in task 'ag_news' has no split {split!r}; allowed: {', '.join(ROWS)}; ask for one of them")
    kept: dict[str, list[tuple[str, ...]]] = {}
    for label, items in _cores().items():
        order = list(items)
        random.Random(f"{SEED}/{label}").shuffle(order)
        cut = len(order) // VALIDATION_SHARE
        kept[label] = order[:cut] if split == "validation" else order[cut:]
    return kept


def _draw(slot: str, drawn: dict[str, str], rng: random.Random) -> str:
    """Return the value of a slot: the same within one row, and never that of its twin (``city`` and ``city2``)."""
    if slot not in drawn:
        if slot == "bil":
            drawn[slot] = f"{rng.uniform(1.1, 24):.1f}"
        elif slot in _NUMBERS:
            drawn[slot] = str(rng.randint(*_NUMBERS[slot]))
        else:
            drawn[slot] = rng.choice([value for value in _SLOTS[slot] if value not in drawn.values()])
    return drawn[slot]


def _dateline(rng: random.Random) -> str:
    """Return the opening of a lead; none in about half the rows, and drawn without regard to the label."""
    place, agency = rng.choice(_CAPITALS + _CITIES), rng.choice(_AGENCIES)
    dated = f"{place.upper()}, {rng.choice(_MONTHS)} {rng.randint(1, 28)}"
    return rng.choice(("", "", "", "", f"{place.upper()} ({agency}) - ", f"{agency} - ", f"{place.upper()} - ", f"{dated} ({agency}) -- "))


def _cut(text: str, rng: random.Random) -> str:
    """Break a text off in its last third, as the summaries of feeds do."""
    words = text.split()
    return " ".join(words[: rng.randint(2 * len(words) // 3, len(words) - 1)]).rstrip(",.;") + " ..."


def _row(core: tuple[str, ...], rng: random.Random) -> str:
    """Lay out one core: slots filled, with or without headline, dateline, source, further sentence and ending."""
    drawn: dict[str, str] = {}
    headline, *body = (re.sub(r"\{(\w+)\}", lambda match: _draw(match[1], drawn, rng), part) for part in core)
    if len(body) > 1 and rng.random() < 0.4:
        body.pop()
    if rng.random() < 0.15:
        headline = headline.title().replace("'S ", "'s ")
    if rng.random() < 0.2:
        headline = f"{headline} ({rng.choice(_AGENCIES)})"
    lead = _dateline(rng) + " ".join(body)
    if rng.random() < 0.2:
        lead = _cut(lead, rng)
    return lead if rng.random() < 0.1 else f"{headline} {lead}"


def _normalised(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "", text.lower())


def rows(split: str) -> list[dict[str, object]]:
    """Return the rows of a split in the native columns ``text`` and ``label``, shuffled and with equal counts of all labels.

    Args:
        split: ``train`` or ``validation``.

    Raises:
        ValueError: if the split is unknown.
    """
    cores = split_cores(split)
    rng = random.Random(f"{SEED}/{split}")
    found: list[dict[str, object]] = []
    seen: set[str] = set()
    for label in LABELS:
        count, index = 0, 0
        while count < ROWS[split] // len(LABELS):
            text = _row(cores[label][index % len(cores[label])], rng)
            index += 1
            if _normalised(text) not in seen:
                seen.add(_normalised(text))
                found.append({"text": text, "label": label})
                count += 1
    rng.shuffle(found)
    return found
