"""A model's weights against its configuration: missing, unknown, misshapen or quantised ones.

transformers initialises missing weights at random, drops unknown ones, and only warns. Here its
load report decides. Loading only the files' headers, as tensors without content, gives the same
report: weights that transformers renames, merges, ties or ignores are no fault.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

# Weights of other dtypes are quantised; masks and positions may be booleans or integers.
SOUND = {"float64", "float32", "float16", "bfloat16", "bool", "int64"}
# Stored by older versions, and computed since: rotary frequencies, the causal mask and its fill
# value.
COMPUTED = re.compile(r"(inv_freq|masked_bias|causal_mask)$")

# Wrappers leave their prefix in the names of the weights.
WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "module.": "DistributedDataParallel",
    "_fsdp_wrapped_module.": "FullyShardedDataParallel",
    "_checkpoint_wrapped_module.": "activation checkpointing",
    "base_model.model.": "peft",
}
WRAPPER = rf"\b(?:{'|'.join(map(re.escape, WRAPPERS))})"
RENAME = (
    'Remove it from the names: python -c "import pathlib, re, shutil; from safetensors.torch '
    "import load_file, save_file; shutil.copytree('{folder}', 'FOLDER'); "
    "[save_file({{re.sub(r'{pattern}', '', name): weight for name, weight in "
    "load_file(path).items()}}, path, {{'format': 'pt'}}) "
    "for path in pathlib.Path('FOLDER').glob('*.safetensors')]\", and use FOLDER instead"
)
FETCH = "Fetch it again; after a `git clone` that is `git lfs pull`"
TOGETHER = "Give a folder whose config.json and weights were written together, by save_pretrained"


class ModelFolderError(ValueError):
    """A model folder that cannot be used; the message says what is wrong and what to do."""


class Fault(NamedTuple):
    """What is wrong with a model folder, and what to do."""

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}. {self.remedy}."


def shards(folder: Path) -> list[Path]:
    """The files that hold a folder's weights, as its index lists them if it has one.

    Raises:
        OSError, ValueError, LookupError, AttributeError: the index cannot be read.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = json.loads((folder / INDEX).read_text("utf-8"))
    return [folder / name for name in sorted(set(index["weight_map"].values()))]


