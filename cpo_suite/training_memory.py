"""Memory of a training on each GPU, whole or divided, whether a model is divided, and the memory of
gradients alone.

A training keeps weights, gradients and AdamW's two moments in fp32, in bf16 autocast's copy of the
weights until the backward pass, and a micro-batch's activations. Where continuations share their
prefix, they are differentiated first, and their gradients wait for the prefix's. Divided
(`cpo.engine.division`), a process keeps its share of the first; the copy, activations, the
embedding and the head stay whole, and besides them the layer that runs and the next one.
"""

from __future__ import annotations

import math
from typing import Any

from cpo_suite.paper import ModelName
from cpo_suite.profile import Profile

USABLE = 0.92  # of a GPU's memory; buffers of the exchange and fragmentation need the rest
WITH_RECOMPUTATION = 4 / 3  # a second forward pass beside a backward pass of two
OF_A_PROCESS = 1.0  # GB, before a model is loaded
BYTES_OF_WEIGHT = 4  # fp32
BYTES_A_WEIGHT = 16  # fp32 weight, gradient and Adam's two moments
BYTES_OF_COPY = 2  # per weight: autocast's bf16 copy, kept until the backward pass
BYTES_GATHERED = 8  # per weight that is put together: its value and its gradient, fp32
LAYERS_GATHERED = 2  # at once: the one that runs, and the next
# Bytes that a layer keeps for its backward pass, per token and unit of width: of a whole model, and
# of a divided one, which puts every group in one row. Counted on layers of GPT2-XL and OpenLlama-3B
# (`python -m benchmarks.activations`). Autocast leaves norms and residuals in fp32: bf16 takes
# more than the 34 of Korthikanti et al. (2022).
BYTES_A_UNIT = {
    ("gpt2", "bf16"): (47.4, 36.3),
    ("gpt2", "fp32"): (86.8, 64.7),
    ("llama", "bf16"): (54.8, 47.5),
    ("llama", "fp32"): (89.7, 75.1),
}
PREFIX_SHARE = 3 / 8  # of these activations, in the groups counted
# Per weight: its gradient by the continuations, which waits for that by their prefix, in the
# precision of the products.
BYTES_WAITING = {"bf16": 2, "fp32": 4}
BYTES_OF_INPUT = 4  # of activations, per unit of a layer that is recomputed: its input alone, fp32
# What activations take of a process on a CPU, which keeps freed memory (`cpo.engine.memory`),
# relative to their size. Measured on a Llama of 25 M; a GPT-2 takes less in bf16.
KEPT_ON_CPU = {"bf16": 1.4, "fp32": 1.0}
# Of a group's tokens, those that notebook 03 differentiates at once: the prefix and half of the
# negatives. Holds while a prefix has at most four continuations' tokens, K = 5 or more.
SHARE_DIFFERENTIATED = 2 / 3
# A layer's weights in units of width^2: attention's four matrices, and an MLP of about eight.
SQUARES_A_LAYER = 12


def training_memory_gb(profile: Profile, name: ModelName, divided: bool | None = None) -> float:
    """Memory of a training of a model on each process, in GB of 10^9 bytes.

    Args:
        profile: the profile, its precision not `auto`; micro-batch and processes count.
        name: the model; activations are 0 where its width or layers are unknown.
        divided: whether it is divided among the processes; by default as the profile does.
    """
    if divided is None:
        divided = is_divided(profile, name)
    parameters, precision = profile.models[name].parameters, profile.optimiser.precision
    activations = _activations_gb(profile, name, divided)
    weights = parameters * BYTES_A_WEIGHT
    if divided:
        weights = weights / profile.processes.count + _gathered(profile, name) * BYTES_GATHERED
    else:  # continuations are differentiated first, and their activations freed
        waiting = parameters * BYTES_WAITING[precision] / 1e9
        activations = max(activations, waiting + PREFIX_SHARE * activations)
    if precision == "bf16":
        weights += parameters * BYTES_OF_COPY
    return weights / 1e9 + activations + OF_A_PROCESS


def gradients_memory_gb(profile: Profile, name: ModelName) -> float:
    """Memory of the gradients of notebook 03 (`cpo.evaluation.gradients`), in GB of 10^9 bytes.

    One process takes them, whole and in fp32. Activations stay for each choice of weights, beside
    the gradients by the continuations, which wait for those by the prefix.
    """
    parameters = profile.models[name].parameters
    in_fp32 = profile.optimiser.model_copy(update={"precision": "fp32"})
    profile = profile.model_copy(update={"optimiser": in_fp32})
    activations = SHARE_DIFFERENTIATED * _activations_gb(profile, name, divided=False)
    weights = parameters * (BYTES_OF_WEIGHT + BYTES_WAITING["fp32"]) / 1e9
    return weights + activations + OF_A_PROCESS


