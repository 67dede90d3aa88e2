"""The measure of the house: how large, how tangled and how repetitive the source of a checkout is.

Reads the syntax trees under ``CHECKOUT/src/dynamorouter`` and imports nothing of it, so any commit can be measured:

    python tools/house.py                        # this checkout, with the places behind each figure
    python tools/house.py BEFORE AFTER           # two checkouts side by side
    python tools/house.py --json BEFORE AFTER
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

PACKAGE = "dynamorouter"
# The rooms, highest first; those of one floor do not import each other. A checkout that has other names at the top is
# measured against the contract in its own pyproject.toml.
ROOMS = (
    ("__main__",),
    ("cli", "testing"),
    ("bench", "serving", "scaling"),
    ("runs", "export"),
    ("evaluation",),
    ("system",),
    ("config",),
    ("training",),
    ("inference", "merging"),
    ("model",),
    ("routing",),
    ("explore",),
    ("data", "report"),
    ("metrics",),
    ("tasks",),
    ("utils",),
    ("registry",),
    ("errors",),
)
INFERENCE = {"inference", "engine", "writers"}
TRAINING = {"training", "learn"}
LONG_FUNCTION = 60
LONG_FILE = 400
MIRRORED = 4  # shared field names from which two classes count as one setting written twice
CALLBACKS = {"begin", "advance"}
VAGUE = {"found", "own", "at", "place", "each", "known", "given", "wanted", "kept", "said", "mine"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """One source file; its name is dotted and starts below the package ("model.lora.bank", "" the package itself)."""

    name: str
    is_package: bool
    lines: int
    nodes: tuple[ast.AST, ...]


@dataclass(frozen=True)
class Fields:
    """The fields that a dataclass or a pydantic model declares itself."""

    module: str
    name: str
    fields: frozenset[str]


@dataclass(frozen=True)
class Figure:
    """One line of the measure, and the places where it was counted."""

    label: str
    value: int
    places: tuple[str, ...] = ()


def modules_of(checkout: Path) -> list[Module]:
    """Parse every module of the package in ``checkout``, sorted by name."""
    root = checkout / "src" / PACKAGE
    if not root.is_dir():
        raise SystemExit(f"{checkout} holds no src/{PACKAGE}; give the root of a checkout")
    modules = []
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        text = path.read_text(encoding="utf-8")
        modules.append(Module(name, is_package, text.count("\n"), tuple(ast.walk(ast.parse(text, str(path))))))
    return sorted(modules, key=lambda module: module.name)


def room_of(name: str) -> str:
    """Return the name at the top under which a module stands: "model" of "model.lora.bank"."""
    return name.partition(".")[0]


def floors_of(checkout: Path, rooms: set[str]) -> dict[str, int]:
    """Say on which floor every room stands, 0 the highest: by ``ROOMS``, else by the checkout's import contract."""
    floors = {room: floor for floor, neighbours in enumerate(ROOMS) for room in neighbours}
    if rooms - set(floors):
        project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))
        layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
        floors = {room: floor for floor, layer in enumerate(layers) for room in re.findall(r"\w+", layer)}
    if homeless := sorted(rooms - set(floors)):
        raise SystemExit(
            f"{checkout}: {', '.join(homeless)} stand on no floor; add them to the layers in pyproject.toml"
        )
    return floors


def imports_of(modules: list[Module]) -> set[tuple[str, str]]:
    """Collect the pairs (importing module, imported module), wherever in the file the import stands."""
    names = {module.name for module in modules}
    pairs = set()
    for module in modules:
        for target in (target for node in module.nodes for target in _targets(module, node)):
            while target and target not in names:
                target = target.rpartition(".")[0]
            if target != module.name:
                pairs.add((module.name, target))
    return {pair for pair in pairs if all(pair)}


def _targets(module: Module, node: ast.AST) -> Iterator[str]:
    """Yield what an import statement may import of the package, as dotted names below it."""
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        here = f"{PACKAGE}.{module.name}".strip(".").split(".")
        parents = here[: len(here) - node.level + module.is_package] if node.level else []
        origin = [*parents, *([node.module] if node.module else [])]
        names = [".".join([*origin, alias.name]) for alias in node.names]
    yield from (name.removeprefix(PACKAGE).lstrip(".") for name in names if f"{name}.".startswith(f"{PACKAGE}."))


