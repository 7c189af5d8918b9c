"""`python -m benchmarks.activations`: bytes that a layer keeps for its backward pass, per token and
unit of width, for `BYTES_A_UNIT` of `cpo_suite.training_memory`.

GPT2-XL's and OpenLlama-3B's true width, with one layer and with two: the difference is a layer's,
whatever the vocabulary. The suite's own scorer runs on one prompt with five continuations, a
quarter as long as the paper's profile allows. What is saved is counted once per storage, without
parameters and their copies in bf16. Every CPU gives the same count; the attention kernels of a GPU
may keep a little more or less.
"""

from __future__ import annotations

import copy
import gc
import sys
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.paper_scale import MODELS
from benchmarks.shapes import LARGE_VOCABULARY, random_groups
from cpo.losses import cpo_loss
from cpo.scoring import GroupScorer, collate_groups

PREFIX, LENGTH, COLUMNS = 192, 64, 5


def saved_bytes(model: Any, precision: str, divided: bool, batch: dict[str, Tensor]) -> int:
    """Bytes that CPO's backward pass through this model needs, besides parameters and copies of
    them.

    Args:
        divided: count what a divided model keeps, which puts every group in one row.
        batch: as of `collate_groups`.
    """
    scorer = GroupScorer(model, precision)
    scorer.forward_pass = replace(scorer.forward_pass, one_pass=divided)
    kept: dict[int, Tensor] = {}  # held, so that no address is used again

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logps = scorer(**batch)
        cpo_loss(logps, logps.detach(), 5.0)
    weights = {tuple(sorted(weight.shape)) for weight in model.parameters() if weight.dim() == 2}
    for weight in model.parameters():
        kept.pop(weight.untyped_storage().data_ptr(), None)
    storages = [x.untyped_storage() for x in kept.values() if tuple(sorted(x.shape)) not in weights]
    return sum(storage.nbytes() for storage in storages)


def bytes_a_unit(config: Any, precision: str, divided: bool) -> float:
    """Bytes that a layer of this configuration keeps per token and unit of width."""
    shape = replace(LARGE_VOCABULARY, vocabulary=99)
    batch = collate_groups(random_groups(shape, PREFIX, LENGTH, 1, k=COLUMNS))
    config, saved = copy.deepcopy(config), []
    config.vocab_size = shape.vocabulary
    for layers in (1, 2):
        config.num_hidden_layers = layers
        model = AutoModelForCausalLM.from_config(config)
        saved.append(saved_bytes(model, precision, divided, batch))
        del model
        gc.collect()  # a model and its graph refer to each other
    return (saved[1] - saved[0]) / ((PREFIX + COLUMNS * LENGTH) * config.hidden_size)


if __name__ == "__main__":
    for name in sys.argv[1:] or MODELS:
        for precision in ("bf16", "fp32"):
            kept = [bytes_a_unit(MODELS[name].config, precision, way) for way in (False, True)]
            print(f"{name} {precision}: {kept[0]:.1f}, divided {kept[1]:.1f}", flush=True)
