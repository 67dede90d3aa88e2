"""The command line around the engine: help, lists, settings, run folders, files of rows, errors and exit statuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from dynamorouter import __version__
from dynamorouter.cli import main as cli
from dynamorouter.cli.tables import prediction_line, print_report
from dynamorouter.config.compose import compose
from dynamorouter.config.files import list_names
from dynamorouter.errors import ConfigError, DataError
from dynamorouter.runs.run import open_run, saved_config
from dynamorouter.system.predict_file import predict_lines
from dynamorouter.utils.jsonl import SkipCount

COMMANDS = ["run", "prepare", "fit", "list", "show", "predict", "score", "expert", "explore", "doctor"]


def call(*words: str | Path) -> Any:
    return CliRunner().invoke(cli.app, [str(word) for word in words])


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["list", "routers"], ["show", "seven"]])
def test_what_needs_no_model_imports_no_torch(words: list[str]) -> None:
    code = (
        "import sys\n"
        "from dynamorouter.cli.main import app\n"
        f"try: app({words!r})\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'sklearn', 'numpy', 'datasets'} & set(sys.modules)\n"
        "print('\\nHEAVY', sorted(heavy))\n"
    )
    assert python(code).splitlines()[-1] == "HEAVY []"


def test_help_lists_every_command() -> None:
    result = call("--help")
    assert result.exit_code == 0
    assert all(command in result.output for command in COMMANDS)


def test_version() -> None:
    assert call("--version").output.strip() == f"dynamorouter {__version__}"


@pytest.mark.parametrize("kind", ["recipes", "tasks", "bases", "routers"])
def test_list_names_all_with_a_line_on_each(kind: str) -> None:
    plain, as_json = call("list", kind), call("list", kind, "--json")
    assert plain.exit_code == as_json.exit_code == 0
    assert json.loads(as_json.output) == list_names(kind)
    assert all(name in plain.output for name in list_names(kind))


def test_show_prints_settings_that_compose_again(tmp_path: Path) -> None:
    result = call("show", "seven", "data=local", "data.root=rows", "experts.train_rows=2000")
    assert result.exit_code == 0
    path = tmp_path / "shown.yaml"
    path.write_text(result.output, encoding="utf-8")
    expected = compose("seven", ["data=local", "data.root=rows", "experts.train_rows=2000"])
    assert compose(config_file=path) == expected
    assert json.loads(call("show", "--config", path, "--json").output) == expected.to_json()


def test_wrong_settings_are_one_message_and_exit_2() -> None:
    result = call("run", "sevn", "experts.rnak=3", "--out", "never_made")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: 2 settings are wrong:")
    assert "Traceback" not in result.output
    assert not Path("never_made").exists()


def test_run_without_a_recipe_says_so() -> None:
    result = call("run", "--out", "never_made")
    assert result.exit_code == 2
    assert "recipe: none is named" in result.stderr


@pytest.mark.parametrize(("report", "state"), [(True, "a finished run"), (False, "an unfinished run")])
def test_a_run_is_not_overwritten(tmp_path: Path, report: bool, state: str) -> None:
    open_run(compose("quickstart"), tmp_path, resume=False)
    if report:
        (tmp_path / "report.json").write_text("{}")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    result = call("run", "quickstart", "--out", tmp_path)
    assert result.exit_code == 2
    assert state in result.stderr
    assert "--resume" in result.stderr
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_run_folder_keeps_its_settings(tmp_path: Path) -> None:
    config = compose("quickstart")
    out = tmp_path / "deep" / "run"
    open_run(config, out, resume=False)
    assert saved_config(out) == config
    open_run(config, out, resume=True)
    open_run(config, out, resume=False, fresh=False)
    open_run(compose("quickstart", ["tracking.tensorboard=true"]), out, resume=True)
    with pytest.raises(ConfigError, match=r"seed was 0 and is 1"):
        open_run(compose("quickstart", ["seed=1"]), out, resume=True)
    assert saved_config(out) == config


def test_other_folders_and_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(ConfigError, match="holds no run"):
            open_run(compose("quickstart"), tmp_path, resume=resume)
    with pytest.raises(ConfigError, match="is a file"):
        open_run(compose("quickstart"), tmp_path / "precious.txt", resume=False)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = call("run", "quickstart", "--out", tmp_path / "file" / "run")
    assert result.exit_code == 2
    assert "file" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("raised", "status", "message"),
    [
        (DataError("row 3 is odd"), 2, "error: row 3 is odd"),
        (OSError(28, "No space left on device", "/full/disk"), 2, "'/full/disk': No space left on device"),
        (PermissionError(13, "Permission denied", "/locked"), 2, "'/locked': Permission denied"),
        (KeyboardInterrupt(), 130, "--resume"),
    ],
)
def test_errors_become_messages_and_statuses(raised: BaseException, status: int, message: str) -> None:
    app = typer.Typer(cls=cli._Commands)

    @app.callback()
    def root() -> None:
        pass

    @app.command()
    def fail() -> None:
        raise raised

    result = CliRunner().invoke(app, ["fail"])
    assert result.exit_code == status
    assert message in result.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [([], "give either a text or --file"), (["a", "--file", "b"], "give either a text or --file")],
)
def test_predict_wants_a_text_or_a_file(words: list[str], expected: str) -> None:
    result = call("predict", "no_system", *words)
    assert result.exit_code == 2
    assert expected in result.stderr


@dataclass(frozen=True)
class Echo:
    """A prediction that holds what it was asked."""

    text: str
    pair: str | None
    task: str | None

    def to_json(self) -> dict[str, Any]:
        return {"text": self.text, "pair": self.pair, "task": self.task}


class Echoes:
    """Answers every row with itself, refuses empty texts, and counts the calls."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def predict(
        self,
        texts: Sequence[str],
        pairs: Sequence[str | None] | None = None,
        tasks: Sequence[str | None] | None = None,
        *,
        generation: Mapping[str, Any] | None = None,
    ) -> list[Echo]:
        self.sizes.append(len(texts))
        if not all(text.strip() for text in texts):
            raise DataError("the text is empty")
        rows = zip(texts, pairs or [None] * len(texts), tasks or [None] * len(texts), strict=True)
        return [Echo(text, pair, task) for text, pair, task in rows]


