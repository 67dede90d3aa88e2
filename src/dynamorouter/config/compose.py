"""Composes the settings of a run from YAML groups, a file and ``key=value`` overrides, and checks them completely.

Order, later wins: the defaults of ``dynamorouter.config.schema``, the chosen group files under ``conf/`` (Hydra), the
recipe, the file given by ``--config``, the overrides. All mistakes are gathered and named in one `ConfigError`.

    compose("seven", ["data=local", "data.root=rows", "task=[sst2,squad]", "experts.train_rows=2000"])

Tasks, bases, routers and recipes of one's own live in a folder laid out like ``conf/``, named by
``search_path=[FOLDER]``; a task file ``FOLDER/task/NAME.yaml`` opens with ``# @package task.NAME``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dynamorouter.config.checks import cross_checks, listed
from dynamorouter.config.files import CONF, GROUPS, KINDS, group_file, list_names, read_tree
from dynamorouter.config.schema import ROOT, Config
from dynamorouter.config.tasks import INCLUDE, with_included
from dynamorouter.data.sources import sources
from dynamorouter.errors import ConfigError, one_of, suggest
from dynamorouter.model.base.config import spec_at
from dynamorouter.registry import Registry
from dynamorouter.routing.registry import routers
from dynamorouter.utils.explain import Branch, Tree, explain, own_path, own_tree

OPEN_GROUPS: dict[str, tuple[Registry[Any], str]] = {
    "router": (routers, "router.kind"),
    "data": (sources, "data.source"),
}
"""Groups whose value may also be a registered name without a file, and the key that this name goes to."""

PLACES = {"base": ", or a folder with a config.json, a GGUF file, or a hub id OWNER/NAME"}
"""Groups whose value may also say where a thing is."""


@dataclass
class _Request:
    """What the caller asked for, taken apart.

    Attributes:
        choices: names by group; for ``task`` a list.
        tree: nested values of the config file, names taken out.
        values: dotted path and value of each override; the value ``_DELETE`` removes the key.
        folders: folders that choices are looked up in, the package's own first.
        mistakes: what was wrong so far.
    """

    choices: dict[str, str | list[str]] = field(default_factory=dict)
    tree: Tree = field(default_factory=dict)
    values: list[tuple[str, Any]] = field(default_factory=list)
    folders: list[Path] = field(default_factory=lambda: [CONF])
    mistakes: list[str] = field(default_factory=list)


_DELETE = object()


def compose(
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    *,
    config_file: str | Path | None = None,
    more_checks: Callable[[Tree], list[str]] = lambda tree: [],
) -> Config:
    """Return the complete, checked settings of a run.

    Args:
        recipe: name of a file in ``conf/recipe/``; may be left out when ``config_file`` names it.
        overrides: ``group=name``, ``task=[a,b]``, ``key.path=value``, or ``~key.path`` to remove an entry; ``base`` may
            also be a folder, a GGUF file or a hub id.
        config_file: JSON or YAML with the tree of `Config`; ``recipe``, ``base``, ``data``, ``router`` may be
            names, ``tasks`` (or ``task``) a list of names. A mapping ``task`` amends the chosen tasks entry by
            entry; if every entry is complete (has ``head`` and ``columns``), those are the tasks.
        more_checks: returns further mistakes in the composed tree, of rooms that this one does not know.

    Raises:
        ConfigError: something is unknown, of the wrong type or out of range; the message names every mistake.
    """
    request = _Request()
    if config_file is not None:
        request.tree = read_tree(Path(config_file))
    _take_overrides(request, overrides)
    _take_search_path(request)
    _take_file_choices(request)
    request.tree = _own_tree(request.tree, request)
    if recipe is not None:
        if request.choices.get("recipe", recipe) != recipe and any(o.startswith("recipe=") for o in overrides):
            request.mistakes.append(f"recipe: named twice, {recipe!r} and {request.choices['recipe']!r}; name it once")
        request.choices["recipe"] = recipe
    elif "recipe" not in request.choices:
        request.mistakes.append(f"recipe: none is named; allowed: {one_of(list_names('recipes', request.folders))}")
    _check_choices(request)
    tree = _own_tree(_hydra(request), request)
    _include(tree, request, beside=Path())
    if config_file is not None:
        _include(request.tree, request, beside=Path(config_file).parent)
    _keep_base_prompt(tree, request)
    _merge(tree, request.tree, ROOT)
    _apply(tree, request)
    _fill_bases(tree, request)
    _settle_prompts(tree)
    tasks = list_names("tasks", request.folders)
    return _validate(tree, [*request.mistakes, *more_checks(tree)], tasks=tasks)


def load(path: str | Path) -> Config:
    """Return the settings that ``Config.to_yaml`` or ``to_json`` wrote, checked but composed from nothing else.

    Raises:
        ConfigError: the file is unreadable, incomplete or wrong; the message names every mistake.
    """
    tree, mistakes = own_tree(read_tree(Path(path)), ROOT)
    rows = tree.get("experts", {}).get("train_rows") if isinstance(tree.get("experts"), dict) else None
    return _validate(tree, mistakes, tasks=rows if isinstance(rows, dict) else [])


def _take_overrides(request: _Request, overrides: Sequence[str]) -> None:
    """Sort overrides into choices and values."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    written: dict[str, str] = {}
    for text in overrides:
        try:
            parsed = parser.parse_override(text)
        except HydraException as error:
            reason = str(error).splitlines()[0]
            request.mistakes.append(
                f"override {text!r} cannot be read ({reason}); write key=value, quote odd characters"
            )
            continue
        if parsed.is_sweep_override():
            request.mistakes.append(f"override {text!r} names several values; write one, or a list as key=[a,b]")
            continue
        key, value = ".".join(own_path(parsed.key_or_group.split("."), ROOT)), parsed.value()
        name = written.setdefault(key, parsed.key_or_group)
        if name != parsed.key_or_group:
            twice = f"{name!r} and {parsed.key_or_group!r} are two names of one setting; give one of them"
            request.mistakes.append(f"{key}: {twice}")
        if parsed.is_delete():
            request.values.append((key, _DELETE))
        elif key in GROUPS and not isinstance(value, dict):
            names = value if isinstance(value, list) else [value]
            request.choices[key] = [str(n) for n in names] if key == "task" else str(value)
        else:
            branch = _branch_at(key.split("."))
            if isinstance(value, dict) and branch is not None:
                value = _own_tree(value, request, branch, key)
            request.values.append((key, value))


