"""A model divided among processes: torch's FSDP2, each layer a unit, the scorer the root.

Each process holds a part of every weight, gradient and moment; a layer is put together just before
it runs and taken apart after it. Products, sums and the global batch stay as they are, so a divided
training ends in the weights of a whole one, up to rounding.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as distributed_checkpoint
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from transformers import Trainer
from transformers.trainer import SCHEDULER_NAME

from cpo.engine import machine
from cpo.engine.forward_pass import ModelError, checkpoint_layers, score_in_one_pass
from cpo.engine.processes import process_count

SHARDS = "shards"


def divide(scorer: Any, recompute: bool = False) -> None:
    """Divide a `GroupScorer` among the launched processes, in place.

    Its model may still be in the processor's memory: layer after layer, its parts move to this
    process's GPU. From then on it scores every batch in exactly one forward pass, since processes
    that hold parts of one model must make equally many.

    Args:
        scorer: the scorer, whose `model` is whole.
        recompute: layers recompute their activations in the backward pass, as they must where a
            batch is too large to keep them.

    Raises:
        ModelError: the model cannot take rows of different lengths in one batch.
    """
    if not scorer.forward_pass.pads:
        raise ModelError(
            f"{type(scorer.model).__name__} cannot be divided among processes: rows of different "
            "lengths cannot share a batch, so that the numbers of forward passes would differ. Set "
            "processes.divide=never"
        )
    score_in_one_pass(scorer)
    if recompute:
        checkpoint_layers(scorer.model)
        scorer.train()
    mesh = init_device_mesh(machine.device(), (process_count(),))
    units = set(scorer.model._no_split_modules or ())
    for module in scorer.model.modules():
        if type(module).__name__ in units:
            fully_shard(module, mesh=mesh)
    fully_shard(scorer, mesh=mesh)


def is_divided(module: nn.Module) -> bool:
    """Whether a module's weights are divided among processes."""
    return isinstance(module, FSDPModule)


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """A divided model's weights, put together in the main process's memory; {} in the others.

    Every process must call it. Tied weights are one tensor under several names.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: dict[str, Any] = get_model_state_dict(model, options=options)
    first: dict[int, str] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        if first.setdefault(id(weight), name) != name and name in weights:
            weights[name] = weights[first[id(weight)]]
    return weights


def save_shards(scorer: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Write weights and moments, each process its parts, into `folder/shards`."""
    weights, moments = get_state_dict(scorer, optimizer)
    state = {"weights": weights, "moments": moments}
    distributed_checkpoint.save(state, checkpoint_id=str(folder / SHARDS))


def load_shards(scorer: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Read what `save_shards` wrote, with any number of processes, into a scorer divided or not."""
    weights, moments = get_state_dict(scorer, optimizer)
    state: dict[str, Any] = {"weights": weights, "moments": moments}
    distributed_checkpoint.load(state, checkpoint_id=str(folder / SHARDS))
    set_state_dict(
        scorer, optimizer, model_state_dict=state["weights"], optim_state_dict=state["moments"]
    )


def has_shards(checkpoint: str | Path) -> bool:
    """Whether a checkpoint was written by a divided training."""
    return Path(checkpoint, SHARDS).is_dir()


class DividableTrainer(Trainer):
    """A trainer whose model may be divided: it is neither moved nor wrapped again, and a checkpoint
    has each process's parts, which any number of processes can read."""

    model: Any
    optimizer: Any
    lr_scheduler: Any

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if is_divided(self.model):  # it exchanges gradients itself
            prepare = self.accelerator.prepare_model
            self.accelerator.prepare_model = partial(prepare, evaluation_mode=True)

    def _move_model_to_device(self, model: Any, device: torch.device) -> None:
        if not is_divided(model):
            super()._move_model_to_device(model, device)

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        return norm.full_tensor() if is_divided(self.model) else norm

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the whole model; called in every process."""
        if not is_divided(self.model):
            super().save_model(output_dir, _internal_call)
        elif not _internal_call:  # a checkpoint's weights are among its shards
            self._save(output_dir, whole_weights(self.model))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not is_divided(self.model):
            super()._save_optimizer_and_scheduler(output_dir)
            return
        save_shards(self.model, self.optimizer.optimizer, Path(output_dir))
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir, SCHEDULER_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not has_shards(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        load_shards(self.model, self.optimizer.optimizer, Path(checkpoint))
        state = torch.load(Path(checkpoint, SCHEDULER_NAME), map_location="cpu", weights_only=True)
        self.lr_scheduler.load_state_dict(state)
