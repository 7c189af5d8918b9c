"""A model's weights against its configuration: what is missing, left over, misshapen or quantised.

transformers puts random numbers where it finds no weight, leaves out what it does not know, and
only warns. Here that is a fault. The headers of the files tell it before a weight is read.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

# What safetensors calls the dtypes of real numbers. Weights of any other are quantised.
REAL = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}

# Left by older versions in their checkpoints, and computed anew since: rotary frequencies, the
# causal mask, and what stood where it forbids. A mask is told from a bias by its shape.
COMPUTED = re.compile(r"(inv_freq|masked_bias|causal_mask)$")
MASK_SHAPE = (1, 1)

# Who wraps a model, and what that puts into the names of its weights.
WRAPPERS = {
    "_orig_mod": "torch.compile",
    "module": "DistributedDataParallel",
    "_fsdp_wrapped_module": "FullyShardedDataParallel",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "base_model.model": "peft",
}
INSIDE = r"\b(?:_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
RENAME = (
    'Take it out of the names: python -c "import pathlib, re, shutil; from safetensors.torch '
    "import load_file, save_file; shutil.copytree('{folder}', 'FOLDER'); "
    "[save_file({{re.sub(r'{pattern}', '', name): weight for name, weight in "
    "load_file(path).items()}}, path, {{'format': 'pt'}}) "
    "for path in pathlib.Path('FOLDER').glob('*.safetensors')]\", and give FOLDER in its place"
)
MERGE = (
    'Merge the adapter into its model first: pip install peft; python -c "from peft import '
    "AutoPeftModelForCausalLM as M; from transformers import AutoTokenizer as T; "
    "M.from_pretrained('{name}').merge_and_unload().save_pretrained('FOLDER'); "
    "T.from_pretrained('{name}').save_pretrained('FOLDER')\", and give FOLDER in its place"
)
TOGETHER = "Give a folder whose config.json and weights were written together, by save_pretrained"


class ModelFolderError(ValueError):
    """A model folder that cannot be used; the message says what is wrong and what to do."""


@dataclass(frozen=True)
class Fault:
    """What is wrong with a model folder, and what to do."""

    what: str
    remedy: str


@dataclass(frozen=True)
class Stored:
    """One weight as the header of its file describes it; `dtype` in safetensors' words."""

    dtype: str
    shape: tuple[int, ...]


def shards(folder: Path) -> list[Path]:
    """The files that hold a folder's weights, as its index lists them if it has one.

    Raises:
        OSError, ValueError, LookupError, AttributeError: the index cannot be read.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = json.loads((folder / INDEX).read_text("utf-8"))
    return [folder / name for name in sorted(set(index["weight_map"].values()))]


def stored_weights(folder: Path) -> dict[str, Stored]:
    """Every weight of a folder by its name, from the headers of its safetensors files.

    Raises:
        OSError, SafetensorError: a file is missing, cut short, or no safetensors file.
    """
    from safetensors import safe_open

    stored = {}
    for path in shards(folder):
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                part = file.get_slice(name)
                stored[name] = Stored(part.get_dtype(), tuple(part.get_shape()))
    return stored


def quantisation(config: Mapping[str, Any]) -> str:
    """What quantised the weights, by config.json; "" if nothing did."""
    for part in (config, config.get("text_config")):
        settings = part.get("quantization_config") if isinstance(part, Mapping) else None
        if settings:
            method = settings.get("quant_method") or "bitsandbytes"
            bits = settings.get("bits") or next(
                (bits for bits in (4, 8) if settings.get(f"load_in_{bits}bit")), None
            )
            return f"{method}, {bits} bits" if bits else str(method)
    return ""


def quantised(how: str) -> Fault:
    """The fault of weights that are no real numbers."""
    return Fault(
        f"its weights are quantised ({how}), and training and log-ratios need real numbers",
        "Give the model that was quantised, in fp32, fp16 or bf16; its page on the hub names it",
    )


def misfit(folder: Path) -> Fault | None:
    """What is wrong with the names, shapes and dtypes of a folder's weights, if anything.

    transformers itself loads them, as tensors without content: what it renames, converts, ties or
    ignores is no fault, and no weight is read. None as well where that cannot be tried: the load
    itself will tell.
    """
    try:
        stored = stored_weights(folder)
        model, report = _dry_load(folder, stored)
        if how := _integers(folder, stored, model, report):
            return quantised(how)
        fault = fault_of(model, report, stored)
        return fault and Fault(fault.what, _remedy(folder, stored, report) or fault.remedy)
    except Exception:  # architectures fail in many ways without content
        return None


def fault_of(
    model: Any, report: Mapping[str, Collection[Any]], stored: Mapping[str, Stored]
) -> Fault | None:
    """The fault that a load's report tells of, if any.

    Args:
        model: as it was loaded.
        report: `from_pretrained`'s with `output_loading_info`.
        stored: what the files hold, by name; may be empty.
    """
    missing, misshapen = sorted(report["missing_keys"]), sorted(report["mismatched_keys"])
    unexpected = sorted(name for name in report["unexpected_keys"] if not _computed(name, stored))
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing ({_some(missing)})")
    if unexpected:
        parts.append(f"{len(unexpected)} unknown ({_some(unexpected)})")
    if misshapen:
        shapes = [f"{name} is {list(has)}, not {list(wanted)}" for name, has, wanted in misshapen]
        parts.append(f"{len(misshapen)} of another shape ({_some(shapes)})")
    if parts:
        kind = type(model).__name__
        what = f"its weights are not those of the {kind} in its config.json: {', '.join(parts)}"
        return Fault(what, _remedy_by_names(model, missing, unexpected, misshapen))
    if _looks_ahead(model):
        return Fault(
            f"its config.json says that it is no decoder: {type(model).__name__} then sees the "
            "tokens that it should predict",
            "Give a model that reads from left to right; if this one was trained to, set "
            "is_decoder to true in its config.json",
        )
    return None


def _dry_load(folder: Path, stored: Mapping[str, Stored]) -> tuple[Any, dict[str, Any]]:
    """A model without content, and the report of loading such weights into it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        weights = {
            name: torch.empty(weight.shape, dtype=getattr(torch, REAL.get(weight.dtype, "int8")))
            for name, weight in stored.items()
        }
    with quietly():
        return type(empty).from_pretrained(
            None,
            config=empty.config,
            state_dict=weights,
            device_map={"": "meta"},
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )


