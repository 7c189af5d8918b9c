"""Models of the rows: trained on a schedule, or interpolated between two trained models."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from cpo.data import TokenizedExample
from cpo.ensembling import interpolate
from cpo.objectives import RANKED_OBJECTIVES
from cpo.scoring import Group
from cpo.training import TrainingExample
from cpo_suite.artifacts.base_models import BaseModel, ExternalModel, Loadable, Trained
from cpo_suite.artifacts.examples import Examples
from cpo_suite.artifacts.negatives import ContrastSets, Negatives
from cpo_suite.artifacts.step import Step
from cpo_suite.estimate import Cost, CostModel
from cpo_suite.store import Store, how
from cpo_suite.training_memory import slowdown


@dataclass(frozen=True, kw_only=True)
class Model(Trained):
    """A model trained from another on a training schedule; no `negatives` for MLE and PSS.

    Of each kind in a draw of negatives, which rows share, it takes as many as its `mixture` says,
    and of these the share `keep`.
    It repeats the first `steps_per_pass` batches, by default all, until it has made its steps.
    `held_out` are negatives of validation prompts, on which its objective is measured; without
    negatives, its loss on `validation` is measured every `held_out_every` steps, and the training
    ends once it has risen.
    """

    stage = "model"
    version = 3
    shared = True

    start: BaseModel | ExternalModel | Model
    examples: Examples
    negatives: Negatives | None = dataclasses.field()
    objective: str
    beta: float
    mixture: dict[str, int] = dataclasses.field(default_factory=dict)
    ranking: str = "minilm"
    keep: float = 1.0
    keep_nearest: bool = False
    held_out: Negatives | None = None
    validation: Examples | None = None
    held_out_every: int = 0
    steps_per_pass: int | None = None
    schedule: str = "constant"
    warmup_steps: int = 0
    mle_weight: float = 0.0
    sampling_probability: float = 0.0
    sampling_passes: int = 0
    name: str = how()

    @property
    def title(self) -> str:
        return f"model {self.name}" if isinstance(self.start, Model) else self.name

    def build(self, folder: Path, store: Store) -> None:
        # A custom objective is registered by name, without the hash of its source.
        objective = self.objective.split(":")[0]
        held_out: Sequence[TrainingExample] = ()
        if self.negatives is None:
            planned = self.examples.planned(self._distinct_steps, self.batch, self.seed)
            examples: Sequence[TrainingExample] = _without_negatives(planned)
            if self.validation is not None:
                held_out = _without_negatives(self.validation.rows())
        else:
            ranked = objective in RANKED_OBJECTIVES
            examples = self.contrast_sets(store).training_examples(ranked)
            if self.held_out is not None:
                held_out = self._selected(store, self.held_out).training_examples(ranked)
        self.train(
            # A divided model moves to the GPUs layer by layer.
            self.start.load(self.start.folder(store), "cpu" if self.divides else None),
            list(islice(cycle(examples), self.steps * self.batch)),
            folder,
            store,
            held_out,
            self.held_out_every,
            objective=objective,
            description=f"training {self.name}",
            starts_at_reference=self.negatives is None or self.negatives.reference == self.start,
        )
        self.examples.tokenizer().save_pretrained(folder)

    @property
    def pieces(self) -> list[Model]:
        """Its training, in order: itself alone, or a piece for each draw of negatives."""
        continued = self.negatives is not None and self.negatives.iteration > 0
        earlier = self.start.pieces if continued and isinstance(self.start, Model) else []
        return [*earlier, self]

    @property
    def _distinct_steps(self) -> int:
        return self.steps_per_pass or self.steps

    def contrast_sets(self, store: Store) -> ContrastSets:
        """Its candidates on one pass over its training schedule."""
        assert self.negatives is not None
        return self._selected(store, self.negatives, self._distinct_steps * self.batch)

    def _selected(self, store: Store, draw: Negatives, rows: int | None = None) -> ContrastSets:
        counts = {kind.split(":")[0]: count for kind, count in self.mixture.items()}
        sets: ContrastSets = store.load(draw)
        sets = sets.select(counts, rows)
        if self.keep < 1:
            sets = sets.kept(self.keep, self.keep_nearest)
        return sets.ranked_by(draw.oracle_grades(sets)) if self.ranking == "oracle" else sets

    def cost(self, costs: CostModel) -> Cost:
        speeds = costs.speeds(self.model_name)
        prefix, continuation = costs.tokens(self.examples.task)
        k = 1 + sum(self.mixture.values())
        tokens = self.steps * self.batch * (prefix + k * continuation)
        seconds = tokens / (speeds.contrast if k > 1 else speeds.training)
        seconds *= slowdown(costs.profile, self.model_name, self.examples.task, k)
        # PSS: sampling passes without gradient, before the training pass.
        seconds += self.sampling_passes * tokens / speeds.scoring
        if self.held_out_every:
            times = -(-self.steps // self.held_out_every)
            rows = costs.prompts(self.examples.task, "validation")
            seconds += times * rows * (prefix + continuation) / speeds.scoring
        return Cost(seconds + self.steps * speeds.step)


def _without_negatives(rows: Sequence[TokenizedExample]) -> list[TrainingExample]:
    return [TrainingExample(Group(row.prefix_ids, [row.continuation_ids])) for row in rows]


@dataclass(frozen=True, kw_only=True)
class Ensemble(Loadable, Step):
    """theta = alpha * theta_MLE + (1 - alpha) * theta_CPO (section 4)."""

    stage = "ensemble"
    called = "model {}"
    version = 1

    mle: Model
    cpo: Model
    alpha: float
    name: str = how()

    @property
    def examples(self) -> Examples:
        """The examples of both ends."""
        return self.cpo.examples

    def build(self, folder: Path, store: Store) -> None:
        policy = store.load(self.cpo)
        interpolate(store.load(self.mle), policy, self.alpha).save_pretrained(folder)
        self.examples.tokenizer().save_pretrained(folder)
