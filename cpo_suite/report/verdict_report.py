"""`python -m cpo_suite verdicts`: what the store holds, what it cost, and all of it as a file.

Invalid verdicts of a kind can be forgotten, so that the next run asks for them again.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import asdict
from typing import Any

import pandas as pd

from cpo.evaluation.judge_prompts import read_verdict
from cpo.evaluation.judging import Verdicts
from cpo.evaluation.replies import Reply
from cpo.evaluation.reply_store import Question, ReplyStore, ReplyStoreError
from cpo_suite.judges import REPLIES
from cpo_suite.run.run_record import artifacts_folder


def report(model: str | None = None, export: str | None = None, forget: str | None = None) -> int:
    """Print one line for each judge, and write every verdict to `export` if given.

    Args:
        model: the judging model whose verdicts are meant; None for all.
        forget: a kind of invalid verdicts, one of `judge_prompts.INVALID_KINDS`, removed first.

    Returns:
        The exit code: 0, or 2 where there is no store or a file cannot be written.
    """
    path = artifacts_folder() / REPLIES
    if not path.is_file():
        print(
            f"{path} does not exist: no verdict has been paid for yet. A profile whose judge is "
            "`openai` makes it.",
            file=sys.stderr,
        )
        return 2
    try:
        with ReplyStore(path) as store:
            records = [
                _record(question, reply)
                for question, reply in store.rows("verdict")
                if model in (None, question.asked["model"])
            ]
            if forget:
                keys = [record["key"] for record in records if record["why"] == forget]
                store.forget(keys)
                _remove_artifacts(forget, model)
                print(f"{len(keys):,} verdicts ({forget}) are forgotten: the next run asks again")
                records = [record for record in records if record["why"] != forget]
        verdicts = pd.DataFrame(records)
        if export:
            verdicts.to_csv(export, index=False)
    except (OSError, ReplyStoreError) as error:
        print(error, file=sys.stderr)
        return 2
    if records:
        judge = [verdicts["model"], verdicts["server"]]
        said = verdicts["why"].where(verdicts["why"] != "", verdicts["verdict"])
        took = verdicts.groupby(judge).agg(
            verdicts=("key", "count"),
            input_tokens=("input_tokens", "sum"),
            output_tokens=("output_tokens", "sum"),
            usd=("usd", "sum"),
            first=("asked_at", "min"),
            last=("asked_at", "max"),
        )
        print(pd.crosstab(judge, said).join(took).to_string())
    usd = sum(record["usd"] for record in records)
    print(f"{len(records):,} verdicts, {usd:.4f} USD, in {path}")
    if export:
        print(f"written to {export}")
    return 0


def _record(question: Question, reply: Reply) -> dict[str, Any]:
    """A verdict with all that was asked and replied."""
    verdict, why = read_verdict(reply)
    record = {"key": question.key, "item": question.item, "verdict": verdict, "why": why}
    record |= {"text": reply.text, "reply_model": reply.model}
    return record | asdict(reply) | question.asked


def _remove_artifacts(why: str, model: str | None) -> None:
    """Those of finished runs that hold such a verdict: from them it would be read again."""
    for path in (artifacts_folder() / "verdicts").glob("*/verdicts.jsonl"):
        verdicts = Verdicts.from_jsonl(path)
        if why in verdicts.why and (model is None or verdicts.judge.startswith(f"{model} at ")):
            shutil.rmtree(path.parent)
