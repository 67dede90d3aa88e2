"""Merging the experts of a saved system: adding the result, putting it in the experts' place, checking it with PEFT.

A merge is one change to the base that serves several tasks, so each task keeps its own head over it. The merge
``both`` of ``sst2`` and ``ag_news`` is in the library as the experts ``both.sst2`` and ``both.ag_news``: folders that
PEFT loads, with the same factors in each, which a loaded system holds in memory once. The router does not choose
among them unless they take their sources' place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dynamorouter.data.native import has_split, read_split
from dynamorouter.errors import ConfigError, LibraryError, MergeError, MissingExtraError, one_of
from dynamorouter.merging.calibration import observed
from dynamorouter.merging.diagnose import METHODS, Diagnosis, diagnose
from dynamorouter.merging.merge import MergeResult, check_experts, merge_experts
from dynamorouter.merging.registry import NEEDS, merges
from dynamorouter.model.base.base import Base
from dynamorouter.model.base.gate import Gate
from dynamorouter.model.heads.task_model import PEFT_TASKS, task_shell
from dynamorouter.model.lora.adapter_config import read_config
from dynamorouter.model.lora.expert import Expert
from dynamorouter.model.lora.gates import RowGate
from dynamorouter.model.lora.mount import mount
from dynamorouter.model.text.tokenize import Batch
from dynamorouter.system.edit import changing
from dynamorouter.system.library import Library
from dynamorouter.system.system import EXPERTS, System
from dynamorouter.tasks.record import Record
from dynamorouter.utils.files import checked_name, read_tensors, write_tensors

MOMENTS = "moments.safetensors"
"""Beside an expert's card: what RegMean has to know of the inputs that its rows bring to every layer."""
ROWS = 256
"""Rows of each task that methods which need data read, unless told otherwise."""
TOLERANCE = 1e-4
"""Largest difference of outputs between ours and PEFT's, as a share of the largest output."""
TEXTS = ("A joy from start to finish.", "Shares rose.", "Who was in Paris when the bank fell, and what did they say?")


def merged_experts(experts: Sequence[Expert], result: MergeResult, *, name: str | None = None) -> list[Expert]:
    """Put each source's head over the merged factors.

    Args:
        experts: among them the sources.
        result: of ``merge_experts``.
        name: of the merge, the experts then being called ``NAME.SOURCE``; ``None`` keeps the sources' names.
    """
    card = {"name": name or "-".join(result.sources), **result.card()}
    by_name = {expert.name: expert for expert in experts}
    return [
        replace(
            by_name[source],
            name=source if name is None else f"{name}.{source}",
            factors=result.factors,
            lora=result.lora,
            card={"merge": {**card, "head_of": source}},
        )
        for source in result.sources
    ]


def merged_system(system: System, result: MergeResult, *, name: str | None = None) -> System:
    """Return a system that answers the sources' tasks over the merged factors, under their own names and heads.

    The router stays as it is: it goes on choosing the task. The bases are shared with ``system``, whose banks are
    taken over: use one of the two at a time.

    Raises:
        MergeError: the fusion of another expert mixes a source.
    """
    mixed = [
        expert.name
        for expert in system.experts
        if expert.fusion is not None and set(expert.fusion.sources) & set(result.sources)
    ]
    if mixed:
        raise MergeError(
            f"the fusion of {one_of(map(repr, mixed))} mixes experts that would be replaced; "
            "add the merge beside them, or remove the fusion's expert first"
        )
    over_merge = merged_experts(system.experts, result, name=name)
    instead = {source: replace(new, name=source) for source, new in zip(result.sources, over_merge, strict=True)}
    return System(
        system.bases,
        [instead.get(expert.name, expert) for expert in system.experts],
        system.router,
        router_base=system.router_base,
        classes=system.classes,
        info=system.info,
        tokens_per_batch=system.tokens_per_batch,
        library=system.library,
    )


