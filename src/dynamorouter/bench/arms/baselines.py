"""Arms that hardly learn: the most frequent answer, and the bare base under heads that were trained for it or not."""

from __future__ import annotations

from dynamorouter.bench.arms.base import Arm, arms
from dynamorouter.bench.experiment import Experiment, factor_count, head_count
from dynamorouter.model.heads.base import Head, build_head
from dynamorouter.model.lora.expert import fresh_factors
from dynamorouter.tasks.answer import Answer
from dynamorouter.tasks.kinds import head_kind
from dynamorouter.tasks.task import Task
from dynamorouter.training.multitask import FrozenBackbone, TaskHead, fit_shared, shared_examples
from dynamorouter.training.validate import Validator
from dynamorouter.utils.seeding import seeded


@arms.register("majority")
class Majority(Arm):
    """The most frequent label, tag or text of the train rows, and for spans the first words of the context."""

    about = (
        "the most frequent label, tag or text; for spans the context's first words, as many as answers have (median)"
    )

    def fit(self, experiment: Experiment) -> None:
        """Count the rows; each task's answer is found when it is wanted."""
        self.facts.work = 0.0
        self.facts.train_rows = sum(len(experiment.rows("train", task)) for task in experiment.names)

    def prepare(self, experiment: Experiment, task: str) -> None:
        """Count the targets."""
        kind = head_kind(experiment.expert(task).task.head)
        self._kind = kind.answer_kind
        self._most_frequent = kind.most_frequent([record.target for record in experiment.rows("train", task)])

    def answer(self, experiment: Experiment, task: str) -> list[Answer | None]:
        """Say the same of every row."""
        return [Answer(self._kind, self._most_frequent(record), 1.0) for record in experiment.rows("test", task)]


@arms.register("base")
class BareBase(Arm):
    """The bare base under the heads that were trained with the experts: a merge with coefficient zero."""

    about = "the bare base under the experts' heads: where every merge begins (coefficient 0)"

    def fit(self, experiment: Experiment) -> None:
        """Count what is stored: the heads."""
        self.facts.parameters = head_count(experiment.system.experts)

    def answer(self, experiment: Experiment, task: str) -> list[Answer | None]:
        """Answer with the head of the task's expert."""
        experiment.install_factors({}, key="base")
        return experiment.answers(task)


@arms.register("probe")
class Probe(Arm):
    """A head trained on the frozen base: a linear probe, on the rows, epochs and rates of the experts."""

    about = "a new head for each task on the frozen bare base (a linear probe), on the experts' own train rows"

    def applies(self, task: Task) -> bool:
        """Tell whether the head has weights to train."""
        return not head_kind(task.head).is_generative

    def fit(self, experiment: Experiment) -> None:
        """Count what is stored."""
        self.facts.parameters = head_count(experiment.system.experts)
        self.facts.train_rows = sum(len(experiment.rows("train", task)) for task in experiment.names)

    def prepare(self, experiment: Experiment, task: str) -> None:
        """Train the head of one task; the pass with the best score on the validation rows is kept."""
        experiment.install_factors({}, key="base")
        expert, settings = experiment.expert(task), experiment.config.expert(task)
        self._head = build_head(expert.task, experiment.base.width, expert.head.options)
        self._head.initialise(seeded(experiment.seed, task, "probe")).to(experiment.base.device)
        task_head = TaskHead(expert.task, self._head, experiment.rows("train", task))
        examples = shared_examples(experiment.base, [task_head])
        limit = settings.trunk_cache.limit_mb << 20
        body = FrozenBackbone(experiment.base, examples, limit=limit, budget=settings.tokens_per_batch)
        validator = experiment.validator("validation", task)
        scores = fit_shared(
            body,
            [task_head],
            examples,
            config=settings,
            seed=experiment.seed,
            validate=lambda: validation_score(experiment, validator, self._head),
        )
        self.facts.evaluations = len(scores) * len(experiment.names)
        body.cache.close()

    def answer(self, experiment: Experiment, task: str) -> list[Answer | None]:
        """Answer with the probe."""
        return list(experiment.validator("test", task).answers(self._head, 0, gates=experiment.installed_gates()))


@arms.register("random_lora")
class RandomLora(Arm):
    """Factors drawn at random, in every layer as large as the mean expert's change, under the experts' heads."""

    about = "random factors, in every layer of the experts' mean norm, under the experts' heads"

    def fit(self, experiment: Experiment) -> None:
        """Draw the factors."""
        experts = experiment.system.experts
        lora = experts[0].lora
        drawn = fresh_factors(experiment.base, lora, seed=experiment.seed, name="random_lora")
        for layer, factors in drawn.items():
            factors.b.normal_(generator=seeded(experiment.seed, "random_lora", "b", layer))
            norms = [
                float((e.factors[layer].scaling * e.factors[layer].b @ e.factors[layer].a).norm())
                for e in experts
                if layer in e.factors
            ]
            size = float((factors.scaling * factors.b @ factors.a).norm())
            factors.b.mul_(sum(norms) / max(1, len(norms)) / max(size, 1e-12))
        self._factors = drawn
        self.facts.parameters = factor_count(experts[:1]) + head_count(experts)

    def answer(self, experiment: Experiment, task: str) -> list[Answer | None]:
        """Answer with the head of the task's expert over the random change."""
        experiment.install_factors(self._factors, key="random_lora")
        return experiment.answers(task)


def validation_score(experiment: Experiment, validator: Validator, head: Head) -> float:
    """Return the primary score of a head over what lies in the banks."""
    return validator(head, 0, gates=experiment.installed_gates())
