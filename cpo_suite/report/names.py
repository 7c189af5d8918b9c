"""Rows in words: what plots, tables and sentences call the row `t2/ANR`.

Ids stand in code and CSV files, for the machine; a reader sees "Llama, AN ranked".
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from cpo_suite.paper import ROWS, Row, rows_of

MODELS = {"gpt2": "GPT-2", "llama": "Llama", "llama_small": "small Llama"}
# Negatives whose name says too little: without top-k truncation, or drawn by the test's decoder.
NEGATIVES = {"AN-untruncated": "untruncated AN", "greedy": "greedy AN", "beam": "beam AN"}
TASKS_AND_REFERENCES = ("-ablation", "-articles")  # endings of mixtures, said otherwise
_ID = re.compile(r"\b(?:t\d|f1[ab]|x)/[\w+/-]+(?:\.\d+)?")


def row_name(row_id: str) -> str:
    """A row's name: "Llama, AN ranked". References have one too; a row of your own keeps its own.

    Rows of one name are one model, decoded alike.
    """
    which, _, rest = row_id.partition("/")
    if row_id in ROWS:
        row = ROWS[row_id]
        return ", ".join([MODELS[row.model], _method(row), *_details(row)])
    if which.endswith("reference") and rest in MODELS:
        return f"{MODELS[rest]}, {which.replace('_', ' ')}"
    return rest if which == "own" else row_id


def model_name(name: str) -> str:
    """A model's name in words; another text as it is."""
    return MODELS.get(name, name)


def comparison_name(text: str) -> str:
    """A comparison of rows in words: "Llama, top-p: AN ranked > MLE".

    What all rows share, the model and the way they are decoded, stands before them once.
    """
    ids = _ID.findall(text)
    families = {row_id: rows_of(row_id) for row_id in ids}
    if not ids or not all(families.values()):
        return text
    details = {row_id: _details(rows[0]) for row_id, rows in families.items()}
    for row_id in ids:
        if row_id not in ROWS:  # all ensembles of this name are meant
            details[row_id] = [one for one in details[row_id] if not one.startswith("alpha")]
    models = {rows[0].model for rows in families.values()}
    shared = [one for one in details[ids[0]] if all(one in own for own in details.values())]

    def named(match: re.Match[str]) -> str:
        row, own = families[match.group()][0], details[match.group()]
        apart = ", ".join(one for one in own if one not in shared)
        model = f"{MODELS[row.model]} " if len(models) > 1 else ""
        return f"{model}{_method(row)}{f' ({apart})' if apart else ''}"

    words = re.sub(r"best\((\S*)\)", r"best ensemble of \1", text)
    words = re.sub(r"ends\(\S*\)", "its better end", words)
    words = _ID.sub(named, re.sub(r"^overhead ", "overhead of ", words))
    before = [MODELS[model] for model in models if len(models) == 1] + shared
    return f"{', '.join(before)}: {words}" if before else words


def mixture_name(counts: Mapping[str, int]) -> str:
    """A mixture of negatives in words: "2 BN + 3 MN + 2 TN"."""
    return " + ".join(f"{count} {NEGATIVES.get(kind, kind)}" for kind, count in counts.items())


def _details(row: Row) -> list[str]:
    """What tells rows of one method apart: K, alpha, reference, task and decoding."""
    details = []
    if fewer := re.search(r"/K(\d+)$", row.id):
        details.append(f"K = {fewer[1]}")
    if row.alpha:
        details.append(f"alpha {row.alpha:g}")
    if row.reference == "ablation_reference":
        details.append("ablation")
    if row.task == "articles":
        details.append("articles")
    if row.decoding != "greedy":
        details.append({"beam": "beam search"}.get(row.decoding, row.decoding.replace("_", "-")))
    return details


def _method(row: Row) -> str:
    """The objective, and the negatives it contrasts."""
    if row.objective == "mle":
        name = row.id.split("/")[1]
        return name if name in ("MLE1", "MLE2") else "MLE"
    if row.objective in ("pss", "dpo"):
        return row.objective.upper()
    kind = str(row.negatives)
    for ending in TASKS_AND_REFERENCES:
        kind = kind.removesuffix(ending)
    kind = NEGATIVES.get(kind, re.sub(r"-\d+$", "", kind))
    if row.objective == "ranking_nce":
        return f"{kind} by ranking NCE"
    order = {"cpo": "unranked", "ranked_cpo": "ranked"}[row.objective]
    order += " by the oracle" if row.ranking == "oracle" else ""
    combined = f" + {row.mle_weight:g} MLE" if row.mle_weight else ""
    return f"{kind} {order}{combined}"