def test_files_are_answered_in_chunks_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"t{i}", "id": f"r{i}", "label": 0}) for i in range(10)))
    system = Echoes()
    found = list(predict_lines(system, path, chunk=4, task="sst2"))
    assert [row.number for row, _ in found] == list(range(1, 11))
    assert [(row.id, answer.to_json()["text"]) for row, answer in found] == [(f"r{i}", f"t{i}") for i in range(10)]
    assert {answer.to_json()["task"] for _, answer in found} == {"sst2"}
    assert system.sizes == [4, 4, 2]


def test_question_and_context_are_text_and_pair(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"question": "Who?", "context": "Ada."}\n\n{"text": "a", "pair": "b"}\n')
    found = [answer.to_json() for _, answer in predict_lines(Echoes(), path)]
    assert [(row["text"], row["pair"]) for row in found] == [("Who?", "Ada."), ("a", "b")]


BAD_LINES = {
    b'{"text": "cut off': "not valid JSON",
    b'{"text": "\xff"}': "not valid UTF-8",
    b"[1]": "not an object",
    b'{"txt": "a"}': "did you mean 'text'",
    b'{"text": 3}': "give a string",
    b'{"text": "a", "question": "b"}': "holds 'text' twice",
    b'{"text": "  "}': "the text is empty",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_bad_line_is_named_or_counted(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"text": "one"}\n' + line + b'\n{"text": "three"}\n')
    with pytest.raises(DataError, match="line 2") as caught:
        list(predict_lines(Echoes(), path))
    assert BAD_LINES[line] in str(caught.value)
    skipped = SkipCount()
    found = list(predict_lines(Echoes(), path, skip_bad=skipped))
    assert [row.number for row, _ in found] == [1, 3]
    assert skipped.count == 1


def test_report_table_shows_every_task_and_the_router(capsys: pytest.CaptureFixture[str]) -> None:
    row = {
        "metric": "accuracy",
        "oracle": 0.9,
        "routed": 0.8912,
        "n": 100,
        "ci95": {"oracle": [0.8, 1.0], "routed": [0.8, 0.95]},
    }
    report = {"tasks": {"sst2": row, "squad": row}, "router": {"accuracy": 0.987, "ece": 0.0123}, "normalised": 0.99}
    print_report(report)
    out = capsys.readouterr().out
    for piece in ("sst2", "squad", "0.8912", "0.8000 - 0.9500", "accuracy 0.9870", "0.9900"):
        assert piece in out


def test_prediction_line_shows_expert_confidence_and_answer() -> None:
    values = {"expert": "mood", "task": "sst2", "confidence": 0.98765, "answer": "positive"}
    assert prediction_line(values).split() == ["mood", "0.988", "positive"]
    entities = [{"type": "PER", "text": "Ada Lovelace"}, {"type": "LOC", "text": "Ockham"}]
    tags = {"expert": "ner", "confidence": 1.0, "answer": ["B-PER", "I-PER", "O", "B-LOC"], "entities": entities}
    assert prediction_line(tags).endswith("  Ada Lovelace (PER), Ockham (LOC)")
    assert "(no entities)" in prediction_line({**tags, "entities": []})
    abstained = prediction_line({"expert": None, "confidence": None, "answer": None})
    assert abstained.split() == ["-", "-", "(abstained)"]
