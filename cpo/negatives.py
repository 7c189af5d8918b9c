"""The kinds of negatives and their mixtures (section 3 of the paper, its distribution A).

A sampler draws candidates for the rows of a training schedule. `draw_negatives` calls the samplers
of a mixture, redraws degenerate negatives a bounded number of times, and masks columns still empty.
All negatives are drawn offline: from the reference, or where a row redraws them, from the policy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cpo.engine.processes import process_count, shared_out
from cpo.engine.progress import progress_bar
from cpo.generation import generate, ids_without_token
from cpo.plan import stream_seed
from cpo.registry import Registry
from cpo.scoring import Group, GroupScorer, collate_groups

Continuation = tuple[int, ...]

MEANFIELD_SHARE = 0.15  # section 4: "we always randomly swap 15% tokens"
AUTOREGRESSIVE_TOP_K = 50  # section 3
MAX_DRAWS = 4  # the first, and three to replace degenerate negatives
# Sequences that a deterministic decoder gives per prefix; another draw would be the same.
MOST_SEQUENCES = {"AN-greedy": 1, "AN-beam": 4}


@dataclass(frozen=True)
class PlannedRows:
    """The rows of a training schedule, in order, and what a sampler needs to draw for them.

    Attributes:
        prefixes, continuations: token ids, N = steps x batch of each; a continuation ends in EOS
            (`eos_token_id`) unless it was capped.
        batch: rows `[i * batch, (i + 1) * batch)` are one global batch.
        model: the causal language model to draw from.
        max_continuation_tokens: bounds the length of AN, however decoded.
        unhelpful: DPO's rejected response of each row, None where there is none.
        precision: the model's, fp32 or bf16.
        micro_batch, generation_batch: rows scored, and sequences sampled, at once.
        tokenizer: for samplers that need text; ids that it lacks are never drawn.
    """

    prefixes: Sequence[Sequence[int]]
    continuations: Sequence[Continuation]
    batch: int
    model: Any
    eos_token_id: int
    max_continuation_tokens: int
    unhelpful: Sequence[Continuation | None] | None = None
    precision: str = "fp32"
    micro_batch: int = 16
    generation_batch: int = 256
    tokenizer: Any = None

    def body(self, row: int) -> Continuation:
        """The ground truth's tokens without its EOS: y_1 .. y_T."""
        ids = self.continuations[row]
        return ids[:-1] if ids and ids[-1] == self.eos_token_id else ids

    def ids_without_token(self) -> list[int]:
        """Ids of the model that its tokenizer lacks; none without a tokenizer."""
        return [] if self.tokenizer is None else ids_without_token(self.model, self.tokenizer)


Wanted = Mapping[int, int]  # {row: how many}
Drawn = dict[int, list[Continuation]]  # {row: candidates}; fewer than wanted is allowed
# (planned, wanted, seed) -> drawn
Sampler = Callable[[PlannedRows, Wanted, int], Mapping[int, Sequence[Continuation]]]

SAMPLERS: Registry[Sampler] = Registry("kind of negative")


# Decorator that registers a sampler, as `@register("AN")`; a mixture then refers to it, as in
# `{"AN": 3}`.
register = SAMPLERS.register


@register("AN")
def autoregressive(planned: PlannedRows, wanted: Wanted, seed: int) -> Drawn:
    """AN: sampled from pi_ref given the prefix, top-k with k = 50, temperature 1 (section 3).

    EOS appears only where the model emitted it.
    """
    return _decoded(planned, wanted, seed, do_sample=True, top_k=AUTOREGRESSIVE_TOP_K)


@register("AN-untruncated")
def autoregressive_untruncated(planned: PlannedRows, wanted: Wanted, seed: int) -> Drawn:
    """AN without top-k: from pi_ref itself, under which a score has mean zero, so that the expected
    gradient of equation 1 at the reference is that of MLE."""
    entries = planned.model.config.get_text_config().vocab_size
    return _decoded(planned, wanted, seed, do_sample=True, top_k=entries)


@register("AN-greedy")
def autoregressive_greedy(planned: PlannedRows, wanted: Wanted, seed: int) -> Drawn:
    """AN by greedy decoding: what pi_ref says at test, its mode as far as greedy search finds it.

    One per prefix. Training against what a model is decoded to is known to lessen its repetition
    (sequence-level unlikelihood, Welleck et al. 2020).
    """
    return _decoded(planned, wanted, seed)


@register("AN-beam")
def autoregressive_beam(planned: PlannedRows, wanted: Wanted, seed: int) -> Drawn:
    """AN by beam search: the most probable of the sequences that 4 beams end with, at most 4."""
    return _decoded(planned, wanted, seed, num_beams=MOST_SEQUENCES["AN-beam"])


