"""Models in llama.cpp's format: one .gguf file with weights, configuration and tokenizer.

transformers reads some architectures. Most files are quantised: the suite uses the dequantised
weights, and reports their original bits per weight.
"""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cpo.models.weights import FETCH, Fault, summary

SUFFIX = ".gguf"
INSTEAD = "Give the model's own folder, with safetensors, instead"


def gguf_file(place: Path) -> Path | None:
    """The .gguf file that a path refers to: itself, or the only one in a folder without
    safetensors."""
    if place.suffix == SUFFIX and not place.is_dir():
        return place
    files = list(place.glob(f"*{SUFFIX}"))
    return files[0] if len(files) == 1 and not any(place.glob("*.safetensors")) else None


def location(place: Path) -> tuple[Path, dict[str, Any]]:
    """A model's folder, and `from_pretrained`'s argument `gguf_file` if it is such a file."""
    file = gguf_file(place)
    return (file.parent, {"gguf_file": file.name}) if file else (place, {})


def storage(file: Path) -> str:
    """How most of a file's weights are stored, and their average number of bits."""
    tensors = _reader(file).tensors
    elements: Counter[str] = Counter()
    for tensor in tensors:
        elements[tensor.tensor_type.name] += int(tensor.n_elements)
    bits = 8 * sum(int(tensor.n_bytes) for tensor in tensors) / elements.total()
    return f"{elements.most_common(1)[0][0]}, {bits:.1f} bits a weight"


def gguf_fault(file: Path) -> Fault | None:
    """What keeps a .gguf file from being read, determined without its weights."""
    from transformers import AutoConfig

    if find_spec("gguf") is None:
        return Fault("reading a .gguf file needs the package gguf", "pip install gguf")
    try:
        reader = _reader(file)
    except Exception as error:  # a truncated file fails wherever it ends
        return Fault(f"{file.name} is truncated or not a GGUF file ({summary(error)})", FETCH)
    parts = reader.get_field("split.count")
    if parts is not None and parts.contents() > 1:
        return Fault(
            f"{file.name} is one of {parts.contents()} parts",
            "Merge them first: llama-gguf-split --merge FIRST_PART WHOLE.gguf",
        )
    try:
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:  # exception types vary by architecture
        return Fault(f"transformers cannot read {file.name} ({summary(error)})", INSTEAD)
    scaled = [tensor.name for tensor in reader.tensors if tensor.name.startswith("rope_")]
    for key, field in reader.fields.items():
        if key.endswith("rope.scaling.type") and field.contents() != "none":
            scaled.append(f"{key}: {field.contents()}")
    rope = getattr(config, "rope_parameters", None) or {}
    if scaled and rope.get("rope_type", "default") == "default":
        what = f"it scales its rotary positions ({scaled[0]}), which transformers leaves out"
        return Fault(what, INSTEAD)
    return None


def left_out(file: Path, model: Any) -> Fault | None:
    """The fault of a file some of whose tensors are not in the loaded model."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    reader, config = _reader(file), model.config.get_text_config()
    head = {"output.weight"} if config.tie_word_embeddings else set()
    sizes = {tensor.name: int(tensor.n_elements) for tensor in reader.tensors}
    if sum(sizes[name] for name in sizes.keys() - head) == model.num_parameters():
        return None
    architectures = {name: number for number, name in MODEL_ARCH_NAMES.items()}
    architecture = architectures[reader.get_field("general.architecture").contents()]
    names = get_tensor_name_map(architecture, config.num_hidden_layers)
    kept = {names.get_name(name, (".weight", ".bias")) for name in model.state_dict()}
    lost = [name for name in sizes if name not in kept | head]
    what = f"transformers leaves out {len(lost)} of its tensors ({', '.join(lost[:3])})"
    return Fault(what, INSTEAD) if lost else None


def _reader(file: Path) -> Any:
    from gguf import GGUFReader

    return GGUFReader(file)
