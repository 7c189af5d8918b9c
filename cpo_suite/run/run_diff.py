"""`python -m cpo_suite diff RUN RUN`: what differed between two runs, by their `run.json`."""

from __future__ import annotations

import difflib
import json
from pathlib import Path

from cpo_suite.profile import ProfileError

# When it ran and how long it took is of no consequence for what came out.
TIMES = {"started", "finished", "notebook_seconds", "gpu_hours"}


def print_difference(before: str, after: str) -> int:
    """Print the two records' difference: settings, versions, recipes of artifacts, outputs.

    Returns:
        0 if nothing differed that could change a number, 1 if something did.

    Raises:
        ProfileError: one of them is no run's folder of results, nor its `run.json`.
    """
    records = _lines(before), _lines(after)
    lines = list(difflib.unified_diff(*records, before, after, n=2, lineterm=""))
    print("\n".join(lines) or "Nothing differed but the time.")
    return int(bool(lines))


def _lines(place: str) -> list[str]:
    """A run's record as JSON without times, and of its artifacts the recipes alone."""
    path = Path(place) / "run.json" if Path(place).is_dir() else Path(place)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        record["artifacts"] = [f"{item['name']}: {item['recipe']}" for item in record["artifacts"]]
    except OSError:
        message = f"{place} is no run: give a folder of results, or its run.json"
        raise ProfileError(message) from None
    except (ValueError, LookupError, TypeError) as error:
        raise ProfileError(f"{path} is not the record of a run: {error!r}") from None
    kept = {name: value for name, value in record.items() if name not in TIMES}
    return json.dumps(kept, indent=1).splitlines()