def header(path: Path) -> dict[str, Tensor]:
    """The weights of a safetensors file by name, as tensors without content."""
    import torch
    from safetensors import safe_open
    from transformers.modeling_utils import str_to_torch_dtype

    def empty(part: Any) -> Tensor:
        dtype = str_to_torch_dtype.get(part.get_dtype(), torch.uint8)
        return torch.empty(part.get_shape(), dtype=dtype, device="meta")

    with safe_open(path, framework="numpy") as file:  # which maps no more than the header
        return {name: empty(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118


def load(
    model_class: Any, folder: Path | None, **arguments: Any
) -> tuple[Any, dict[str, Any], list[str]]:
    """A model by its class's `from_pretrained`, the load report, and the warnings.

    Raises:
        ModelFolderError: it cannot be loaded.
    """
    arguments |= {"trust_remote_code": False, "output_loading_info": True}
    messages: list[str] = []
    try:
        with _collected(messages):
            model, report = model_class.from_pretrained(
                folder, ignore_mismatched_sizes=True, **arguments
            )
    except (RuntimeError, ValueError, ImportError) as error:
        what = summary(error).rstrip(".")
        # A part of a merged weight is missing or misshapen.
        if joined := re.findall(r"^(\S+) +\| .*CONVERSION", "\n".join(messages), re.MULTILINE):
            what = f"{len(joined)} weights cannot be merged, {_some(joined)}. {TOGETHER}"
        place = arguments.get("gguf_file", folder)
        raise ModelFolderError(f"{place} cannot be loaded: {what}.") from error
    return model, report, [message for message in messages if "LOAD REPORT" not in message]


@contextmanager
def _collected(messages: list[str]) -> Iterator[None]:
    """Silence transformers, adding its warnings to `messages` instead."""
    from transformers.utils import logging as library

    logger, handler = logging.getLogger("transformers"), BufferingHandler(10**6)
    level, handlers, propagate = logger.level, logger.handlers, logger.propagate
    bars = library.is_progress_bar_enabled()
    logger.setLevel(logging.WARNING)
    logger.handlers, logger.propagate = [handler], False
    library.disable_progress_bar()
    try:
        yield
    finally:
        messages += [record.getMessage() for record in handler.buffer]
        logger.setLevel(level)
        logger.handlers, logger.propagate = handlers, propagate
        if bars:
            library.enable_progress_bar()


def header_fault(folder: Path) -> Fault | None:
    """What is wrong with the names, shapes and dtypes of a folder's weights, if anything. No weight
    is read. Also None if this cannot be determined before the load."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        stored = stored_weights(folder)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        contents = {"config": empty.config, "state_dict": stored, "device_map": {"": "meta"}}
        model, report, _ = load(type(empty), None, dtype=torch.float32, **contents)
        return _integers(model, stored) or misfit(folder, model, report, stored)
    except Exception:  # exception types vary by architecture
        return None


def stored_weights(folder: Path) -> dict[str, Tensor]:
    """Every weight of a folder by name, as a tensor without content."""
    return {name: weight for path in shards(folder) for name, weight in header(path).items()}


def misfit(
    folder: Path, model: Any, report: Mapping[str, Collection[Any]], stored: Mapping[str, Tensor]
) -> Fault | None:
    """The fault shown by a load report, if any.

    Args:
        folder: where the model was loaded from.
        report: `from_pretrained`'s with `output_loading_info`.
        stored: the files' weights by name; may be empty.
    """
    missing, misshapen = sorted(report["missing_keys"]), sorted(report["mismatched_keys"])
    unknown = [name for name in sorted(report["unexpected_keys"]) if not _computed(name, stored)]
    shapes = [f"{name} is {list(has)}, not {list(wanted)}" for name, has, wanted in misshapen]
    kinds = {"missing": missing, "unknown": unknown, "of another shape": shapes}
    parts = [f"{len(names)} {kind} ({_some(names)})" for kind, names in kinds.items() if names]
    kind = type(model).__name__
    if parts:
        remedy = _unwrapping(folder, stored, missing) if unknown else ""
        return Fault(
            f"its weights are not those of the {kind} in its config.json: {', '.join(parts)}",
            remedy or _remedy(model, missing, unknown, misshapen),
        )
    # A BERT-like encoder is a decoder only if its config.json says so.
    decoder = getattr(model.config, "is_decoder", True)
    if decoder is False and not model.config.model_type.startswith("gpt_neox"):
        return Fault(
            f"its config.json says that it is not a decoder: {kind} then sees the tokens that "
            "it should predict",
            "Give a model that reads from left to right; if this one was trained to, set "
            "is_decoder to true in its config.json",
        )
    return None


def _remedy(model: Any, missing: list[str], unknown: list[str], misshapen: list[Any]) -> str:
    if missing and not unknown and not misshapen:
        head = model.get_output_embeddings()
        if missing == [f"{name}.weight" for name, part in model.named_modules() if part is head]:
            return (
                "If the model's head is its embedding, set tie_word_embeddings to true in its "
                "config.json; otherwise fetch its weights again"
            )
        return "Fetch it again: some of its weights are missing"
    if unknown and not missing and not misshapen:
        return f"{TOGETHER}, without parts added for training, such as a value head"
    rows = {(has[0], wanted[0]) for _, has, wanted in misshapen}
    if len(rows) == 1 and not missing and not unknown:
        ((has, wanted),) = rows
        if wanted == model.config.get_text_config().vocab_size:
            return (
                f"Set vocab_size to {has} in its config.json if its tokenizer has at most {has} "
                f"entries; otherwise give the weights of {wanted}"
            )
    return TOGETHER


def _unwrapping(folder: Path, stored: Mapping[str, Tensor], missing: Collection[str]) -> str:
    """What to do if a wrapper's prefix is left in the names; "" if there is none."""
    if any(".lora_" in name for name in stored):
        return "It was saved with an adapter: merge it with peft, and save the model again"
    outside = os.path.commonprefix(list(stored)).rpartition(".")[0]
    for pattern in (WRAPPER, f"^{re.escape(outside)}\\."):
        wrapped = [match for match in (re.search(pattern, name) for name in stored) if match]
        inner = tuple(re.sub(pattern, "", name) for name in stored)
        if wrapped and any(name.endswith(inner) for name in missing):
            prefix = wrapped[0].group()
            remedy = RENAME.format(folder=folder, pattern=pattern)
            wrapper = WRAPPERS.get(prefix, "a wrapper")
            return f"'{prefix}' in the names is left from {wrapper}. {remedy}"
    return ""


# --- Quantised ------------------------------------------------------------------------------------


def quantised(how: str) -> Fault:
    """The fault of quantised weights."""
    return Fault(
        f"its weights are quantised ({how}), but training and log-ratios need full ones",
        "Give the original model in fp32, fp16 or bf16; its page on the hub names it",
    )


def quantisation_fault(folder: Path) -> Fault | None:
    """The fault of a folder whose config.json says that its weights are quantised."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        parts = config, config.get("text_config") or {}
        settings = next(filter(None, (part.get("quantization_config") for part in parts)), None)
    except (OSError, ValueError, AttributeError):
        return None  # an unreadable config is another fault
    if not settings:
        return None
    method = settings.get("quant_method") or "bitsandbytes"
    loaded = (bits for bits in (4, 8) if settings.get(f"load_in_{bits}bit"))
    bits = next(loaded, settings.get("bits"))
    return quantised(f"{method}, {bits} bits" if bits else method)


def _integers(model: Any, stored: Mapping[str, Tensor]) -> Fault | None:
    """The fault of weights that are stored as integers, or as floats of at most 8 bits, but are not
    integers in the model."""
    buffers = model.named_buffers()
    sound = tuple(name for name, buffer in buffers if not buffer.is_floating_point())
    dtypes = {
        name: str(weight.dtype).removeprefix("torch.")
        for name, weight in sorted(stored.items())
        if not name.endswith(sound) and not _computed(name, stored)
    }
    coarse = {name: dtype for name, dtype in dtypes.items() if dtype not in SOUND}
    how = f"{', '.join(sorted(set(coarse.values())))}: {_some(coarse)}"
    return quantised(how) if coarse else None


def _computed(name: str, stored: Mapping[str, Tensor]) -> bool:
    """Whether models compute this weight themselves; its shape tells a mask from a bias."""
    shape = tuple(stored[name].shape) if name in stored else ()
    mask = name.endswith(".bias") and len(shape) == 4 and shape[:2] == (1, 1)
    return mask or COMPUTED.search(name) is not None


def _some(names: Collection[str], count: int = 3) -> str:
    shown = ", ".join(list(names)[:count])
    return shown if len(names) <= count else f"{shown}, ..."


def summary(error: Exception) -> str:
    """An error's kind and the beginning of its message, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
