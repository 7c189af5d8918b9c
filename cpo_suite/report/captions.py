"""Captions that let a table or a figure be read alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from cpo_suite.paper import JUDGED_BY
from cpo_suite.profile import Profile

# Who wrote DPO's rejected responses.
WRITERS = {
    "chat": "by a chat model, as in the paper",
    "world": "by the embedded world's own writer of unhelpful answers, in place of a chat model",
    "other_response": "a stand-in, the recorded responses to other prompts",
}


def caption(frame: pd.DataFrame, profile: Profile) -> str:
    """One line for a table, or for a figure drawn from it: profile, judge, prompts, seeds,
    statistics."""
    text = f"Profile {profile.name}."
    if "paper" in frame:
        text += _provenance(frame)
        if (frame["measure"] == "win_rate").any() and frame["n"].notna().any():
            text += _agreement(frame.attrs.get("judge_quality"), profile)
        if frame["row"].str.endswith("/DPO").any():
            text += f" DPO's rejected responses: {WRITERS[profile.unhelpful.writer]}."
        text += (
            f" The paper's numbers are for its own models and data, judged by {JUDGED_BY}: compare "
            "order and differences, not levels."
        )
    if "verdict" in frame:
        text += " Brackets are the intervals of the comparisons, 95 % after Holm's adjustment."
    elif {"low", "high"} <= set(frame):
        seeds = " and training seeds" if profile.seeds > 1 else ""
        text += f" Brackets are 95 % intervals over prompts{seeds}."
        if "measure" in frame and frame["measure"].str.contains("mauve", case=False).any():
            text += " For MAUVE they come from random halves of the texts."
        if "against" in frame:
            text += (
                " Values are differences to continued MLE, paired by prompt, and their intervals"
            )
            text += " adjusted after Holm for the rows of each measure."
        if "measure" in frame and (frame["measure"] == "win_rate_vs_mle").any():
            text += " Those of win_rate_vs_mle are adjusted after Holm for the number of its rows."
    return text


def _provenance(frame: pd.DataFrame) -> str:
    """By whom, on how many prompts and seeds, when, and asked what (the hash of the template)."""
    filled = frame[frame["n"].notna()]
    if filled.empty:
        return " No row of this table was judged in this run."
    judges = ", ".join(sorted(filled["judge"].unique()))
    prompts = ", ".join(f"{n:,}" for n in sorted(filled["n"].unique()))
    seeds = int(filled["seeds"].max())
    trained = f"{seeds} training seed{'s' if seeds > 1 else ''}"
    if not set(filled["measure"]) & {"win_rate"}:
        text = f" {judges}; {prompts} articles; {trained}."
    else:
        text = f" Win rate against the recorded response, judge: {judges}; {prompts} prompts; "
        text += f"{trained}; ties count one half."
    days, templates = frame.attrs.get("judged"), frame.attrs.get("prompt")
    if days:
        text += f" Judged {' to '.join(sorted({days[0], days[-1]}))}"
        text += f", prompt {', '.join(templates)}." if templates else "."
    return text


def _agreement(quality: Sequence[Mapping[str, Any]] | None, profile: Profile) -> str:
    """What is known of the judge's agreement with people; of a rule that nobody measured, nothing.

    Args:
        quality: as `quality_in_words`.
    """
    if quality:
        return f" {quality_in_words(quality)}"
    if profile.judge.kind in ("local", "openai"):
        return " The judge's agreement with people has not been measured (judge-quality)."
    return ""


def quality_in_words(quality: Sequence[Mapping[str, Any]]) -> str:
    """A judge's agreement with people beside the baselines, and whether to believe it.

    Args:
        quality: records of the judge, then of the baselines (`artifacts.judge_quality`).
    """
    judge, *baselines = quality
    interval = f"[{judge['agreement_low']:.3f}, {judge['agreement_high']:.3f}]"
    text = (
        f"{judge['judge']} agrees with a person on {judge['agreement']:.3f} {interval} of "
        f"{judge['pairs']:,} pairs of {judge['labelled']} (kappa {judge['kappa']:.2f})"
    )
    if judge["invalid"]:
        verdicts = judge["pairs"] * judge["orders"]
        text += f", {judge['invalid']:,} of {verdicts:,} verdicts invalid and left out"
    if baselines:
        others = (f"{baseline['judge']} {baseline['agreement']:.3f}" for baseline in baselines)
        text += f"; beside it: {', '.join(others)}"
    if judge["beats_longest"]:
        return f"{text}. It beats the rule “the longer response”."
    return (
        f"{text}. It does not beat the rule “the longer response”: the length-controlled win "
        "rate stands first."
    )
