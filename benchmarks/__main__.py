"""`python -m benchmarks <name>`, from the repository's root."""

import sys
from importlib import import_module
from pathlib import Path

NAMES = sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))

if len(sys.argv) != 2 or sys.argv[1] not in NAMES:
    sys.exit(f"python -m benchmarks <name>, with one of: {', '.join(NAMES)}")
import_module(f"benchmarks.{sys.argv[1]}").main()
