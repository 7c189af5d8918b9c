"""What the artifacts of a plan have in common, and a line of the plan."""

from __future__ import annotations

from typing import Any

from cpo_suite.estimate import (
    CHECKPOINT_BYTES,
    LAUNCH_SECONDS,
    OF_A_PROCESS,
    OVERHEAD_SECONDS,
    SECONDS_A_WEIGHT,
    WITHOUT_MODEL,
    Cost,
    Estimate,
    Planned,
    training_memory_gb,
)
from cpo_suite.paper import ModelName
from cpo_suite.store import Artifact, Store


class Step(Artifact):
    """An artifact of the plan: it has a title, belongs to a model, and knows its cost."""

    @property
    def title(self) -> str:
        """What the plan calls it."""
        raise NotImplementedError

    @property
    def model_name(self) -> ModelName:
        """The base model, by its name in the profile, whose size and speed its cost goes by."""
        return self.examples.base.name  # type: ignore[attr-defined]

    def cost(self, estimate: Estimate) -> Cost:
        """What building it takes, on one process."""
        raise NotImplementedError


def planned(artifact: Step, store: Store, estimate: Estimate) -> Planned:
    """An artifact with what it costs to build it here."""
    profile, cost = estimate.profile, artifact.cost(estimate)
    name = artifact.model_name
    made = store.find(artifact) is not None
    parameters = profile.models[name].parameters
    trains = artifact.stage in ("base_model", "model")
    held = parameters * 4 / 1e9
    processes = profile.processes.count if artifact.shared else 1
    used = "without" if artifact.stage in WITHOUT_MODEL else "with a model"
    fixed = cost.waiting + OVERHEAD_SECONDS[used] + cost.fixed
    if artifact.stage not in ("verdicts", "unhelpful"):
        fixed += parameters * SECONDS_A_WEIGHT
    seconds = cost.seconds / processes + fixed + (LAUNCH_SECONDS if processes > 1 else 0.0)
    spent: dict[str, Any] = {}
    if not made:
        spent = {
            "alone": cost.seconds + fixed,
            "gpu_hours": seconds * processes / 3600 if profile.gpus else 0.0,
            "usd": cost.usd,
            "requests": cost.requests,
            "tokens": cost.tokens,
        }
    return Planned(
        artifact.title,
        artifact.stage,
        artifact.key,
        made,
        0.0 if made else seconds,
        training_memory_gb(profile, name) if trains else held + OF_A_PROCESS,
        held if trains or artifact.stage == "ensemble" else 0.001,
        parameters * CHECKPOINT_BYTES / 1e9 if trains else 0.0,
        again=cost.seconds + fixed,
        cost=cost,
        **spent,
    )