def add_merge(
    system: Path,
    sources: Sequence[str],
    *,
    name: str,
    method: str = "linear",
    weights: Sequence[float] | Mapping[str, float] | None = None,
    output: str = "exact",
    options: Mapping[str, Any] | None = None,
    data: Path | None = None,
    rows: int = ROWS,
    seed: int = 0,
    replace_sources: bool = False,
) -> MergeResult:
    """Merge experts of a saved system and keep the result in it.

    Args:
        system: a saved system.
        sources: names of its experts.
        name: of the merge.
        method: a registered name.
        weights: one per source, or by name.
        output: ``exact``, ``rank=K`` or ``energy=P``.
        options: the method's own.
        data: folder with ``TASK/train.jsonl`` for methods that need rows; RegMean takes the moments that
            ``keep_moments`` has stored where it is not given.
        rows: most rows of each task.
        seed: of the method and of the draw of rows.
        replace_sources: answer the sources' tasks over the merge from now on; their own factors are lost.

    Raises:
        MergeError: the experts cannot be merged rightly.
        LibraryError: there is no such expert, or the name is taken.
        ConfigError: the method, an option or the output policy is unknown, or data is missing.
    """
    checked_name(name, kind="name of a merge")
    loaded = System.load(system)
    chosen = named(loaded, sources)
    existing = sorted({f"{name}.{source}" for source in sources} & set(loaded.names))
    if not replace_sources and existing:
        raise LibraryError(
            f"the system has {one_of(map(repr, existing))} already; remove them first, or give another --out"
        )
    method_options = dict(options or {})
    clash = set(method_options) & {"method", "weights", "output", "seed", *NEEDS}
    if clash:
        raise ConfigError(f"{one_of(map(repr, clash))} is no option of a method; it has an argument of its own")
    with _supplied(loaded, chosen, method, data, rows, seed) as needed:
        result = merge_experts(
            chosen, method=method, weights=weights, output=output, seed=seed, **method_options, **needed
        )
    if replace_sources:
        _replace(system, loaded, result, name)
    else:
        _add(system, loaded, result, name)
    return result


def _add(system: Path, loaded: System, result: MergeResult, name: str) -> None:
    new = merged_experts(loaded.experts, result, name=name)
    grown = System(
        loaded.bases,
        [*loaded.experts, *new],
        loaded.router,
        router_base=loaded.router_base,
        classes=loaded.classes,
        info=loaded.info,
    )
    with changing(system, loaded.bases) as changed:
        for expert in new:
            Library(changed / EXPERTS).add(expert, loaded.bases[expert.base])
        grown.save_router(changed)


def _replace(system: Path, loaded: System, result: MergeResult, name: str) -> None:
    assert loaded.library is not None
    after = merged_system(loaded, result, name=name)
    with changing(system, loaded.bases) as changed:
        library = Library(changed / EXPERTS)
        for expert in after.experts:
            if expert.name in result.sources:
                skill = loaded.library.skill(
                    expert.name
                )  # what the router has read of the task stays as true as it was
                library.add(expert, loaded.bases[expert.base], skill=skill, replace=True)
        after.save_router(changed)


def named(system: System, names: Sequence[str]) -> list[Expert]:
    """Return experts by their own names.

    Raises:
        LibraryError: there is none of a name.
    """
    by_name = {expert.name: expert for expert in system.experts}
    missing = [name for name in names if name not in by_name]
    if missing:
        raise LibraryError(f"the system has no expert {one_of(map(repr, missing))}; it has: {one_of(by_name)}")
    return [by_name[name] for name in names]


