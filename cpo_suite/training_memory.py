"""Memory of a training on each GPU, whole or divided, and whether a model is divided.

A training keeps weights, gradients and AdamW's two moments in fp32, in bf16 autocast's copy of the
weights until the backward pass, and a micro-batch's activations. Divided (`cpo.engine.division`),
a process keeps its share of the first; the copy, activations, the embedding and the head stay
whole, and besides them the layer that runs and the next one.
"""

from __future__ import annotations

import math
from typing import Any

from cpo_suite.paper import ModelName
from cpo_suite.profile import Profile

OF_A_PROCESS = 1.0  # GB, before a model is loaded
BYTES_A_WEIGHT = 16  # fp32 weight, gradient and Adam's two moments
BYTES_OF_COPY = 2  # per weight: autocast's bf16 copy, kept until the backward pass
BYTES_GATHERED = 8  # per weight that is put together: its value and its gradient, fp32
LAYERS_GATHERED = 2  # at once: the one that runs, and the next
# Activation bytes per token, layer and unit of width, by precision. Measured on groups of 4 and 12:
# bf16 70 (GPT-2) and 63 (Llama), fp32 130 and 95. We take the larger for bf16, and a middle value
# for fp32, in which large models are not trained. The bf16 value is twice the 34 of Korthikanti et
# al. (2022), since autocast leaves norms and residuals in fp32.
BYTES_A_UNIT = {"bf16": 70, "fp32": 118}
# A layer's weights in units of width^2: attention's four matrices, and an MLP of about eight.
SQUARES_A_LAYER = 12


def training_memory_gb(profile: Profile, name: ModelName, divided: bool | None = None) -> float:
    """Memory of a training of a model on each process, in GB of 10^9 bytes.

    Args:
        profile: the profile; micro-batch, precision and processes count.
        name: the model; activations are 0 where its width or layers are unknown.
        divided: whether it is divided among the processes; by default as the profile does.
    """
    if divided is None:
        divided = is_divided(profile, name)
    parameters = profile.models[name].parameters
    weights = parameters * BYTES_A_WEIGHT
    if divided:
        weights = weights / profile.processes.count + _gathered(profile, name) * BYTES_GATHERED
    if profile.optimiser.precision == "bf16":
        weights += parameters * BYTES_OF_COPY
    return weights / 1e9 + _activations_gb(profile, name) + OF_A_PROCESS


def is_divided(profile: Profile, name: ModelName) -> bool:
    """Whether a model's trainings are divided among the profile's processes: as
    `processes.divide` says, and by `auto` if a whole copy does not fit into `gpu_memory_gb`."""
    processes, available = profile.processes, profile.gpu_memory_gb
    if processes.divide != "auto" or processes.count == 1:
        return processes.divide == "always"
    return available is not None and training_memory_gb(profile, name, divided=False) > available


def training_fields(profile: Profile, name: ModelName) -> dict[str, Any]:
    """Fields common to all trainings of a model: the optimiser's, and whether it is divided."""
    return {**dict(profile.optimiser), "divided": is_divided(profile, name)}


def micro_batch_that_fits(profile: Profile, name: ModelName) -> int:
    """The largest power of two for `optimiser.micro_batch_tokens` that fits the profile's GPUs, or
    0."""
    now = profile.optimiser.micro_batch_tokens
    a_token = _activations_gb(profile, name) / now
    room = (profile.gpu_memory_gb or 0.0) - training_memory_gb(profile, name) + a_token * now
    return 2 ** int(math.log2(room / a_token)) if a_token and room / a_token >= 64 else 0


def _gathered(profile: Profile, name: ModelName) -> float:
    """Weights that a process of a divided training holds whole at once; all of them where the
    model's width or layers are unknown."""
    model = profile.models[name]
    width, layers = model.shape
    layer = SQUARES_A_LAYER * width**2
    outside = max(0.0, model.parameters - layers * layer)  # embedding, last norm, head
    return outside + min(LAYERS_GATHERED, layers) * layer


def _activations_gb(profile: Profile, name: ModelName) -> float:
    """Activations of a micro-batch; 0 where the model's width or layers are unknown."""
    model = profile.models[name]
    bytes_a_unit = BYTES_A_UNIT[profile.optimiser.precision]
    return bytes_a_unit * math.prod(model.shape) * profile.optimiser.micro_batch_tokens / 1e9