def _own_tree(tree: Tree, request: _Request, branch: Branch = ROOT, path: str = "") -> Tree:
    """Return a tree by the own names of its settings, and note settings that are given by two names."""
    renamed, mistakes = own_tree(tree, branch, f"{path}." if path else "")
    request.mistakes += mistakes
    return renamed


def _take_search_path(request: _Request) -> None:
    """Add the folders of ``search_path``, from the file or the overrides."""
    folders = dict(request.values).get("search_path", request.tree.get("search_path", ()))
    for folder in [folders] if isinstance(folders, str) else folders or ():
        path = Path(str(folder)).expanduser()
        if path.is_dir():
            request.folders.append(path.resolve())
        else:
            request.mistakes.append(f"search_path: {str(folder)!r} is not a folder")


def _take_file_choices(request: _Request) -> None:
    """Take the names out of the config file's tree; names among the overrides win."""
    tree = request.tree
    chosen: dict[str, str | list[str]] = {}
    for group in ("recipe", "preset", "base", "data", "router"):
        if isinstance(tree.get(group), str):
            chosen[group] = tree.pop(group)
    names = tree.pop("tasks", None)
    if isinstance(tree.get("task"), (str, list)):
        names = tree.pop("task")
    task = tree.get("task")
    if names is None and isinstance(task, dict) and task and all(_complete(entry) for entry in task.values()):
        names = list(task)
    if isinstance(names, str):
        names = [names]
    if isinstance(names, list):
        chosen["task"] = [str(name) for name in names]
    elif names is not None:
        request.mistakes.append(f"tasks: got {names!r}; a list of names is expected")
    request.choices = {**chosen, **request.choices}
    if "task" in request.choices and isinstance(task, dict):
        tree["task"] = {k: v for k, v in task.items() if k in request.choices["task"] or not _complete(v)}


