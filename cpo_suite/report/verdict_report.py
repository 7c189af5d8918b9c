"""`python -m cpo_suite verdicts`: what the store holds, what it cost, and all of it as a file.

Invalid verdicts of a kind can be forgotten, so that the next run asks for them again.
"""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from dataclasses import asdict
from typing import Any

import pandas as pd

from cpo.evaluation.judge_prompts import INVALID_KINDS, read_verdict
from cpo.evaluation.judging import Verdicts
from cpo.evaluation.replies import Reply
from cpo.evaluation.reply_store import STORE, VERDICTS, Question, ReplyStore, ReplyStoreError
from cpo_suite.run.dry_run import table
from cpo_suite.run.run_record import artifacts_folder


def report(model: str | None = None, export: str | None = None, forget: str | None = None) -> int:
    """Print one line for each judge, and write every verdict to `export` if given.

    Args:
        model: the judging model whose verdicts are meant; None for all.
        forget: a kind of invalid verdicts, one of `INVALID_KINDS`, which are removed first.

    Returns:
        The exit code: 0, or 2 where there is no store or a file cannot be written.
    """
    path = artifacts_folder() / STORE
    if not path.is_file() and not path.with_name(VERDICTS).is_file():
        print(
            f"{path} does not exist: no verdict has been paid for yet. A profile whose judge is "
            "`openai` makes it.",
            file=sys.stderr,
        )
        return 2
    try:
        with ReplyStore(path) as store:
            verdicts = [
                _verdict(question, reply)
                for question, reply in store.rows("verdict")
                if model in (None, question.asked["model"])
            ]
            if forget:
                keys = [verdict["key"] for verdict in verdicts if verdict["why"] == forget]
                store.forget(keys)
                _remove_artifacts(forget, model)
                print(f"{len(keys):,} verdicts ({forget}) are forgotten: the next run asks again")
                verdicts = [verdict for verdict in verdicts if verdict["why"] != forget]
        if export:
            pd.DataFrame(verdicts).to_csv(export, index=False)
    except (OSError, ReplyStoreError) as error:
        print(error, file=sys.stderr)
        return 2
    header = (
        "model", "server", "verdicts", "A", "B", "tie", "invalid", "tokens", "USD", "asked",
        "why invalid",
    )  # fmt: skip
    cells: list[tuple[str, ...]] = []
    if verdicts:
        for (server, name), rows in pd.DataFrame(verdicts).groupby(["server", "model"]):
            said, why = Counter(rows["verdict"]), Counter(rows["why"])
            counts = [len(rows), *(said[verdict] for verdict in ("A", "B", "tie", "invalid"))]
            counts.append(int(rows["input_tokens"].sum() + rows["output_tokens"].sum()))
            asked = f"{rows['asked_at'].min()[:10]} to {rows['asked_at'].max()[:10]}"
            kinds = ", ".join(f"{why[kind]:,} {kind}" for kind in INVALID_KINDS if why[kind])
            usd = f"{rows['usd'].sum():.4f}"
            cells.append(
                (str(name), str(server), *(f"{count:,}" for count in counts), usd, asked, kinds)
            )
    print(table([header, *cells]))
    total = sum(verdict["usd"] for verdict in verdicts)
    print(f"{len(verdicts):,} verdicts, {total:.4f} USD, in {path}")
    if export:
        print(f"written to {export}")
    return 0


def _remove_artifacts(why: str, model: str | None) -> None:
    """Those of finished runs that hold such a verdict: from them it would be read again."""
    for path in (artifacts_folder() / "verdicts").glob("*/verdicts.jsonl"):
        verdicts = Verdicts.from_jsonl(path)
        if why in verdicts.why and (model is None or verdicts.judge.startswith(f"{model} at ")):
            shutil.rmtree(path.parent)


def _verdict(question: Question, reply: Reply) -> dict[str, Any]:
    """A verdict with all that was asked and replied, as a line of the export."""
    verdict, why = read_verdict(reply)
    line = {"key": question.key, "item": question.item, "verdict": verdict, "why": why}
    line |= {"text": reply.text, "reply_model": reply.model}
    return {**line, **asdict(reply), **question.asked}
