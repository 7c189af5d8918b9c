"""`python -m benchmarks [name ...]`, from the repository's root: all of them, or those named.

Prints one table and writes `benchmarks/results/<name>.json`, on a GPU under the GPU's name.
"""

import re
import sys
import time
from importlib import import_module

import torch

from benchmarks.measurements import HEADER, machine, write

# Each module has a `run` that prints its lines as they come and returns them.
NAMES = ("steps", "memory", "sampling", "judging")

asked = sys.argv[1:] or list(NAMES)
if unknown := set(asked) - set(NAMES):
    sys.exit(f"no benchmark {', '.join(sorted(unknown))}; known: {', '.join(NAMES)}")
machine()  # what it cannot read is better known before the measurements than after
print(HEADER, flush=True)
for name in asked:
    began = time.perf_counter()
    lines = import_module(f"benchmarks.{name}").run()
    if torch.cuda.is_available():
        name = f"{re.sub(r'[^a-z0-9]+', '_', torch.cuda.get_device_name().lower())}_{name}"
    write(name, lines, time.perf_counter() - began)