def circles_of(pairs: set[tuple[str, str]]) -> list[str]:
    """Find the groups of names that import each other, directly or through others (strongly connected components)."""
    graph: dict[str, set[str]] = {}
    for importer, imported in pairs:
        graph.setdefault(importer, set()).add(imported)
    reached = {name: _reach(graph, name) for name in graph}
    groups = {frozenset(other for other in reached[name] if name in reached.get(other, ())) for name in graph}
    return sorted(" - ".join(sorted(group)) for group in groups if group)


def _reach(graph: dict[str, set[str]], start: str) -> set[str]:
    """Collect what can be reached from ``start`` by one import or more."""
    reached: set[str] = set()
    stack = [start]
    while stack:
        fresh = graph.get(stack.pop(), set()) - reached
        reached |= fresh
        stack.extend(fresh)
    return reached


def fields_of(modules: list[Module]) -> list[Fields]:
    """Collect the dataclasses and pydantic models with the fields each declares itself; ``ClassVar`` is no field."""
    classes = [(module, node) for module in modules for node in module.nodes if isinstance(node, ast.ClassDef)]
    models = {"BaseModel"}
    while fresh := {node.name for _, node in classes if models & {_last_name(base) for base in node.bases}} - models:
        models |= fresh
    declared = []
    for module, node in classes:
        if node.name in models or "dataclass" in {_last_name(decorator) for decorator in node.decorator_list}:
            annotated = [statement for statement in node.body if isinstance(statement, ast.AnnAssign)]
            declared_here = [field for field in annotated if "ClassVar" not in ast.unparse(field.annotation)]
            declared.append(
                Fields(module.name, node.name, frozenset(ast.unparse(field.target) for field in declared_here))
            )
    return declared


def mirrors_of(declared: list[Fields]) -> list[str]:
    """Describe the pairs of classes of two modules that share at least ``MIRRORED`` names of fields, most first."""
    pairs = []
    for pair in combinations(declared, 2):
        smaller, larger = sorted(pair, key=lambda fields: len(fields.fields))
        shared = len(smaller.fields & larger.fields)
        if smaller.module != larger.module and shared >= MIRRORED:
            title = f"{smaller.module}.{smaller.name} and {larger.module}.{larger.name}"
            pairs.append((-shared, f"{title}: {shared} of {len(smaller.fields)}"))
    return [text for _, text in sorted(pairs)]


