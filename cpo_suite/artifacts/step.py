"""Base class of a plan's artifacts, and their costs."""

from __future__ import annotations

from typing import ClassVar

from cpo_suite.estimate import (
    CHECKPOINT_BYTES,
    LAUNCH_SECONDS,
    OVERHEAD_SECONDS,
    OVERHEAD_WITHOUT_MODEL,
    SECONDS_A_WEIGHT,
    WITHOUT_MODEL,
    Cost,
    CostModel,
    Planned,
)
from cpo_suite.paper import ModelName
from cpo_suite.profile import Profile
from cpo_suite.store import Artifact, Store
from cpo_suite.training_memory import BYTES_OF_WEIGHT, OF_A_PROCESS


class Step(Artifact):
    """An artifact of the plan, with a title, a base model and a cost.

    `called` is the template of its title, with `{}` for the row.
    """

    called: ClassVar[str]

    @property
    def title(self) -> str:
        """Its title in the plan."""
        return self.called.format(self.label)

    @property
    def label(self) -> str:
        """Its row, reference or base model."""
        return self.name  # type: ignore[attr-defined]

    @property
    def model_name(self) -> ModelName:
        """The profile's name of the base model, which determines its cost."""
        return self.examples.base.name  # type: ignore[attr-defined]

    def cost(self, costs: CostModel) -> Cost:
        """The cost of building it on one process."""
        return Cost()

    def memory_gb(self, profile: Profile) -> float:
        """Memory of each process that builds it, in GB of 10^9 bytes."""
        return profile.models[self.model_name].parameters * BYTES_OF_WEIGHT / 1e9 + OF_A_PROCESS


def planned_artifact(artifact: Step, store: Store, costs: CostModel) -> Planned:
    """An artifact's entry in the plan: its state, and its cost here."""
    profile, cost, stage = costs.profile, artifact.cost(costs), artifact.stage
    parameters = profile.models[artifact.model_name].parameters
    weights_gb, trains = parameters * BYTES_OF_WEIGHT / 1e9, stage in ("base_model", "model")
    fixed = cost.fixed + (OVERHEAD_WITHOUT_MODEL if stage in WITHOUT_MODEL else OVERHEAD_SECONDS)
    if stage not in ("verdicts", "unhelpful"):
        fixed += parameters * SECONDS_A_WEIGHT
    processes = profile.processes.count if artifact.shared else 1
    seconds = cost.seconds / processes + fixed + (LAUNCH_SECONDS if processes > 1 else 0.0)
    return Planned(
        artifact.title,
        stage,
        artifact.key,
        cached=store.find(artifact) is not None,
        seconds=seconds,
        memory_gb=artifact.memory_gb(profile),
        disk_gb=weights_gb if trains or stage == "ensemble" else 0.001,
        scratch_gb=parameters * CHECKPOINT_BYTES / 1e9 if trains else 0.0,
        alone=cost.seconds + fixed,
        gpu_hours=seconds * processes / 3600 if profile.gpus and not cost.requests else 0.0,
        usd=cost.usd,
        requests=cost.requests,
        tokens=cost.tokens,
    )
