"""`python -m cpo_suite diff RUN RUN`: compare two runs by their `run.json`."""

from __future__ import annotations

import difflib
import json
from pathlib import Path

from cpo_suite.profile import ProfileError

# Times do not affect results.
TIMES = {"started", "finished", "notebook_seconds", "gpu_hours"}


def print_difference(before: str, after: str) -> int:
    """Print how two records differ: settings, versions, recipes of artifacts, outputs.

    Returns:
        0 if they differ at most in times, 1 otherwise.

    Raises:
        ProfileError: an argument is neither a folder of results nor its `run.json`.
    """
    records = _lines(before), _lines(after)
    lines = list(difflib.unified_diff(*records, before, after, n=2, lineterm=""))
    print("\n".join(lines) or "Only the times differ.")
    return int(bool(lines))


def _lines(run: str) -> list[str]:
    """A run's record as lines of JSON, without times; its artifacts by recipe alone."""
    path = Path(run) / "run.json" if Path(run).is_dir() else Path(run)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        record["artifacts"] = [f"{item['name']}: {item['recipe']}" for item in record["artifacts"]]
    except OSError:
        message = f"{run} is not a run: give a folder of results, or its run.json"
        raise ProfileError(message) from None
    except (ValueError, LookupError, TypeError) as error:
        raise ProfileError(f"{path} is not the record of a run: {error!r}") from None
    kept = {name: value for name, value in record.items() if name not in TIMES}
    return json.dumps(kept, indent=1).splitlines()
