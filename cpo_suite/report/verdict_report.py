"""`python -m cpo_suite verdicts`: what the store holds, what it cost, and all of it as a file.

Invalid verdicts of a kind can be forgotten, so that the next run asks for them again.
"""

from __future__ import annotations

import csv
import shutil
import sys
from pathlib import Path

from cpo.evaluation.judging import Verdicts
from cpo.evaluation.verdict_store import INVALID_KINDS, VerdictStore, VerdictStoreError
from cpo_suite.run.dry_run import table
from cpo_suite.store import artifacts_folder


def report(model: str | None = None, export: str | None = None, forget: str | None = None) -> int:
    """Print one line for each judge, and write every verdict to `export` if given.

    Args:
        model: the judging model whose verdicts are meant; None for all.
        forget: a kind of invalid verdicts, one of `INVALID_KINDS`, which are removed first.

    Returns:
        The exit code: 0, or 2 where there is no store or a file cannot be written.
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
            if forget:
                count = store.forget(forget, **filters)
                _remove_artifacts(forget, model)
                print(f"{count:,} verdicts ({forget}) are forgotten: the next run asks again")
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
    header = (
        "model", "server", "verdicts", "A", "B", "tie", "invalid", "tokens", "USD", "asked",
        "why invalid",
    )  # fmt: skip
    cells = [
        (
            line["model"], line["server"], f"{line['verdicts']:,}", f"{line['A']:,}",
            f"{line['B']:,}", f"{line['tie']:,}", f"{line['invalid']:,}", f"{line['tokens']:,}",
            f"{line['usd']:.4f}", f"{line['first'][:10]} to {line['last'][:10]}",
            ", ".join(f"{line[kind]:,} {kind}" for kind in INVALID_KINDS if line[kind]),
        )
        for line in lines
    ]  # fmt: skip
    print(table([header, *cells]))
    total = sum(line["usd"] for line in lines)
    print(f"{sum(line['verdicts'] for line in lines):,} verdicts, {total:.4f} USD, in {path}")
    if export:
        print(f"written to {export}")
    return 0


def _remove_artifacts(why: str, model: str | None) -> None:
    """Those of finished runs that hold such a verdict: from them it would be read again."""
    for path in (artifacts_folder() / "verdicts").glob("*/verdicts.jsonl"):
        verdicts = Verdicts.from_jsonl(path)
        if why in verdicts.why and (model is None or verdicts.judge.startswith(f"{model} at ")):
            shutil.rmtree(path.parent)
