"""`python -m cpo verdicts`: what the verdict store holds, what it cost, and all of it as a file."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from cpo.dry_run import table
from cpo.run_record import artifacts_folder
from cpo.verdict_store import VerdictStore, VerdictStoreError


def report(model: str | None = None, export: str | None = None) -> int:
    """Print one line for each judge, and write every verdict to `export` if given.

    Returns the exit code: 0, or 2 where there is no store or the file cannot be written.
    """
    path = artifacts_folder() / "verdicts.sqlite"
    if not path.is_file():
        print(
            f"{path} does not exist: no verdict has been paid for yet. A profile whose judge is "
            "`openai` makes it.",
            file=sys.stderr,
        )
        return 2
    filters = {"model": model} if model else {}
    try:
        with VerdictStore(path) as store:
            lines = store.summary(**filters)
            if export:
                with Path(export).open("w", encoding="utf-8", newline="") as file:
                    writer = None
                    for row in store.rows(**filters):
                        if writer is None:
                            writer = csv.DictWriter(file, list(row))
                            writer.writeheader()
                        writer.writerow(row)
    except (OSError, VerdictStoreError) as error:
        print(error, file=sys.stderr)
        return 2
    header = ("model", "server", "verdicts", "A", "B", "tie", "invalid", "tokens", "USD", "asked")
    cells = [
        (
            line["model"], line["server"], f"{line['verdicts']:,}", f"{line['A']:,}",
            f"{line['B']:,}", f"{line['tie']:,}", f"{line['invalid']:,}", f"{line['tokens']:,}",
            f"{line['usd']:.4f}", f"{line['first'][:10]} to {line['last'][:10]}",
        )
        for line in lines
    ]  # fmt: skip
    print(table([header, *cells]))
    total = sum(line["usd"] for line in lines)
    print(f"{sum(line['verdicts'] for line in lines):,} verdicts, {total:.4f} USD, in {path}")
    if export:
        print(f"written to {export}")
    return 0