def _last_name(node: ast.expr) -> str:
    """Return "AdamW" of ``torch.optim.AdamW``, ``AdamW(..)`` and ``AdamW[..]``; "" of what is no name."""
    while isinstance(node, ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _asks_for_gate(node: ast.AST) -> bool:
    """Tell whether a node is ``isinstance(value, SomeGate)``, where a tuple or a union may hold the gate."""
    if not isinstance(node, ast.Call) or _last_name(node) != "isinstance" or len(node.args) != 2:
        return False
    return any(_last_name(part).endswith("Gate") for part in ast.walk(node.args[1]) if isinstance(part, ast.expr))


def measure(checkout: Path) -> list[Figure]:
    """Measure one checkout; the figures come in the same order for every checkout."""
    modules = modules_of(checkout)
    return [*_size(modules), *_order(checkout, modules), *_repetition(modules)]


def _size(modules: list[Module]) -> Iterator[Figure]:
    nodes = [(module.name, node) for module in modules for node in module.nodes]
    functions = [(f"{name}.{node.name}", _span(node)) for name, node in nodes if isinstance(node, Function)]
    top = [module.name for module in modules if module.name and "." not in module.name and not module.is_package]
    yield Figure("lines", sum(module.lines for module in modules))
    yield Figure("files", len(modules))
    yield Figure("functions", len(functions))
    yield _listed("rooms", sorted({room_of(module.name) for module in modules} - {"", *top}))
    yield _listed("modules at the top", top)
    long_functions = [f"{name}: {lines}" for name, lines in functions if lines > LONG_FUNCTION]
    long_files = [f"{module.name}: {module.lines}" for module in modules if module.lines > LONG_FILE]
    yield _listed(f"functions over {LONG_FUNCTION} lines", long_functions)
    yield _listed(f"files over {LONG_FILE} lines", long_files)
    systems = [node for _, node in nodes if isinstance(node, ast.ClassDef) and node.name == "System"]
    yield Figure("lines of class System", sum(_span(node) for node in systems))


def _span(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _order(checkout: Path, modules: list[Module]) -> Iterator[Figure]:
    rooms = {room_of(module.name) for module in modules} - {""}
    floors = floors_of(checkout, rooms)
    pairs = sorted(imports_of(modules))
    crossing = [(one, other) for one, other in pairs if room_of(one) != room_of(other)]
    upward = [f"{one} -> {other}" for one, other in crossing if floors[room_of(other)] <= floors[room_of(one)]]
    needless = [f"{one} -> {other}" for one, other in pairs if room_of(one) in INFERENCE and room_of(other) in TRAINING]
    yield Figure("floors", len({floors[room] for room in rooms}))
    yield Figure("imports between modules", len(pairs))
    yield _listed("imports upward", upward)
    yield _listed("circles of modules", circles_of(set(pairs)))
    yield _listed("circles of rooms", circles_of({(room_of(one), room_of(other)) for one, other in crossing}))
    yield _listed("imports of training by inference", needless)


def _repetition(modules: list[Module]) -> Iterator[Figure]:
    nodes = [(module.name, node) for module in modules for node in module.nodes]
    calls = [(name, _last_name(node)) for name, node in nodes if isinstance(node, ast.Call)]
    parameters = [(name, node.arg) for name, node in nodes if isinstance(node, ast.arg)]
    variables = [node.id for _, node in nodes if isinstance(node, ast.Name)] + [name for _, name in parameters]
    yield _listed(f"pairs of classes with {MIRRORED} fields alike", mirrors_of(fields_of(modules)))
    yield _tallied("isinstance of a gate", [name for name, node in nodes if _asks_for_gate(node)])
    yield _tallied("parameters begin, advance", [name for name, parameter in parameters if parameter in CALLBACKS])
    yield _tallied("AdamW made", [name for name, called in calls if called == "AdamW"])
    yield _tallied("vague names of variables", [name for name in variables if name in VAGUE])


def _listed(label: str, places: list[str]) -> Figure:
    return Figure(label, len(places), tuple(places))


def _tallied(label: str, places: list[str]) -> Figure:
    """Count places that repeat, and list each once with its number."""
    return Figure(label, len(places), tuple(f"{place}: {count}" for place, count in Counter(places).most_common()))


def table(checkouts: list[str], measures: list[list[Figure]]) -> str:
    """Lay the figures out one a line, a column per checkout; one checkout alone is shown with the places."""
    left = max(len(figure.label) for figure in measures[0])
    lines = [" ".join([" " * left, *(f"{checkout[-20:]:>20}" for checkout in checkouts)])]
    for row in zip(*measures, strict=True):
        lines.append(" ".join([row[0].label.ljust(left), *(f"{figure.value:>20}" for figure in row)]))
        lines += [f"    {place}" for place in row[0].places if len(measures) == 1]
    return "\n".join(lines)


def main() -> None:
    """Measure the checkouts that are named, or the one this script lies in."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkouts", nargs="*", default=[str(Path(__file__).parents[1])], help="roots of checkouts")
    parser.add_argument("--json", action="store_true", help="figures and places as JSON, by checkout and label")
    options = parser.parse_args()
    measures = [measure(Path(checkout)) for checkout in options.checkouts]
    if not options.json:
        print(table(options.checkouts, measures))
        return
    by_label = [{figure.label: {"value": figure.value, "places": figure.places} for figure in one} for one in measures]
    print(json.dumps(dict(zip(options.checkouts, by_label, strict=True)), indent=2))


if __name__ == "__main__":
    main()