@contextmanager
def quietly() -> Iterator[list[str]]:
    """Keeps transformers from writing; gives what it warned of instead."""
    from transformers.utils import logging as library

    said: list[str] = []
    collector = logging.Handler(logging.WARNING)
    collector.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("transformers")
    level, handlers, propagate = logger.level, logger.handlers, logger.propagate
    bars = library.is_progress_bar_enabled()
    logger.setLevel(logging.WARNING)
    logger.handlers, logger.propagate = [collector], False
    library.disable_progress_bar()
    try:
        yield said
    finally:
        logger.setLevel(level)
        logger.handlers, logger.propagate = handlers, propagate
        if bars:
            library.enable_progress_bar()


def _integers(
    folder: Path, stored: Mapping[str, Stored], model: Any, report: Mapping[str, Any]
) -> str:
    """Which weights are stored as integers or as floats of 8 bits or fewer; "" if none are.

    Masks and positions may be integers: what counts is what the model has as a real number.
    """
    integers = {
        name
        for name, weight in stored.items()
        if weight.dtype not in (*REAL, "BOOL", "I64") and not _computed(name, stored)
    }
    if not integers:
        return ""
    real = {name: weight for name, weight in stored.items() if name not in integers}
    lacking = _dry_load(folder, real)[1]["missing_keys"] - report["missing_keys"]
    wanted = {name for name in lacking if model.get_parameter_or_buffer(name).is_floating_point()}
    if names := sorted(wanted | report["unexpected_keys"] & integers):
        return f"{', '.join(sorted({stored[name].dtype for name in integers}))}: {_some(names)}"
    return ""


def _remedy_by_names(
    model: Any, missing: list[str], unexpected: list[str], misshapen: list[Any]
) -> str:
    head = model.get_output_embeddings()
    heads = [f"{name}.weight" for name, module in model.named_modules() if module is head]
    rows = {(has[0], wanted[0]) for _, has, wanted in misshapen if has[1:] == wanted[1:]}
    if missing == heads and not unexpected and not misshapen:
        return (
            "If the model's head is its embedding, set tie_word_embeddings to true in its "
            "config.json; otherwise fetch its weights again"
        )
    if missing and not unexpected and not misshapen:
        return "Fetch it again: a part of its weights is not there"
    if unexpected and not missing and not misshapen:
        return f"{TOGETHER}, without what was added for a training, such as a value head"
    vocabulary = model.config.get_text_config().vocab_size
    if len(rows) == 1 and not missing and not unexpected and next(iter(rows))[1] == vocabulary:
        has, wanted = next(iter(rows))
        return (
            f"Set vocab_size to {has} in its config.json if its tokenizer has at most {has} "
            f"entries; otherwise give the weights of {wanted}"
        )
    return TOGETHER


def _remedy(folder: Path, stored: Mapping[str, Stored], report: Mapping[str, Any]) -> str:
    """What to do where the names tell it: of an adapter, or of what had wrapped the model."""
    if any(".lora_" in name for name in stored):
        return "It was saved with an adapter in it: merge that with peft, and save the model again"
    if not report["unexpected_keys"]:
        return ""
    outside = os.path.commonprefix(list(stored)).rpartition(".")[0]
    for pattern in (INSIDE, r"^base_model\.model\.", f"^{re.escape(outside)}\\."):
        renamed = {re.sub(pattern, "", name): weight for name, weight in stored.items()}
        if renamed.keys() != stored.keys() and not fault_of(*_dry_load(folder, renamed), renamed):
            found = re.search(pattern, next(iter(stored)))
            prefix = found.group() if found else ""
            wrapper = WRAPPERS.get(prefix.removesuffix("."), "what wrapped the model")
            remedy = RENAME.format(folder=folder, pattern=pattern)
            return f"'{prefix}' in the names is left from {wrapper}. {remedy}"
    return ""


def _computed(name: str, stored: Mapping[str, Stored]) -> bool:
    shape = stored[name].shape if name in stored else ()
    mask = name.endswith(".bias") and len(shape) == 4 and shape[:2] == MASK_SHAPE
    return mask or COMPUTED.search(name) is not None


def _looks_ahead(model: Any) -> bool:
    """Whether this is an encoder of BERT's kind: a decoder only where its config.json says so."""
    decoder = getattr(model.config, "is_decoder", True)
    return decoder is False and not model.config.model_type.startswith("gpt_neox")


def _some(names: Collection[str], count: int = 3) -> str:
    shown = ", ".join(list(names)[:count])
    return shown if len(names) <= count else f"{shown}, ..."
