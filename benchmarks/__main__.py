"""`python -m benchmarks [name ...]`, from the repository's root: all benchmarks, or those named.

Prints a table and writes `benchmarks/results/<name>.json`, prefixed by the GPU's name on a GPU.
"""

import re
import sys
import time
from importlib import import_module

import torch

from benchmarks.measurements import HEADER, machine, write

# The `run` of each module prints its lines as they are measured, and returns them.
NAMES = ("steps", "memory", "packing", "sampling", "judging", "embedding")

selected = sys.argv[1:] or list(NAMES)
if unknown := set(selected) - set(NAMES):
    sys.exit(f"no benchmark {', '.join(sorted(unknown))}; known: {', '.join(NAMES)}")
machine()  # fails before the measurements, not after them
print(HEADER, flush=True)
for name in selected:
    began = time.perf_counter()
    lines = import_module(f"benchmarks.{name}").run()
    if torch.cuda.is_available():
        name = f"{re.sub(r'[^a-z0-9]+', '_', torch.cuda.get_device_name().lower())}_{name}"
    write(name, lines, time.perf_counter() - began)