def _complete(entry: object) -> bool:
    """Whether ``entry`` defines a task or base by itself."""
    wholes = ({"head", "columns"}, {INCLUDE}, {"name", "path"})
    return isinstance(entry, dict) and any(keys <= entry.keys() for keys in wholes)


def _check_choices(request: _Request) -> None:
    """Drop and record choices that do not exist, so that the rest can be checked too."""
    kinds = {group: kind for kind, group in KINDS.items()}
    inline = request.tree.get("task")
    in_file = [k for k, v in inline.items() if _complete(v)] if isinstance(inline, dict) else []
    for group, choice in list(request.choices.items()):
        allowed = list_names(kinds[group], request.folders)
        names = choice if isinstance(choice, list) else [choice]
        if group in OPEN_GROUPS and names[0] not in allowed:
            registry, key = OPEN_GROUPS[group]
            if names[0] in registry:  # one without a file
                request.values.insert(0, (key, request.choices.pop(group)))
                continue
            allowed |= dict.fromkeys(registry, "")
        elif group == "base" and names[0] not in allowed and (spec := spec_at(names[0])) is not None:
            request.values.insert(0, (group, spec.model_dump()))
            del request.choices[group]
            continue
        if not names:
            request.mistakes.append(f"{group}: the list is empty; allowed: {one_of(allowed)}")
        if len(set(names)) < len(names):
            request.mistakes.append(f"{group}: {', '.join(names)} names one twice")
        good = [n for n in dict.fromkeys(names) if n in allowed or (group == "task" and n in in_file)]
        request.mistakes += [
            f"{group}: unknown choice {n!r}{suggest(n, allowed)}; allowed: {one_of(allowed)}{PLACES.get(group, '')}"
            for n in names
            if n not in good
        ]
        if not good:
            del request.choices[group]
        else:
            request.choices[group] = good if isinstance(choice, list) else good[0]


