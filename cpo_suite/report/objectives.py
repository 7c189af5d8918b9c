"""Objectives side by side: how far a training moved its policy, and what answers gained by it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import torch

from cpo.evaluation.statistics import Array
from cpo.scoring import Group, score_groups
from cpo_suite.artifacts import Ensemble
from cpo_suite.paper import Relation
from cpo_suite.report.claims import adjusted_intervals, bootstrap_difference, points_of
from cpo_suite.suite import Suite

GAIN_COLUMNS = ["row", "against", "decoding", "gain", "low", "high", "n"]
GROUPS_AT_ONCE = 64


def gains(suite: Suite, compared: Iterable[tuple[str, str, str]]) -> pd.DataFrame:
    """Win rates less those of other rows, prompt by prompt, as one family.

    Args:
        compared: row, the row it is held against, and the decoding method of both.

    Returns:
        Columns `GAIN_COLUMNS`: intervals are over prompts, and over training seeds where there are
        several, 95 % after Holm's adjustment for all lines. Without a line where no prompt has a
        verdict on both rows; empty without a judge.
    """
    if suite.profile.judge.kind == "none":
        return pd.DataFrame(columns=GAIN_COLUMNS)
    records, family = [], list[tuple[Array, Relation]]()
    for row, against, decoding in compared:
        ours, theirs = (points_of(suite, one, decoding=decoding) for one in (row, against))
        gaps = ours - theirs
        valid = gaps[:, ~np.isnan(gaps).any(0)]
        if not valid.size:
            continue
        gain, drawn = bootstrap_difference([valid])
        records.append((row, against, decoding, gain, valid.shape[1]))
        family.append((drawn, ">"))
    frame = pd.DataFrame(records, columns=["row", "against", "decoding", "gain", "n"])
    ends = np.array(adjusted_intervals(family), dtype=float).reshape(-1, 2)
    frame["low"], frame["high"] = ends.T
    return frame[GAIN_COLUMNS]


def moved(suite: Suite, row_id: str, prompts_of: str, prompts: int = 512) -> dict[str, float]:
    """How far a training moved its policy from the reference, on validation prompts.

    Args:
        row_id: any trained row, or the reference itself.
        prompts_of: a row with negatives on the same reference, whose held-out draw is used.
        prompts: as many at most.

    Returns:
        In nats a response: `truth` and `negatives`, mean log-ratios log(pi_theta / pi_ref), and
        `kl`, KL(pi_theta || pi_ref), estimated on one sample a prompt at temperature 1; `tokens`,
        the mean length of greedy answers to the test prompts; `seconds` of training.

    Raises:
        ValueError: `prompts_of` has no held-out draw, or the rows' references differ.
    """
    held_out = getattr(suite.model_artifact(prompts_of), "held_out", None)
    if held_out is None:
        raise ValueError(f"{prompts_of} has no negatives of held-out prompts")
    trained = suite.model_artifact(row_id)
    trained = trained.cpo if isinstance(trained, Ensemble) else trained
    if held_out.reference not in (trained, trained.pieces[0].start):
        raise ValueError(f"{row_id} and {prompts_of} start from different references")
    policy, reference = suite.model(row_id).load(), suite.store.load(held_out.reference)
    sets = suite.store.load(held_out)
    groups = [Group(sets.prefixes[row], sets.candidates(row)) for row in range(len(sets))][:prompts]
    mask = torch.from_numpy(sets.mask[: len(groups)])
    ratios = _log_ratios(suite, policy, reference, groups)
    sampled = suite.generations_artifact(row_id, "sampling/0", split="validation")
    samples = zip(sampled.rows(), suite.store.load(sampled), strict=True)
    own = [Group(row.prefix_ids, [line["ids"]]) for row, line in samples if line["ids"]][:prompts]
    return {
        "truth": float(ratios[:, 0].mean()),
        "negatives": float(ratios[:, 1:][mask[:, 1:]].mean()),
        "kl": float(_log_ratios(suite, policy, reference, own).mean()),
        "tokens": suite.measures(row_id, decoding="greedy")["tokens"].value,
        "seconds": sum(step["seconds"] for step in suite.history(row_id)),
    }


def _log_ratios(suite: Suite, policy: Any, reference: Any, groups: list[Group]) -> torch.Tensor:
    """log(pi_theta / pi_ref) of groups of continuations, `[N, K]`; of an empty one 0."""
    settings, tokens = suite.profile.optimiser, suite.profile.optimiser.micro_batch_tokens
    ours, theirs = (
        score_groups(model, groups, settings.precision, GROUPS_AT_ONCE, "log-ratios", tokens)
        for model in (policy, reference)
    )
    return ours - theirs
