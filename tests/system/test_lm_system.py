"""Systems that hold heads that read and experts that write: labels for some rows and text for others in one call."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from dynamorouter.config.compose import compose
from dynamorouter.config.schema import Config
from dynamorouter.data.prepare import load_prepared
from dynamorouter.errors import ConfigError
from dynamorouter.evaluation.score import score_system
from dynamorouter.inference.generation.generate import generate
from dynamorouter.inference.policy import Assignment
from dynamorouter.model.base.base import Base
from dynamorouter.model.lora.expert import fresh_factors
from dynamorouter.model.lora.gates import RowGate
from dynamorouter.model.text.prompts import encode_prompts
from dynamorouter.runs import phases as pipeline
from dynamorouter.runs.build import run_tasks
from dynamorouter.runs.run import open_run
from dynamorouter.system.system import System
from dynamorouter.tasks.task import Generation
from dynamorouter.utils.files import read_json
from support.builders import write_tiny
from support.shared import made_once
from support.tinylm import write_lm
from support.tinyrun import TASKS, call, finish, refused, weights, write_lines, write_rows

SAY = """# @package task.{name}
name: {name}
head: causal_lm
columns: {{text: text, target: said}}
metrics: [text_match, lm_loss, perplexity]
max_tokens: 40
stride: 0
generation: {{max_new_tokens: 8}}
sources: {{local: {{}}}}
"""
MIXED = """# @package _global_
# A label on an encoder, a text on a decoder.
defaults:
  - override /base: tiny
  - override /data: local
  - override /router: mlp
  - override /task: [mood, say]

recipe: mixed
task: {say: {base: writer, hyper: {trunk_depth: 1}}}
experts: {rank: 2, alpha: 8, trunk_depth: 2, train_rows: 24, epochs: 2, batch_rows: 8, tokens_per_batch: 256,
  learning_rate: 0.01, checkpoint_every: 1}
router: {hidden: 16, epochs: 20, batch_rows: 8, learning_rate: 0.01, train_rows: 16}
joint: {enabled: true, train_rows: 12, epochs: 1, batch_rows: 8}
evaluation: {select_rows: 8, calibrate_rows: 8, report_rows: 12, bootstrap: 20}
device: cpu
"""
ALONE = """# @package _global_
# Two texts on one decoder, which the router reads too.
defaults:
  - override /base: writer
  - override /data: local
  - override /router: mlp
  - override /task: [say, shout]

recipe: alone
experts: {rank: 2, alpha: 8, trunk_depth: 2, train_rows: 24, epochs: 2, batch_rows: 8, tokens_per_batch: 256,
  learning_rate: 0.01, select_by: metric, packing: true}
