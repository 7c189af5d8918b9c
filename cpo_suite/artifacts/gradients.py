"""The gradient of each kind of negative at the reference, beside MLE's."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cpo.evaluation.gradients import Candidates, advantages, compare_gradients, ranked_advantages
from cpo.evaluation.statistics import Estimate
from cpo.scoring import Group
from cpo_suite.artifacts.models import Model
from cpo_suite.artifacts.negatives import ContrastSets, Negatives
from cpo_suite.artifacts.step import Step
from cpo_suite.estimate import Cost, CostModel
from cpo_suite.paper import ModelName
from cpo_suite.profile import Profile
from cpo_suite.store import Store, how
from cpo_suite.training_memory import gradients_memory_gb

UNTRUNCATED = "AN untruncated"


@dataclass(frozen=True)
class MeasuredGradients:
    """Estimates by kind and measure, as `compare_gradients` returns them, and by kind the mean
    weight 1 - 1/K of the ground truth's score."""

    measures: dict[str, dict[str, Estimate]]
    truth_weights: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Gradients(Step):
    """Expected gradients at the reference, on the first prompts of the training schedule.

    Kinds, by where their negatives come from: AN and ANR (`autoregressive`), AN without truncation
    (`untruncated`), and each kind of `mixed`. None leaves its kinds out.
    """

    stage = "gradients"
    called = "gradients at {}"
    version = 1

    reference: Model
    autoregressive: Negatives | None
    untruncated: Negatives | None
    mixed: Negatives | None
    prompts: int
    chunks: int
    micro_batch_tokens: int = how()

    @property
    def label(self) -> str:
        return self.reference.name

    @property
    def model_name(self) -> ModelName:
        return self.reference.model_name

    def memory_gb(self, profile: Profile) -> float:
        return gradients_memory_gb(profile, self.model_name)

    def build(self, folder: Path, store: Store) -> None:
        candidates = list(self._candidates(store))
        longest = max(
            len(group.prefix_ids) + sum(map(len, group.continuations))
            for one in candidates
            for group in one.groups
        )
        micro_batch = max(1, self.micro_batch_tokens // longest)
        model = store.load(self.reference)
        measured = MeasuredGradients(
            compare_gradients(model, candidates, self.chunks, micro_batch),
            {
                kind: float(weights[:, 0].mean())
                for one in candidates
                for kind, weights in one.advantages.items()
            },
        )
        text = json.dumps(dataclasses.asdict(measured), indent=1)
        (folder / "gradients.json").write_text(text, encoding="utf-8")

    def _candidates(self, store: Store) -> Iterator[Candidates]:
        """The candidates of all kinds, on the same prompts."""
        made = (self.autoregressive, self.untruncated, self.mixed)
        loaded = [store.load(one) if one else None for one in made]
        prompts = min(self.prompts, *(len(sets) for sets in loaded if sets is not None))
        autoregressive, untruncated, mixed = loaded  # ContrastSets
        if autoregressive is not None:
            groups, mask = _groups(autoregressive, prompts), _mask(autoregressive, prompts)
            order = torch.tensor(autoregressive.order[:prompts].astype("int64"))
            ranks = ranked_advantages(mask.gather(1, order))
            by_column = torch.zeros_like(ranks).scatter(1, order, ranks)
            yield Candidates(groups, mask, {"AN": advantages(mask), "ANR": by_column})
        if untruncated is not None:
            groups, mask = _groups(untruncated, prompts), _mask(untruncated, prompts)
            yield Candidates(groups, mask, {UNTRUNCATED: advantages(mask)})
        if mixed is not None:
            groups, every = _groups(mixed, prompts), _mask(mixed, prompts)
            for kind in dict.fromkeys(mixed.kinds[1:]):
                mask = every & torch.tensor([name in ("truth", kind) for name in mixed.kinds])
                yield Candidates(groups, mask, {kind: advantages(mask)})

    def load(self, folder: Path) -> MeasuredGradients:
        stored = json.loads((folder / "gradients.json").read_text("utf-8"))
        measures = {
            kind: {name: Estimate(**fields) for name, fields in of_kind.items()}
            for kind, of_kind in stored["measures"].items()
        }
        return MeasuredGradients(measures, stored["truth_weights"])

    def cost(self, costs: CostModel) -> Cost:
        speeds = costs.speeds(self.model_name)
        prefix, continuation = costs.tokens(self.reference.examples.task)
        tokens = 0.0
        # One forward pass of each candidate; a backward pass, twice as long, for each kind on it.
        for made, kinds in ((self.autoregressive, 2), (self.untruncated, 1), (self.mixed, 1)):
            if made is not None:
                prompts = min(self.prompts, made.steps * made.batch)
                k = 1 + sum(made.counts.values())
                tokens += prompts * (2 * prefix + k * continuation) * (1 + 2 * kinds) / 3
        return Cost(tokens / speeds.contrast)


def _groups(sets: ContrastSets, prompts: int) -> Sequence[Group]:
    return [Group(sets.prefixes[row], sets.candidates(row)) for row in range(prompts)]


def _mask(sets: ContrastSets, prompts: int) -> Tensor:
    return torch.tensor(sets.mask[:prompts])