def _hydra(request: _Request) -> Tree:
    """Compose the chosen group files."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.singleton import Singleton
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    order = request.choices.get("task")
    selected = []
    for group, choice in request.choices.items():
        names = [n for n in choice if group_file(group, n, request.folders)] if isinstance(choice, list) else choice
        # in quotes, since a name may read as a number
        quoted = [f"'{name}'" for name in names] if isinstance(names, list) else []
        selected.append(f"{group}=[{','.join(quoted)}]" if isinstance(names, list) else f"{group}='{names}'")
    more_folders = [f'"file://{folder}"' for folder in request.folders[1:]]
    if more_folders:
        selected.append(f"hydra.searchpath=[{','.join(more_folders)}]")
    state = Singleton.get_state()  # a caller may be a Hydra application itself
    try:
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            composed = hydra.compose("config", overrides=selected)
        tree = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(listed([*request.mistakes, f"the group files cannot be composed: {error}"])) from error
    finally:
        Singleton.set_state(state)
    assert isinstance(tree, dict)
    result: Tree = {str(key): value for key, value in tree.items()}
    tasks = result.setdefault("task", {})
    if isinstance(order, list):  # keep the order of the request; a task of the file alone is merged in later
        result["task"] = {name: tasks.get(name, {}) for name in order}
        for name in tasks.keys() - set(order):
            if isinstance(tasks[name], dict) and not _complete(tasks[name]):
                continue  # what the recipe changes of a task that is not among the chosen ones
            request.mistakes.append(f"task.{name}: a chosen task file writes this; open it with '# @package task.NAME'")
    return result


def _include(tree: Tree, request: _Request, *, beside: Path) -> None:
    """Put the keys of included tasks under those of the tasks that include them."""
    tasks = tree.get("task")
    if not isinstance(tasks, dict):
        return
    for name, entry in tasks.items():
        if isinstance(entry, dict) and INCLUDE in entry:
            file = group_file("task", name, request.folders)
            where, chain = (file.parent, (file.resolve(),)) if file else (beside, (Path(name),))
            try:
                tasks[name] = with_included(entry, chain=chain, beside=where, folders=request.folders)
            except ConfigError as error:
                request.mistakes.append(str(error))
                del entry[INCLUDE]


def _merge(tree: Tree, new: Mapping[str, Any], branch: Branch | None) -> None:
    """Lay ``new`` over ``tree``: branches of the settings merge; complete definitions and plain values replace."""
    for key, value in new.items():
        below = None if branch is None else branch.below(key)
        if isinstance(value, dict) and isinstance(tree.get(key), dict) and below is not None and not _complete(value):
            _merge(tree[key], value, below)
        else:
            tree[key] = value


def _apply(tree: Tree, request: _Request) -> None:
    """Set the values of the overrides."""
    for path, value in request.values:
        *parents, leaf = path.split(".")
        where: Any = tree
        if parents[:1] == ["task"] and len(parents) > 1 and parents[1] not in tree["task"]:
            chosen = tree["task"]
            request.mistakes.append(
                f"{path}: task {parents[1]!r} is not chosen{suggest(parents[1], chosen)}; chosen: {one_of(chosen)}"
            )
            continue
        for part in parents:
            below = where.get(part) if isinstance(where, dict) else None
            if not isinstance(below, dict):
                below = {}
                where[part] = below
            where = below
        if value is not _DELETE:
            _merge(where, {leaf: value}, _branch_at(parents))
        elif where.pop(leaf, _DELETE) is _DELETE:
            request.mistakes.append(
                f"~{path}: there is no such entry{suggest(leaf, where)}; there are: {one_of(where)}"
            )


def _branch_at(path: Sequence[str]) -> Branch | None:
    """Return the branch of the settings at a path, if one is there."""
    branch: Branch | None = ROOT
    for part in path:
        branch = None if branch is None else branch.below(part)
    return branch


def _fill_bases(tree: Tree, request: _Request) -> None:
    """Put bases that tasks name, and that have a file, under ``bases``."""
    from omegaconf import OmegaConf

    base = tree.get("base")
    bases = tree.setdefault("bases", {})
    for task in tree["task"].values():
        name = task.get("base") if isinstance(task, dict) else None
        if not isinstance(name, str) or not isinstance(bases, dict) or name in bases:
            continue
        if isinstance(base, dict) and name == base.get("name"):
            continue
        if file := group_file("base", name, request.folders):
            bases[name] = OmegaConf.to_container(OmegaConf.load(file), resolve=True)


def _keep_base_prompt(tree: Tree, request: _Request) -> None:
    """Give a chosen base that is spoken to in a form of its own that form back, whatever the recipe says of prompts."""
    from omegaconf import OmegaConf

    name, base = request.choices.get("base"), tree.get("base")
    file = group_file("base", name, request.folders) if isinstance(name, str) else None
    if file is not None and isinstance(base, dict):
        settings = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
        if isinstance(settings, dict) and settings.get("prompt") not in (None, "plain"):
            base["prompt"] = settings["prompt"]


def _settle_prompts(tree: Tree) -> None:
    """Let tasks have the prompt that goes with their data where their base has none of its own."""
    bases = tree.get("bases")
    for task in tree["task"].values():
        if not isinstance(task, dict) or task.get("default_prompt") is None:
            continue
        default = task.pop("default_prompt")
        named = bases.get(task.get("base")) if isinstance(bases, dict) else None
        base = named or tree.get("base")
        base_prompt = base.get("prompt") if isinstance(base, dict) else None
        if "prompt" not in task and base_prompt in (None, "plain", default):
            task["prompt"] = default


def _validate(tree: Tree, mistakes: list[str], *, tasks: Collection[str]) -> Config:
    """Return the checked tree, or raise with ``mistakes`` and whatever else is wrong."""
    entries = tree.get("task")
    for name, entry in entries.items() if isinstance(entries, dict) else ():
        if isinstance(entry, dict):
            entry.setdefault("name", name)
    mistakes = [*mistakes, *cross_checks(tree, recipe_tasks=tasks)]
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        mistakes += explain(error, tree, root=ROOT)
    if mistakes:
        raise ConfigError(listed(mistakes))
    return config
