"""Arms that hardly learn: the most frequent answer, and the bare base under heads that were trained for it or not."""

from __future__ import annotations

import math
from collections import Counter

from dynamorouter.bench.arms.base import Arm, arms
from dynamorouter.bench.experiment import Contest, factor_count, head_count
from dynamorouter.model.heads.base import Head, build_head
from dynamorouter.model.lora.expert import fresh_factors
from dynamorouter.tasks.answer import Answer
from dynamorouter.tasks.spec import WRITERS, answer_kind
from dynamorouter.tasks.task import Task
from dynamorouter.training.config import ExpertSettings
from dynamorouter.training.multitask import FrozenBody, Pupil, SharedOptions, fit_shared, shared_examples
from dynamorouter.training.validate import Examiner
from dynamorouter.utils.seeding import seeded


@arms.register("majority")
class Majority(Arm):
    """The most frequent label, tag or text of the train rows, and for spans the first words of the context."""

    about = (
        "the most frequent label, tag or text; for spans the context's first words, as many as answers have (median)"
    )

    def fit(self, contest: Contest) -> None:
        """Count the rows; each task's answer is found when it is wanted."""
        self.facts.work = 0.0
        self.facts.train_rows = sum(len(contest.rows("train", task)) for task in contest.names)

    def prepare(self, contest: Contest, task: str) -> None:
        """Count the targets."""
        targets = [record.target for record in contest.rows("train", task)]
        if contest.expert(task).task.head in WRITERS:
            texts = Counter(str(target["texts"][0]) for target in targets if isinstance(target, dict))
            self._said: str | int = texts.most_common(1)[0][0]
        elif isinstance(targets[0], str):
            self._said = Counter(str(target) for target in targets).most_common(1)[0][0]
        elif isinstance(targets[0], list):
            tags = Counter(tag for target in targets if isinstance(target, list) for tag in target)
            self._said = tags.most_common(1)[0][0]
        else:
            counts = sorted(len(str(t["texts"][0]).split()) for t in targets if isinstance(t, dict))
            self._said = counts[len(counts) // 2]

    def answer(self, contest: Contest, task: str) -> list[Answer | None]:
        """Say the same of every row."""
        kind = contest.expert(task).task.head
        found: list[Answer | None] = []
        for record in contest.rows("report", task):
            value: str | list[str] = str(self._said)
            if kind == "tags":
                value = [str(self._said)] * len(record.text.split())
            elif isinstance(self._said, int):
                value = " ".join((record.pair or record.text).split()[: self._said])
            found.append(Answer(answer_kind(kind), value, 1.0))
        return found


@arms.register("base")
class BareBase(Arm):
    """The bare base under the heads that were trained with the experts: a merge with coefficient zero."""

    about = "the bare base under the experts' heads: where every merge begins (coefficient 0)"

    def fit(self, contest: Contest) -> None:
        """Count what is stored: the heads."""
        self.facts.parameters = head_count(contest.system.experts)

    def answer(self, contest: Contest, task: str) -> list[Answer | None]:
        """Answer with the head of the task's expert."""
        contest.install_factors({}, key="base")
        return contest.answers(task)


@arms.register("probe")
class Probe(Arm):
    """A head trained on the frozen base: a linear probe, on the rows, epochs and rates of the experts."""

    about = "a new head for each task on the frozen bare base (a linear probe), on the experts' own train rows"

    def applies(self, task: Task) -> bool:
        """Tell whether the head has weights to train."""
        return task.head not in WRITERS

    def fit(self, contest: Contest) -> None:
        """Count what is stored."""
        self.facts.parameters = head_count(contest.system.experts)
        self.facts.train_rows = sum(len(contest.rows("train", task)) for task in contest.names)

    def prepare(self, contest: Contest, task: str) -> None:
        """Train the head of one task; the pass with the best score on the select rows is kept."""
        contest.install_factors({}, key="base")
        expert, own = contest.expert(task), contest.config.expert(task)
        self._head = build_head(expert.task, contest.base.width, expert.head.options)
        self._head.initialise(seeded(contest.seed, task, "probe")).to(contest.base.device)
        pupil = Pupil(expert.task, self._head, contest.rows("train", task))
        examples = shared_examples(contest.base, [pupil])
        limit = own.trunk_cache.limit_mb << 20
        body = FrozenBody(contest.base, examples, limit=limit, budget=own.tokens_per_batch)
        select = contest.examiner("select", task)
        options = as_experts(own, seed=contest.seed)
        scores = fit_shared(body, [pupil], examples, options=options, judge=lambda: judged(contest, select, self._head))
        self.facts.evaluations = len(scores) * len(contest.names)
        body.cache.close()

    def answer(self, contest: Contest, task: str) -> list[Answer | None]:
        """Answer with the probe."""
        return list(contest.examiner("report", task).answers(self._head, 0, gates=contest.own_gates()))


@arms.register("random_lora")
class RandomLora(Arm):
    """Factors drawn at random, in every layer as large as the mean expert's change, under the experts' heads."""

    about = "random factors, in every layer of the experts' mean norm, under the experts' heads"

    def fit(self, contest: Contest) -> None:
        """Draw the factors."""
        experts = contest.system.experts
        lora = experts[0].lora
        drawn = fresh_factors(contest.base, lora, seed=contest.seed, name="random_lora")
        for layer, factors in drawn.items():
            factors.b.normal_(generator=seeded(contest.seed, "random_lora", "b", layer))
            norms = [
                float((e.factors[layer].scaling * e.factors[layer].b @ e.factors[layer].a).norm())
                for e in experts
                if layer in e.factors
            ]
            size = float((factors.scaling * factors.b @ factors.a).norm())
            factors.b.mul_(sum(norms) / max(1, len(norms)) / max(size, 1e-12))
        self._factors = drawn
        self.facts.parameters = factor_count(experts[:1]) + head_count(experts)

    def answer(self, contest: Contest, task: str) -> list[Answer | None]:
        """Answer with the head of the task's expert over the random change."""
        contest.install_factors(self._factors, key="random_lora")
        return contest.answers(task)


def as_experts(own: ExpertSettings, *, seed: int) -> SharedOptions:
    """Return the options of a shared body that is trained as the experts are."""
    return SharedOptions(
        epochs=own.epochs,
        batch_rows=own.batch_rows * own.accumulation,
        learning_rate=own.learning_rate,
        head_learning_rate=own.head_learning_rate or own.learning_rate,
        weight_decay=own.weight_decay,
        warmup=own.warmup,
        clip=own.clip or math.inf,
        budget=own.tokens_per_batch,
        seed=seed,
    )


def judged(contest: Contest, examiner: Examiner, head: Head) -> float:
    """Return the headline score of a head over what lies in the banks."""
    return examiner(head, 0, gates=contest.own_gates())