def _decoded(planned: PlannedRows, wanted: Wanted, seed: int, **decoding: Any) -> Drawn:
    """Continuations by the reference; rows that need the same number are decoded together."""
    never = planned.ids_without_token()
    drawn: Drawn = {}
    for count in sorted(set(wanted.values())):
        rows = [row for row, number in wanted.items() if number == count]
        continuations = generate(
            planned.model,
            [planned.prefixes[row] for row in rows],
            eos_token_id=planned.eos_token_id,
            max_new_tokens=planned.max_continuation_tokens,
            per_prefix=count,
            batch=planned.generation_batch,
            seed=seed,
            precision=planned.precision,
            lengths=[len(planned.continuations[row]) for row in rows],
            never=never,
            description=f"decoding {count} AN",
            **decoding,
        )
        for row, group in zip(rows, continuations, strict=True):
            drawn[row] = [tuple(ids) for ids in group]
    return drawn


@register("BN")
def batch_negatives(planned: PlannedRows, wanted: Wanted, seed: int) -> Drawn:
    """BN: continuations of other prefixes in the same global batch, without replacement (section
    3).

    Rows with an equal prefix are excluded: data sets repeat prompts.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for row, count in wanted.items():
        first = row - row % planned.batch
        order = (torch.randperm(planned.batch, generator=generator) + first).tolist()
        prefix = tuple(planned.prefixes[row])
        others = [other for other in order if tuple(planned.prefixes[other]) != prefix]
        drawn[row] = [planned.continuations[other] for other in others[:count]]
    return drawn


@register("MN")
def meanfield(planned: PlannedRows, wanted: Wanted, seed: int) -> Drawn:
    """MN: 15 % of y_1's tokens, each resampled once from pi_ref(. | x, y_<t) (section 3).

    `max(1, round(0.15 T))` positions, uniformly, EOS excluded, from one teacher-forced pass over
    the ground truth. The paper prints the condition as y_1 .. y_t, which would include y_t itself.
    """
    scorer = GroupScorer(planned.model, planned.precision)
    never = planned.ids_without_token()
    rows = list(wanted)

    def resampled(start: int) -> Drawn:
        part = rows[start : start + planned.micro_batch]
        bodies = [planned.body(row) for row in part]
        prefixes = [planned.prefixes[row] for row in part]
        groups = [Group(prefix, [body]) for prefix, body in zip(prefixes, bodies, strict=True)]
        batch = collate_groups(groups, planned.model.device)
        logits = scorer.next_token_logits(**batch).cpu()
        logits[:, never] = -torch.inf
        generator = torch.Generator().manual_seed(stream_seed(seed, start))
        drawn = {}
        logits_by_row = logits.split([len(body) for body in bodies])
        for row, body, own in zip(part, bodies, logits_by_row, strict=True):
            end = planned.continuations[row][len(body) :]  # EOS, or nothing
            drawn[row] = [_resample(body, own, generator) + end for _ in range(wanted[row])]
        bar.update(len(part) * process_count())
        return drawn

    with progress_bar(len(rows), "resampling MN", "prompt") as bar, torch.inference_mode():
        parts = shared_out(range(0, len(rows), planned.micro_batch), resampled)
    return {row: draws for part in parts for row, draws in part.items()}


def _resample(body: Continuation, logits: Tensor, generator: torch.Generator) -> Continuation:
    """`body` with some of its T tokens drawn from the rows of `logits` `[T, V]` at their
    positions."""
    count = max(1, round(MEANFIELD_SHARE * len(body)))
    positions = torch.randperm(len(body), generator=generator)[:count]
    tokens = torch.multinomial(logits[positions].softmax(-1), 1, generator=generator)[:, 0]
    changed = list(body)
    for position, token in zip(positions.tolist(), tokens.tolist(), strict=True):
        changed[position] = token
    return tuple(changed)


@register("TN")
def truncation(planned: PlannedRows, wanted: Wanted, seed: int) -> Drawn:
    """TN: y_1 cut after 1 .. T - 1 of its T tokens, uniformly, and EOS appended (section 3).

    The cuts of one draw are distinct. A one-token response has no truncation.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for row, count in wanted.items():
        body = planned.body(row)
        cuts = 1 + torch.randperm(max(0, len(body) - 1), generator=generator)[:count]
        drawn[row] = [(*body[:cut], planned.eos_token_id) for cut in cuts.tolist()]
    return drawn


