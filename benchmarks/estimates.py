"""`python -m benchmarks.estimates [RUN]`: seconds that the plan says, against those of a run.

RUN is a folder with a `run.json`, by default `figures/tiny`. Recipes that are not today's, and what
was not made, are left out. Seconds of a run that shared its machine with others say little.
"""

import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from cpo_suite.profile import ROOT
from cpo_suite.run.dry_run import text_table
from cpo_suite.store import Store
from cpo_suite.suite import Suite

WITHIN = 0.25  # what an estimate is meant to keep to


def compare(folder: Path) -> list[tuple[str, int, float, float]]:
    """By stage: how many artifacts, and the seconds that they were to take and took, together."""
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    took = {one["recipe"]: one["seconds"] for one in record["artifacts"]}
    with tempfile.TemporaryDirectory() as scratch:
        suite = Suite.open(record["profile"], record["overrides"], scratch)
        suite.store = Store(scratch)  # in which nothing is made yet
        planned = suite.plan()
    stages: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for item in planned:
        if (seconds := took.get(item.key)) is not None:
            stages[item.stage].append((item.seconds, seconds))
    sums = [
        (stage, len(pairs), sum(one for one, _ in pairs), sum(other for _, other in pairs))
        for stage, pairs in stages.items()
    ]
    every = [pair for pairs in stages.values() for pair in pairs]
    whole = ("all", len(every), sum(one for one, _ in every), sum(other for _, other in every))
    return [*sums, whole]


if __name__ == "__main__":
    run = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "figures" / "tiny"
    rows: list[tuple[str, ...]] = [("stage", "artifacts", "planned s", "took s", "ratio", "")]
    for stage, count, planned, took in compare(run):
        ratio = planned / took if took else float("nan")
        apart = "" if abs(ratio - 1) <= WITHIN else "apart"
        rows.append((stage, str(count), f"{planned:.0f}", f"{took:.0f}", f"{ratio:.2f}", apart))
    print(text_table(rows))