router: {hidden: 16, epochs: 20, batch_rows: 8, learning_rate: 0.01, train_rows: 16, pooling: mean_last}
joint: {enabled: true, train_rows: 8, epochs: 1, batch_rows: 8}
evaluation: {select_rows: 8, calibrate_rows: 8, report_rows: 12, bootstrap: 20}
device: cpu
"""
THINGS = "cat dog hen cow pig fox owl bee ant elk".split()  # noqa: SIM905


def said_rows(name: str, count: int, *, start: int) -> list[dict[str, str]]:
    verb = "say" if name == "say" else "SHOUT"
    return [
        {"text": f"{verb} {THINGS[i % 10]} {THINGS[i * 7 // 10 % 10]} {i}", "said": THINGS[i % 10]}
        for i in range(start, start + count)
    ]


def write_den(folder: Path) -> None:
    """Write what the recipes ``mixed`` and ``alone`` need: two bases, three tasks and their rows."""
    conf = folder / "conf"
    for part in ("base", "task", "recipe"):
        (conf / part).mkdir(parents=True)
    tiny, writer = write_tiny(conf / "models" / "tiny", "bert"), write_lm(conf / "models" / "writer", "gpt2")
    (conf / "base" / "tiny.yaml").write_text(f"name: tiny\npath: {tiny}\npooling: mean\n")
    (conf / "base" / "writer.yaml").write_text(f"name: writer\npath: {writer}\nkind: decoder\nprompt: plain\n")
    more = "max_tokens: 32\nstride: 8\nsources: {local: {}}\n"
    (conf / "task" / "mood.yaml").write_text(f"# @package task.mood\nname: mood\n{TASKS['mood']}{more}")
    write_rows(folder / "rows")
    for name in ("say", "shout"):
        (conf / "task" / f"{name}.yaml").write_text(SAY.format(name=name))
        for split, start, count in (("train", 0, 60), ("validation", 1000, 16), ("test", 2000, 12)):
            write_lines(folder / "rows" / name / f"{split}.jsonl", said_rows(name, count, start=start))
    (conf / "recipe" / "mixed.yaml").write_text(MIXED)
    (conf / "recipe" / "alone.yaml").write_text(ALONE)


@pytest.fixture(scope="module")
def den(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "den", write_den)


def settings(den: Path, recipe: str, *more: str) -> Config:
    return compose(recipe, [f"search_path=[{den / 'conf'}]", f"data.root={den / 'rows'}", *more])


@pytest.fixture(scope="module")
def mixed(den: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "mixed", lambda new: finish(settings(den, "mixed"), new / "run")) / "run"


@pytest.fixture(scope="module")
def alone(den: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "alone", lambda new: finish(settings(den, "alone"), new / "run")) / "run"


ASKED = ["the film was great joy", "say cat dog 3000", "a poor waste of time", "say owl bee 3001", "say fox ant 3002"]
NAMED = ["mood", "say", "mood", "say", "say"]


def test_one_call_returns_labels_for_some_rows_and_text_for_others(mixed: Path) -> None:
    system = System.load(mixed / "system")
    found = system.predict(ASKED, tasks=NAMED)
    assert [p.answer.kind for p in found if p.answer] == ["classification", "text", "classification", "text", "text"]
    assert all(p.answer and p.answer.value in ("bad", "good") for p in found if p.task == "mood")
    for i, text in enumerate(ASKED):
        assert system.predict([text], tasks=[NAMED[i]])[0].answer == found[i].answer
    routed = system.predict(ASKED)
    assert [p.answer.kind for p in routed if p.answer] == [
        "text" if p.task == "say" else "classification" for p in routed
    ]
    assert found[1].to_json()["answer_score"] is None and isinstance(found[1].to_json()["answer"], str)


def test_report_scores_text_and_labels_and_says_what_was_cut(mixed: Path) -> None:
    report = read_json(mixed / "report.json")
    say = report["tasks"]["say"]
    assert set(report["tasks"]) == {"mood", "say"} and say["n"] == 12
    assert say["all"]["oracle"]["perplexity"] == pytest.approx(2.718281828 ** say["all"]["oracle"]["lm_loss"], rel=1e-4)
    cut = report["truncation"]["say"]
    assert cut["rows"] == 24 and cut["prompts_cut"] == 0 and cut["texts_cut"] == 0 and cut["max_new_tokens"] == 8
    assert report["router"]["accuracy"] >= 0.5


def test_an_expert_elsewhere_is_left_alone_by_the_joint_phase(mixed: Path) -> None:
    before, after = (weights(mixed / "phases" / phase / "experts" / "say") for phase in ("experts", "joint"))
    assert before and before == {name: after[name] for name in before}


@pytest.mark.e2e
def test_resumed_with_a_decoder_is_uninterrupted_to_the_bit(
    den: Path, mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    count = 0
    original = pipeline.PhaseLog.saved

    def saved(self: object) -> None:
        nonlocal count
        original(self)  # type: ignore[arg-type]
        count += 1
        if count in (2, 8):
            raise KilledError

    monkeypatch.setattr(pipeline.PhaseLog, "saved", saved)
    config, out = settings(den, "mixed"), tmp_path / "run"
    open_run(config, out, resume=False)
    for _ in range(2):
        with pytest.raises(KilledError):
            pipeline.run(config, out)
    pipeline.run(config, out)
    assert weights(out / "system") == weights(mixed / "system")


def test_saved_equals_loaded_and_peft_loads_what_is_saved(mixed: Path, tmp_path: Path) -> None:
    system = System.load(mixed / "system")
    again = System.load(system.save(tmp_path / "copy"))
    want = [p.to_json() for p in system.predict(ASKED, tasks=NAMED)]
    assert [p.to_json() for p in again.predict(ASKED, tasks=NAMED)] == want
    assert weights(tmp_path / "copy" / "experts") == weights(mixed / "system" / "experts")
    folder = mixed / "system" / "experts" / "say"
    assert read_json(folder / "adapter_config.json")["task_type"] == "CAUSAL_LM"
    assert read_json(folder / "card.json")["task"]["head"] == "causal_lm"
    base = system.bases["writer"]
    oracle = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base.spec.path), folder).eval()
    batch = base.encoder.pad([[5, 9, 12, 30], [7, 8]], [[0] * 4, [0] * 2], base.device)
    with torch.inference_mode():
        theirs = oracle(input_ids=batch.ids, attention_mask=batch.mask).logits
        ours = base.logits(base.forward(batch, RowGate(torch.tensor([0, 0]))))
        bare = base.logits(base.forward(batch, None))
    for row, length in enumerate((4, 2)):
        torch.testing.assert_close(ours[row, :length], theirs[row, :length], atol=1e-4, rtol=1e-4)
    assert float((ours - bare).abs().max()) > 1e-3


def test_writing_goes_on_from_what_the_router_read(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = System.load(alone / "system")
    texts = ["say cat dog 3000", "SHOUT owl bee 3001", "say fox"]
    routed = system.predict(texts)
    assert {p.answer.kind for p in routed if p.answer} == {"text"}
    names = [str(p.expert) for p in routed]
    assert [p.answer for p in system.predict(texts, tasks=names)] == [p.answer for p in routed]
    base, passes = system.bases["writer"], []
    monkeypatch.setattr(base, "forward", lambda *a, **k: passes.append(1))
    assert [p.answer for p in system.predict(texts)] == [p.answer for p in routed]
    assert not passes  # no prompt was read a second time
    report = read_json(alone / "report.json")
    assert set(report["tasks"]["say"]["all"]["routed"]) == {"text_match", "lm_loss", "perplexity"}


def test_generate_streams_and_takes_settings(mixed: Path, alone: Path) -> None:
    system = System.load(mixed / "system")
    (whole,) = system.generate(["say cat dog 3000"])
    assert whole == system.predict(["say cat dog 3000"], tasks=["say"])[0].answer.value  # type: ignore[union-attr]
    assert "".join(system.stream("say cat dog 3000")).strip() == whole
    (short,) = system.generate(["say cat dog 3000"], max_new_tokens=2)
    assert len(short) <= 2 and whole.startswith(short)
    with pytest.raises(ConfigError, match=r"'mood' does not generate text; those that do: say"):
        system.generate(["say cat"], tasks=["mood"])
    for wrong, word in (({"max_tokens": 3}, "max_tokens: unknown key"), ({"top_k": "five"}, "top_k: got 'five'")):
        with pytest.raises(ConfigError, match=word):
            system.generate(["say cat"], **wrong)
    with pytest.raises(ConfigError, match="temperature: got -1"):
        system.generate(["say cat"], temperature=-1.0)
    both = System.load(alone / "system")
    assert len(both.generate(["say cat dog 3000", "SHOUT hen"])) == 2


def test_generate_and_stream_mix_and_abstain_as_predict_does(alone: Path) -> None:
    system = System.load(alone / "system")
    asked = ["say cat dog 3000", "SHOUT hen", "say owl bee 3001"]
    one = system.generate(asked)
    assert system.router is not None
    system.router.top_k = 2  # type: ignore[attr-defined]
    mixed = system.generate(asked)
    assert mixed == [str(p.answer.value) for p in system.predict(asked) if p.answer is not None] != one
    assert [("".join(system.stream(text))).strip() for text in asked] == mixed
    system.router.abstain_below = 1.0
    system.use_router(system.router, system.classes)
    assert system.generate(asked) == ["", "", ""] and list(system.stream(asked[0])) == []
    assert system.generate(asked, tasks=["say"] * 3) != ["", "", ""]  # a task that is named is not doubted
    fallen = system.generate(asked, abstain_below=1.0, fallback="base")
    assert fallen == system.generate(asked, tasks=["base"] * 3) != ["", "", ""]
    assert "".join(system.stream(asked[0], abstain_below=1.0, fallback="base")).strip() == fallen[0]
    assert "" not in system.generate(asked, abstain_below=0.0)


def test_a_mixture_begins_where_the_lowest_of_its_experts_does(alone: Path) -> None:
    system = System.load(alone / "system")
    say, shout = system.experts
    base = system.bases[say.base]
    deep = say.lora.model_copy(update={"trunk_depth": 0})
    factors = fresh_factors(base, deep, seed=1, name="deep")
    torch.manual_seed(0)
    factors = {layer: dataclasses.replace(own, b=torch.randn_like(own.b)) for layer, own in factors.items()}
    experts = [say, dataclasses.replace(shout, factors=factors, lora=deep)]
    engine = System(system.bases, experts, system.router, router_base=system.router_base, classes=system.classes).engine
    rows = [("say cat dog 3000", None)] * 2
    mixture = torch.tensor([[0, 1], [0, 1]]), torch.tensor([[0.6, 0.4], [1.0, 0.0]])
    found = []
    for read in (True, False):
        for _, chunk in engine.chunks(rows, routed=read):
            found.append(engine.answer(chunk, Assignment.fixed([0, 0], mixture)))
    assert found[0] == found[1]


def test_a_wrongly_routed_row_is_scored_on_what_the_chosen_expert_answers(mixed: Path) -> None:
    system = System.load(mixed / "system")
    data = load_prepared(mixed / "data")
    records = {"say": data.split("test", "say")[:4]}
    assert system.router is not None

    class Wrong(type(system.router)):  # type: ignore[misc]
        def route(self, batch):  # type: ignore[no-untyped-def]
            found = super().route(batch)
            chances = torch.zeros_like(found.probabilities)
            chances[:, system.names.index("mood")] = 1.0
            return type(found).from_probabilities(chances, top_k=1)

    system.router.__class__ = Wrong
    scores = score_system(system, records, resamples=5)["tasks"]["say"]
    assert scores["routed"] == 0.0 and scores["all"]["oracle"]["lm_loss"] > 0
    assert scores["all"]["routed"]["lm_loss"] > scores["all"]["oracle"]["lm_loss"]  # it costs what the base would


def test_the_command_line_writes_and_streams(mixed: Path, tmp_path: Path) -> None:
    place = mixed / "system"
    whole = call("predict", place, "say cat dog 3000", "--task", "say", "--json")
    assert whole.exit_code == 0, whole.output
    text = json.loads(whole.stdout)["answer"]
    streamed = call("predict", place, "say cat dog 3000", "--task", "say", "--stream")
    assert streamed.stdout.strip() == text.strip()
    short = call("predict", place, "say cat dog 3000", "--task", "say", "--json", "--max-new-tokens", "1")
    assert len(json.loads(short.stdout)["answer"]) <= 1
    file = write_lines(tmp_path / "rows.jsonl", [{"text": text} for text in ASKED])
    rows = call("predict", place, "--file", file, "--json")
    assert len(rows.stdout.splitlines()) == len(ASKED)
    refused(call("predict", place, "--file", file, "--stream"), "--stream shows one text")
    refused(
        call("predict", place, "say", "--top-p", "2"), "generation: top_p: got 2.0; should be less than or equal to 1"
    )


def test_a_causal_adapter_trained_elsewhere_is_added(den: Path, mixed: Path, tmp_path: Path) -> None:
    place = tmp_path / "system"
    shutil.copytree(mixed / "system", place)
    model = AutoModelForCausalLM.from_pretrained(System.load(place).bases["writer"].spec.path)
    torch.manual_seed(3)
    lora = LoraConfig(
        r=2, target_modules=["c_attn"], init_lora_weights=False, fan_in_fan_out=True, task_type="CAUSAL_LM"
    )
    get_peft_model(model, lora).save_pretrained(str(tmp_path / "adapter"))
    task = den / "conf" / "task" / "shout.yaml"
    line = ("expert", "add", place, tmp_path / "adapter", "--task", task, "--data", den / "rows")
    refused(call(*line, "--base", "wirter"), "no base 'wirter'")
    done = call(*line, "--base", "writer")
    assert done.exit_code == 0, done.output
    system = System.load(place)
    assert system.names == ["mood", "say", "shout"]
    (answer,) = system.predict(["SHOUT cat dog 1"], tasks=["shout"])
    assert answer.answer is not None and answer.answer.kind == "text"


def test_wrong_settings_are_named(den: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown prompt 'plian'.*plain"):
        run_tasks(settings(den, "mixed", "task.say.prompt=plian"))
    with pytest.raises(ConfigError, match=r"labels is \['a', 'b'\]; a causal_lm head has none"):
        settings(den, "mixed", "task.say.labels=[a,b]")
    with pytest.raises(ConfigError, match="writes text, and fusions"):
        settings(den, "mixed", "+experts.fusion.say={}")


def test_the_bare_base_may_be_asked_and_answers_what_no_expert_does(mixed: Path) -> None:
    """In one batch with experts, as it would alone; and it says so."""
    system = System.load(mixed / "system")
    writer = Base.load(system.bases["writer"].spec, device=torch.device("cpu"))
    prompts = [prompt.ids for prompt in encode_prompts(writer, [(text, None) for text in ASKED], form="plain", room=60)]
    bare = [row.text.strip() for row in generate(writer, prompts, None, Generation(max_new_tokens=6))]
    tasks = ["mood", "base", "base", "say", "base"]
    found = system.predict(ASKED, tasks=tasks, generation={"max_new_tokens": 6})
    assert [p.task for p in found] == tasks and [p.expert for p in found] == ["mood", None, None, "say", None]
    assert [found[i].answer.value for i in (1, 2, 4)] == [bare[i] for i in (1, 2, 4)]  # type: ignore[union-attr]
    values = found[1].to_json()
    assert values["route"] == {"base": 1.0} and values["finish_reason"] in ("length", "stop")
    assert values["prompt_tokens"] == len(prompts[1]) and values["completion_tokens"] <= 6
    assert values["answer_score"] is None and "label_probabilities" not in values
    mood = found[0].to_json()
    chances = mood["label_probabilities"]
    assert chances.keys() == {"bad", "good"} and "finish_reason" not in mood
    assert sum(chances.values()) == pytest.approx(1, abs=1e-5)
    assert chances[mood["answer"]] == mood["answer_score"] == max(chances.values())
    shy = system.predict(ASKED, abstain_below=1.0, fallback="base", generation={"max_new_tokens": 6})
    assert [(p.task, p.expert, p.confidence) for p in shy] == [("base", None, None)] * 5
    assert [p.answer.value for p in shy] == bare  # type: ignore[union-attr]
    assert set(shy[0].route) == {"mood", "say"}
    nobody = system.predict(ASKED, abstain_below=1.0)
    assert [(p.task, p.confidence, p.answer) for p in nobody] == [(None, None, None)] * 5
    assert system.generate(ASKED, tasks=["base"] * 5, max_new_tokens=6) == bare
    assert "".join(system.stream(ASKED[0], task="base", max_new_tokens=6)).strip() == bare[0]


def test_the_command_line_asks_the_router_and_the_bare_base(mixed: Path) -> None:
    system = mixed / "system"
    said = call("predict", system, ASKED[0], "--task", "base", "--max-new-tokens", "3").stdout.split()
    assert said[0] == "base" and said[1] == "1.000"
    assert call("predict", system, ASKED[0], "--abstain-below", "1").stdout.split() == ["-", "-", "(abstained)"]
    fallen = call("predict", system, ASKED[0], "--abstain-below", "1", "--fallback", "base", "--json").stdout
    assert json.loads(fallen)["task"] == "base" and json.loads(fallen)["confidence"] is None
    shown = call("predict", system, ASKED[0], "--task", "mood", "--probabilities").stdout
    assert "(bad 0." in shown and ", good 0." in shown
    refused(call("predict", system, ASKED[0], "--fallback", "bass"), "--fallback is 'bass'; allowed: base, none")
    refused(call("predict", system, ASKED[0], "--top-k", "3"), "top_k is 3, the number of experts that are mixed")
    one, two = (call("predict", system, ASKED[0], "--json", "--top-k", str(k)).stdout for k in (1, 2))
    assert json.loads(one)["answer_score"] != json.loads(two)["answer_score"]
    refused(call("predict", system, ASKED[1], "--stream", "--top-k", "2"), "leave out --top-k")
    drawn = call("predict", system, ASKED[1], "--task", "say", "--sampling-top-k", "4", "--temperature", "2").stdout
    assert drawn.startswith("say")
