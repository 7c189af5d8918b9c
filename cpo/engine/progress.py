"""One progress bar for terminals and notebooks, sparse enough to leave no debris in saved ones."""

from __future__ import annotations

import os
import sys

from tqdm import tqdm as plain_tqdm
from tqdm.auto import tqdm


def progress_bar(total: int, description: str, unit: str = "step") -> plain_tqdm:
    """A bar that vanishes when done; outside a terminal, it is redrawn at most every ten seconds.

    Of several processes, only the first draws one.

    In a notebook it is a widget, unless CPO_PLAIN_PROGRESS is set, as the runner does to show
    notebooks' bars in its terminal.
    """
    bar = plain_tqdm if os.environ.get("CPO_PLAIN_PROGRESS") else tqdm
    seconds = 0.2 if sys.stderr.isatty() else 10.0
    silent = os.environ.get("RANK", "0") != "0"
    return bar(
        total=total, desc=description, unit=unit, mininterval=seconds, leave=False, disable=silent
    )
