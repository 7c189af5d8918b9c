"""The cost of a run as text, before it starts: time, memory, disk space and price."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from tabulate import tabulate

from cpo_suite import precision
from cpo_suite.estimate import NOTEBOOK_SECONDS, Planned
from cpo_suite.paper import ModelName
from cpo_suite.profile import Profile
from cpo_suite.store import artifacts_folder
from cpo_suite.training_memory import (
    is_divided,
    micro_batch_that_fits,
    training_memory_gb,
    usable_gb,
)


def to_build(planned: Sequence[Planned]) -> list[Planned]:
    """Artifacts that are not cached."""
    return [item for item in planned if not item.cached]


def disk_gb(planned: Sequence[Planned]) -> float:
    """GB still needed: permanent files, plus checkpoints of the largest training."""
    todo = to_build(planned)
    return sum(item.disk_gb for item in todo) + max((item.scratch_gb for item in todo), default=0.0)


def totals(profile: Profile, planned: Sequence[Planned]) -> str:
    """The profile, the total cost of the artifacts to build, and trainings that do not fit.

    Memory is that of the largest artifact: they are built one by one.
    """
    store = artifacts_folder()
    settings = precision.resolved(profile, store)
    todo, count = to_build(planned), settings.processes.count
    memory = max((item.memory_gb for item in todo), default=0.0)
    seconds, on_each_gpu = sum(item.seconds for item in todo), ""
    time = duration(seconds)
    if settings.gpus:
        alone = duration(sum(item.alone for item in todo))
        time += f" on {count} GPUs or {alone} on one" if count > 1 else " on 1 GPU"
        used, held = sum(item.gpu_hours for item in todo), seconds * count / 3600
        time += f", {used:.1f} GPU-hours used, {held:.1f} held if all is done in one run"
        on_each_gpu = " on each GPU"
    costs = (
        f"about {time}",
        f"up to {memory:.1f} GB of memory{on_each_gpu}",
        f"{sum(item.disk_gb for item in todo):.2f} GB of disk",
        _requests(todo),
    )
    lines = [
        precision.statement(profile, store),
        f"{profile.name}: {profile.description}. Meant for {profile.hardware}.",
        f"{len(planned)} artifacts, {len(planned) - len(todo)} cached, {len(todo)} to build: "
        f"{', '.join(costs)}.",
    ]
    if (available := settings.gpu_memory_gb) is not None:
        lines += what_fits(settings, available)
    return "\n".join(lines)


def what_fits(profile: Profile, gpu_memory_gb: float) -> list[str]:
    """For each trained model, a sentence: whether its training fits into this memory per GPU, whole
    or divided, and otherwise what to set."""
    profile = profile.model_copy(update={"gpu_memory_gb": gpu_memory_gb})
    remedies = dict(too_large(profile, gpu_memory_gb))
    lines = []
    for name in _trained(profile):
        training = _training(profile, name)
        if training in remedies:
            lines.append(f"Does not fit: {training}: {remedies[training]}.")
        else:
            lines.append(f"Fits: {training}.")
    return lines


def _trained(profile: Profile) -> list[ModelName]:
    return list({row.model: None for row in profile.trained_rows})


def _training(profile: Profile, name: ModelName) -> str:
    """A model's training and its memory, in words."""
    needed, count = training_memory_gb(profile, name), profile.processes.count
    usable = f"of {usable_gb(profile.gpu_memory_gb or 0.0):.0f} usable"
    if not is_divided(profile, name):
        return f"training {name} takes {needed:.1f} GB on each GPU, {usable}"
    whole = training_memory_gb(profile, name, divided=False)
    return (
        f"training {name}, divided among {count} GPUs, takes {needed:.1f} GB on each, {usable} "
        f"({whole:.1f} whole)"
    )


def of_notebooks(count: int) -> str:
    """The cost of the notebooks besides their artifacts."""
    noun = "the notebook itself" if count == 1 else f"the {count} notebooks themselves"
    return f"Besides, {noun}: up to {duration(count * NOTEBOOK_SECONDS)}."


def too_large(profile: Profile, gpu_memory_gb: float) -> Iterator[tuple[str, str]]:
    """Trainings that exceed this memory per GPU, each with a remedy."""
    profile = profile.model_copy(update={"gpu_memory_gb": gpu_memory_gb})
    for name in _trained(profile):
        if training_memory_gb(profile, name) > usable_gb(gpu_memory_gb):
            yield _training(profile, name), _remedy(profile, name, gpu_memory_gb)


def _remedy(profile: Profile, name: ModelName, gpu_memory_gb: float) -> str:
    """What makes a training fit that does not."""
    processes, tokens = profile.processes, micro_batch_that_fits(profile, name)
    if tokens:
        return f"set optimiser.micro_batch_tokens={tokens}"
    may_divide = processes.count > 1 and processes.divide == "never"
    divided = training_memory_gb(profile, name, divided=True)
    if may_divide and divided <= usable_gb(gpu_memory_gb):
        return "set processes.divide=auto"
    if processes.count == 1:
        return (
            "set processes.count to several GPUs, among which it is divided, take one with more "
            f"memory, or leave out the rows of models.{name}"
        )
    return f"take more GPUs, or some with more memory, or leave out the rows of models.{name}"


def custom_rows(
    number: str, rows: Mapping[str, Sequence[str]], planned: Sequence[Planned]
) -> list[str]:
    """The cost of custom rows that a notebook defines, outside every plan; [] without any.

    Args:
        rows: candidate rows by custom row; it costs as much as the first candidate planned.
    """
    by_row: dict[str, list[Planned]] = {}
    for item in planned:  # such as "model t2/ANR"
        by_row.setdefault(item.name.split(" ")[-1], []).append(item)
    similar: list[Planned] = []
    for candidates in rows.values():
        similar += next((by_row[row] for row in candidates if row in by_row), [])
    if not similar:
        return []
    seconds = duration(sum(item.alone for item in similar))
    return [
        f"Not included: notebook {number} defines {', '.join(rows)}; if not cached, about "
        f"{seconds} more, {_requests(similar)}."
    ]


def _requests(planned: Sequence[Planned]) -> str:
    """Requests to chat models, and their price."""
    count, usd = sum(item.requests for item in planned), sum(item.usd for item in planned)
    tokens = sum(item.tokens for item in planned) / 1e6
    requests = f"{count:,} requests of {tokens:.1f} M tokens, " if count else ""
    return f"{requests}{usd:.2f} USD"


def artifacts_table(planned: Sequence[Planned]) -> str:
    """One line per artifact: cached, or to build and its cost."""
    heading = "artifact,stage,state,time,GPU-hours,memory GB,disk GB,requests,tokens,USD"
    rows = [heading.split(",")]
    for item in planned:
        cost = [duration(item.seconds), f"{item.gpu_hours:.2f}", f"{item.memory_gb:.2f}"]
        cost += [f"{item.disk_gb:.3f}", f"{item.requests:,}", f"{item.tokens:,.0f}"]
        state = ["cached"] if item.cached else ["to build", *cost, f"{item.usd:.2f}"]
        rows.append([item.name, item.stage, *state])
    return text_table(rows)


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as text in columns; the first row is the heading."""
    return tabulate(rows, headers="firstrow", tablefmt="plain", disable_numparse=True)


def duration(seconds: float) -> str:
    """A duration in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
