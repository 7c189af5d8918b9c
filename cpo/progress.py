"""One progress bar for terminals and notebooks, sparse enough to leave no debris in saved ones."""

from __future__ import annotations

import sys

from tqdm.auto import tqdm


def progress_bar(total: int, description: str, unit: str = "step") -> tqdm:
    """A bar that vanishes when done; outside a terminal it is drawn every ten seconds at most."""
    every = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, desc=description, unit=unit, mininterval=every, leave=False)