@register("UN")
def unhelpful(planned: PlannedRows, wanted: Wanted, seed: int) -> Drawn:
    """UN: the unhelpful response written for the row, DPO's rejected response (section 4).

    A row without one has no candidate.

    Raises:
        ValueError: no unhelpful responses were written.
    """
    if planned.unhelpful is None:
        raise ValueError("UN negatives need unhelpful responses, and none were written")
    written = ((row, planned.unhelpful[row]) for row in wanted)
    return {row: [response] for row, response in written if response is not None}


@dataclass
class DrawReport:
    """Counts of one kind's candidates over all draws."""

    asked: int = 0  # columns to fill
    drawn: int = 0  # candidates seen
    equal_to_truth: int = 0
    duplicates: int = 0
    masked: int = 0  # columns left empty
    first_drawn: int = 0  # in the first draw only, before any redrawing
    first_equal_to_truth: int = 0
    first_duplicates: int = 0

    def count(self, is_truth: bool, is_duplicate: bool, is_first: bool) -> None:
        """Count one candidate."""
        self.drawn += 1
        self.equal_to_truth += is_truth
        self.duplicates += is_duplicate
        self.first_drawn += is_first
        self.first_equal_to_truth += is_first and is_truth
        self.first_duplicates += is_first and is_duplicate


@dataclass
class DrawnNegatives:
    """Candidates `[N][K]`, column 0 the ground truth; which are usable; and the kind of each
    column."""

    kinds: list[str]
    candidates: list[list[Continuation]]
    mask: list[list[bool]]
    reports: dict[str, DrawReport] = field(default_factory=dict)


def draw_negatives(
    planned: PlannedRows | Mapping[str, Any], mixture: Mapping[str, int], seed: int
) -> DrawnNegatives:
    """Fill the columns of a mixture such as `{"BN": 3, "MN": 5, "TN": 3}` for every row.

    A candidate equal to the ground truth, or to an earlier negative of its prefix, is degenerate.
    It is redrawn up to three times, unless its decoder is deterministic; then its column is masked
    and holds an empty continuation.

    Args:
        planned: the rows of the training schedule, or the fields of `PlannedRows` by name.
        mixture: the number of negatives of each kind.
        seed: of all draws; every kind and draw has a stream of its own.

    Raises:
        RegistryError: a kind that is not registered.
        ValueError: a count below 1, more BN than a global batch has other rows, or more sequences
            than a deterministic decoder gives.
    """
    if not isinstance(planned, PlannedRows):
        planned = PlannedRows(**planned)
    for kind, count in mixture.items():
        SAMPLERS.check(kind)
        if count < 1:
            raise ValueError(f"{kind}: {count} negatives requested; leave the kind out instead")
        if count > MOST_SEQUENCES.get(kind, count):
            raise ValueError(f"{kind}: {count} requested, decoding gives {MOST_SEQUENCES[kind]}")
    if mixture.get("BN", 0) >= planned.batch:
        raise ValueError(
            f"{mixture['BN']} BN need a global batch of more than {planned.batch}: raise the batch"
        )
    known = [{truth} for truth in planned.continuations]
    result = DrawnNegatives(
        kinds=["truth", *(kind for kind, count in mixture.items() for _ in range(count))],
        candidates=[[truth] for truth in planned.continuations],
        mask=[[True] for _ in planned.continuations],
    )
    for kind, count in mixture.items():
        report = result.reports[kind] = DrawReport(asked=count * len(known))
        # One stream per kind and draw: the counts of other kinds change nothing.
        draws = 1 if kind in MOST_SEQUENCES else MAX_DRAWS
        streams = [stream_seed(seed, kind, draw) for draw in range(draws)]
        drawn = _distinct(planned, SAMPLERS[kind], count, streams, known, report)
        for row, negatives in enumerate(drawn):
            missing = count - len(negatives)
            report.masked += missing
            result.candidates[row] += [*negatives, *[()] * missing]
            result.mask[row] += [True] * len(negatives) + [False] * missing
    return result


def _distinct(
    planned: PlannedRows,
    sampler: Sampler,
    count: int,
    streams: Sequence[int],
    known: list[set[Continuation]],
    report: DrawReport,
) -> list[list[Continuation]]:
    """Up to `count` negatives per row, none among the row's `known` candidates, in one draw per
    random stream; updates `known` and the report."""
    negatives: list[list[Continuation]] = [[] for _ in known]
    for draw, stream in enumerate(streams):
        wanted = {row: count - len(own) for row, own in enumerate(negatives) if len(own) < count}
        if not wanted:
            break
        for row, candidates in sampler(planned, wanted, stream).items():
            for candidate in candidates:
                is_truth = candidate == planned.continuations[row]
                is_duplicate = not is_truth and candidate in known[row]
                report.count(is_truth, is_duplicate, is_first=draw == 0)
                if candidate not in known[row]:
                    known[row].add(candidate)
                    negatives[row].append(candidate)
    return negatives