@contextmanager
def _supplied(
    system: System, experts: Sequence[Expert], method: str, data: Path | None, rows: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Give what a method needs: from rows, or moments that were stored."""
    need = merges.get(method).needs
    check_experts(experts, merges.get(method))
    if need is None:
        yield {}
    elif need == "grams" and data is None:
        yield {need: stored_moments(system, experts)}
    elif data is None:
        yield {}  # the merge itself says what is missing
    else:
        base = system.bases[experts[0].base]
        with observed(need, base, experts, read_rows(experts, data, rows), limit=rows, seed=seed) as statistics:
            yield {need: statistics}


def read_rows(experts: Sequence[Expert], data: Path, rows: int) -> dict[str, list[Record]]:
    """Read the train rows of each expert's task from a folder in native columns, from the top.

    Raises:
        MergeError: the folder has none of a task.
    """
    missing = [expert.task.name for expert in experts if not has_split(data, expert.task, "train")]
    if missing:
        raise MergeError(f"{data} has no train.jsonl of {one_of(missing)}; rows of every expert's task are needed")
    return {expert.name: read_split(expert.task, data, "train", limit=20 * rows) for expert in experts}


def keep_moments(system: Path, data: Path, *, rows: int = ROWS, seed: int = 0) -> dict[str, int]:
    """Store second moments of every layer's inputs beside each expert, so that RegMean can merge without data.

    Returns:
        Bytes by expert.
    """
    loaded = System.load(system)
    assert loaded.library is not None
    with_rows = [expert for expert in loaded.experts if expert.fusion is None and has_split(data, expert.task, "train")]
    if not with_rows:
        raise MergeError(f"{data} has no train.jsonl of any task of the system: {one_of(loaded.names)}")
    sizes = {}
    for name, base in loaded.bases.items():
        on_base = [expert for expert in with_rows if expert.base == name]
        if not on_base:
            continue
        with observed("grams", base, on_base, read_rows(on_base, data, rows), limit=rows, seed=seed) as moments:
            for expert in on_base:
                path = loaded.library.folder / expert.name / MOMENTS
                tensors = {layer: moment.float() for layer, moment in moments[expert.name].items()}
                write_tensors(path, tensors, metadata={"rows": str(rows)})
                sizes[expert.name] = path.stat().st_size
    return sizes


def stored_moments(system: System, experts: Sequence[Expert]) -> dict[str, dict[str, torch.Tensor]]:
    """Return what ``keep_moments`` has stored.

    Raises:
        MergeError: there are none of an expert.
    """
    assert system.library is not None
    paths = {expert.name: system.library.folder / expert.name / MOMENTS for expert in experts}
    missing = [name for name, path in paths.items() if not path.is_file()]
    if missing:
        raise MergeError(
            f"there are no moments of {one_of(map(repr, missing))}; give --data DIR, or store them once with "
            "'dynamorouter merge moments SYSTEM --data DIR'"
        )
    return {name: read_tensors(path) for name, path in paths.items()}


def doctor(system: Path, names: Sequence[str] = (), *, methods: Sequence[str] = METHODS) -> Diagnosis:
    """Say which experts of a saved system conflict, and what merges would keep of each.

    Raises:
        MergeError: the experts cannot be merged at all.
        LibraryError: there is no such expert.
    """
    loaded = System.load(system)
    plain = [e for e in loaded.experts if "merge" not in e.card and e.fusion is None and e.base == loaded.router_base]
    return diagnose(named(loaded, names) if names else plain, methods=methods)


def verify(system: Path, name: str) -> list[dict[str, Any]]:
    """Load a merge's adapters, or one expert's, with PEFT over a fresh base, and compare the last hidden states.

    Returns:
        For each expert ``difference`` (largest, as a share of the largest output), ``change`` (what the adapter does to
        the bare base's output, the same way) and ``ok``.

    Raises:
        LibraryError: there is no merge or expert of that name.
        MissingExtraError: PEFT is not installed.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise MissingExtraError("PEFT is not installed; install it with: pip install 'dynamorouter[bench]'") from error
    loaded = System.load(system)
    assert loaded.library is not None
    chosen = [e for e in loaded.experts if name in (e.name, e.card.get("merge", {}).get("name"))]
    if not chosen:
        merged = {str(e.card["merge"]["name"]) for e in loaded.experts if "merge" in e.card}
        raise LibraryError(
            f"the system has no merge {name!r}; it has the merges {one_of(merged) or '-'} "
            f"and the experts {one_of(loaded.names)}"
        )
    rows = []
    for expert in chosen:
        base = loaded.bases[expert.base]
        peft_base = Base.load(base.spec, device=base.device, dtype=base.dtype)
        folder = loaded.library.folder / expert.name
        is_task_model = read_config(folder)[0].task_type in PEFT_TASKS
        body = peft_base.model
        whole = task_shell(expert.head, base, body) if is_task_model else peft_base.parts.language or body
        PeftModel.from_pretrained(whole, str(folder)).eval()
        rows.append({"expert": expert.name, **_compare(base, peft_base, expert)})
    return rows


def _compare(base: Base, peft_base: Base, expert: Expert) -> dict[str, Any]:
    """Compare our pass through an expert with a pass over a base that PEFT has put the adapter into."""
    windows = base.encoder.windows([(text, None) for text in TEXTS], max_tokens=32, stride=8)
    batch = base.encoder.collate([window.encoding for window in windows], base.device)
    gate = RowGate(torch.zeros(len(windows), dtype=torch.long, device=base.device))
    with torch.inference_mode(), mount(base, [expert]):
        ours, bare, theirs = _outputs(base, batch, gate), _outputs(base, batch, None), _outputs(peft_base, batch, None)
    size = float(theirs.abs().max())
    difference = float((ours - theirs).abs().max()) / size
    return {"difference": difference, "change": float((ours - bare).abs().max()) / size, "ok": difference <= TOLERANCE}


def _outputs(base: Base, batch: Batch, gate: Gate | None) -> torch.Tensor:
    """Return the last hidden states of all tokens, ``(N, D)``; of an encoder-decoder those of both stacks."""
    is_token = batch.mask.bool()
    states = base.forward(batch, gate)
    if base.kind != "seq2seq":
        return states[is_token]
    return torch.cat([states[is_token], base.decode_hidden(states, batch.mask, batch.ids, gate)[is_token]])