def usable_gb(gpu_memory_gb: float) -> float:
    """What a process may plan to take of a GPU's memory."""
    return USABLE * gpu_memory_gb


def slowdown(profile: Profile, name: ModelName, task: str, k: int) -> float:
    """How many times as long as a whole model's a training step with K continuations takes: more
    than once where layers are recomputed. Judged by the longest group within the limits; the
    exchange of a divided model's weights is not counted."""
    recomputed = longest_group(profile, task, k) > profile.optimiser.micro_batch_tokens
    return WITH_RECOMPUTATION if recomputed and is_divided(profile, name) else 1.0


def is_divided(profile: Profile, name: ModelName) -> bool:
    """Whether a model's trainings are divided among the profile's processes: as
    `processes.divide` says, and by `auto` if a whole copy does not fit into `gpu_memory_gb`."""
    processes, available = profile.processes, profile.gpu_memory_gb
    if processes.divide != "auto" or processes.count == 1:
        return processes.divide == "always"
    whole = training_memory_gb(profile, name, divided=False)
    return available is not None and whole > usable_gb(available)


def training_fields(profile: Profile, name: ModelName) -> dict[str, Any]:
    """Fields common to all trainings of a model: the optimiser's, and whether it is divided."""
    return {**dict(profile.optimiser), "divided": is_divided(profile, name)}


def micro_batch_that_fits(profile: Profile, name: ModelName) -> int:
    """The largest power of two for `optimiser.micro_batch_tokens`, from 64 to its value, with which
    a training fits the profile's GPUs, as divided as it is now; or 0."""
    optimiser, divided = profile.optimiser, is_divided(profile, name)
    for exponent in range(int(math.log2(optimiser.micro_batch_tokens)), 5, -1):
        smaller = optimiser.model_copy(update={"micro_batch_tokens": 2**exponent})
        changed = profile.model_copy(update={"optimiser": smaller})
        if training_memory_gb(changed, name, divided) <= usable_gb(profile.gpu_memory_gb or 0.0):
            return 2**exponent
    return 0


def _gathered(profile: Profile, name: ModelName) -> float:
    """Weights that a process of a divided training holds whole at once; all of them where the
    model's width or layers are unknown."""
    model = profile.models[name]
    width, layers = model.shape
    layer = SQUARES_A_LAYER * width**2
    outside = max(0.0, model.parameters - layers * layer)  # embedding, last norm, head
    return outside + min(LAYERS_GATHERED, layers) * layer


def _activations_gb(profile: Profile, name: ModelName, divided: bool) -> float:
    """Activations of a micro-batch; 0 where the model's width or layers are unknown.

    One layer more than there are is counted, for the gradients within the layer that runs. A
    divided model recomputes layers in a group above `micro_batch_tokens`, and then keeps their
    inputs, one layer and its gradients.
    """
    width, layers = profile.models[name].shape
    architecture = name.removesuffix("_small")
    kept = BYTES_A_UNIT[architecture, profile.optimiser.precision][divided]
    units = (layers + 1) * kept * profile.optimiser.micro_batch_tokens
    if divided:
        recomputed = layers * BYTES_OF_INPUT + 2 * kept
        units = max(units, recomputed * _longest_of(profile, name))
    taken = 1.0 if profile.gpus else KEPT_ON_CPU[profile.optimiser.precision]
    return taken * units * width / 1e9


def longest_group(profile: Profile, task: str, k: int) -> float:
    """The most tokens that a prefix and its K continuations may have, by the profile's limits."""
    pairs, article = profile.instructions, profile.articles.max_tokens
    limits = {
        "instructions": (pairs.max_prefix_tokens, pairs.max_continuation_tokens),
        "articles": (0.15 * article, 0.85 * article),
    }
    prefix, continuation = limits[task]
    return prefix + k * continuation


def _longest_of(profile: Profile, name: ModelName) -> float:
    """The longest group that the rows of a model may train on."""
    return max(
        (
            longest_group(profile, row.task, 1 + sum(profile.negatives[row.negatives].values()))
            if row.negatives
            else longest_group(profile, row.task, 1)
            for row in profile.trained_rows
            if row.model == name
        ),
        default=0.0,
    )
