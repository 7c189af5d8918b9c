"""`python -m benchmarks.estimates [RUN]`: planned seconds against those of a run, by stage.

RUN is a folder with a `run.json`, by default `figures/tiny`. Artifacts not built, or with another
recipe since, are left out. Only a run on an otherwise idle machine is worth comparing.
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

WITHIN = 0.25  # intended relative error of an estimate


def compare(folder: Path) -> list[tuple[str, int, float, float]]:
    """By stage, then for all: number of artifacts, and their total planned and actual seconds."""
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    seconds_by_recipe = {item["recipe"]: item["seconds"] for item in record["artifacts"]}
    with tempfile.TemporaryDirectory() as scratch:
        suite = Suite.open(record["profile"], record["overrides"], scratch)
        suite.store = Store(scratch)  # empty: nothing is cached
        plan = suite.plan()
    stages: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for item in plan:
        if (seconds := seconds_by_recipe.get(item.key)) is not None:
            stages[item.stage].append((item.seconds, seconds))
    stages["all"] = [pair for pairs in stages.values() for pair in pairs]
    return [
        (stage, len(pairs), sum(planned for planned, _ in pairs), sum(took for _, took in pairs))
        for stage, pairs in stages.items()
    ]


if __name__ == "__main__":
    run = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "figures" / "tiny"
    rows: list[tuple[str, ...]] = [("stage", "artifacts", "planned s", "took s", "ratio", "")]
    for stage, count, planned, took in compare(run):
        ratio = planned / took if took else float("nan")
        apart = "" if abs(ratio - 1) <= WITHIN else "apart"
        rows.append((stage, str(count), f"{planned:.0f}", f"{took:.0f}", f"{ratio:.2f}", apart))
    print(text_table(rows))
