"""The four ways of making negatives, and their mixtures (section 3 of the paper, its distribution
A).

A sampler draws candidates for planned rows; `draw_negatives` asks the samplers of a mixture, draws
again what equals the ground truth or an earlier negative of its prefix, a bounded number of times,
and masks what is still missing. All of it is drawn offline, from the reference, on the batch plan.
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
from cpo.own_code import check_name, identity
from cpo.plan import stream_seed
from cpo.scoring import Group, GroupScorer, collate_groups

Continuation = tuple[int, ...]

MEANFIELD_SHARE = 0.15  # section 4: "we always randomly swap 15% tokens"
AUTOREGRESSIVE_TOP_K = 50  # section 3
DRAWS = 4  # the first draw and three more for what teaches nothing


@dataclass(frozen=True)
class Planned:
    """The planned rows a sampler draws for, in plan order, and what it may draw with.

    `prefixes` and `continuations` are ids, N = steps x batch of each; rows `[i * batch, (i + 1) *
    batch)` are one global batch. `has_eos` says which continuations end in EOS; `unhelpful` are
    responses that somebody wrote for DPO, one a row, None where there is none. Those of the project
    do without `tokenizer`; one of your own may need texts.
    """

    prefixes: Sequence[Sequence[int]]
    continuations: Sequence[Continuation]
    has_eos: Sequence[bool]
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
        return ids[:-1] if self.has_eos[row] else ids

    def ids_without_token(self) -> list[int]:
        """Ids of the model that its tokenizer does not know; none where no tokenizer is given."""
        return [] if self.tokenizer is None else ids_without_token(self.model, self.tokenizer)


# (planned rows, {row: how many}, seed) -> {row: candidates}; fewer candidates than asked is
# allowed.
Sampler = Callable[[Planned, Mapping[int, int], int], Mapping[int, Sequence[Continuation]]]

SAMPLERS: dict[str, Sampler] = {}


def register(name: str) -> Callable[[Sampler], Sampler]:
    """Make a sampler known by name, as `@register("AN")`; a mixture then counts it as `{AN: 3}`.

    A name of your own may be registered again, and stands for the new function then.

    Raises:
        OwnCodeError: the name is one of the project's.
    """
    check_name(name, SAMPLERS, "sampler")

    def add(sampler: Sampler) -> Sampler:
        SAMPLERS[name] = sampler
        return sampler

    return add


def sampler_identity(name: str) -> str:
    """What names a sampler in a recipe: its name here, the hash of its source if defined elsewhere.

    Raises:
        KeyError: no sampler is registered by this name.
        OwnCodeError: as `own_code.identity`.
    """
    if name not in SAMPLERS:
        raise KeyError(f"no negative sampler '{name}'; registered: {', '.join(SAMPLERS)}")
    return identity(name, SAMPLERS[name])


@register("AN")
def autoregressive(
    planned: Planned, wanted: Mapping[int, int], seed: int
) -> dict[int, list[Continuation]]:
    """AN: sampled from pi_ref given the prefix, top-k with k = 50, temperature 1 (section 3).

    EOS stands only where the model emitted it. Rows that want the same number are decoded together.
    """
    never = planned.ids_without_token()
    drawn: dict[int, list[Continuation]] = {}
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
            description=f"sampling {count} AN",
            do_sample=True,
            top_k=AUTOREGRESSIVE_TOP_K,
            temperature=1.0,
        )
        for row, group in zip(rows, continuations, strict=True):
            drawn[row] = [tuple(ids) for ids in group]
    return drawn


@register("BN")
def batch_negatives(
    planned: Planned, wanted: Mapping[int, int], seed: int
) -> dict[int, list[Continuation]]:
    """BN: continuations of other prefixes of the same global batch, without replacement (section
    3).

    A row with an equal prefix is not another prefix: data sets hold repeated prompts.
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
def meanfield(
    planned: Planned, wanted: Mapping[int, int], seed: int
) -> dict[int, list[Continuation]]:
    """MN: 15 % of y_1's tokens, each resampled once from pi_ref(. | x, y_<t) (section 3).

    `max(1, round(0.15 T))` positions, uniformly, EOS excluded, all from one teacher-forced pass
    over the ground truth. The paper prints the condition as y_1 .. y_t, which would hold y_t
    itself.
    """
    scorer = GroupScorer(planned.model, planned.precision)
    never = planned.ids_without_token()
    rows = list(wanted)

    def resampled(start: int) -> list[tuple[int, list[Continuation]]]:
        part = rows[start : start + planned.micro_batch]
        bodies = [planned.body(row) for row in part]
        groups = [
            Group(planned.prefixes[row], [body]) for row, body in zip(part, bodies, strict=True)
        ]
        batch = {name: one.to(planned.model.device) for name, one in collate_groups(groups).items()}
        logits = scorer.next_token_logits(**batch).cpu()
        logits[:, never] = -torch.inf
        generator = torch.Generator().manual_seed(stream_seed(seed, start))
        ends = torch.tensor([len(body) for body in bodies]).cumsum(0).tolist()
        found = []
        for row, body, end in zip(part, bodies, ends, strict=True):
            own, rest = logits[end - len(body) : end], planned.continuations[row][len(body) :]
            draws = [_resample(body, own, generator) + rest for _ in range(wanted[row])]
            found.append((row, draws))
        bar.update(len(part) * process_count())
        return found

    with progress_bar(len(rows), "resampling MN", "prompt") as bar, torch.inference_mode():
        parts = shared_out(range(0, len(rows), planned.micro_batch), resampled)
    return dict(pair for part in parts for pair in part)


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
def truncation(
    planned: Planned, wanted: Mapping[int, int], seed: int
) -> dict[int, list[Continuation]]:
    """TN: y_1 cut after 1 .. T - 1 of its T tokens, uniformly, and EOS appended (section 3).

    The cuts of one draw differ from each other. A one-token response has no truncation.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for row, count in wanted.items():
        body = planned.body(row)
        cuts = 1 + torch.randperm(max(0, len(body) - 1), generator=generator)[:count]
        drawn[row] = [(*body[:cut], planned.eos_token_id) for cut in cuts.tolist()]
    return drawn


@register("UN")
def unhelpful(
    planned: Planned, wanted: Mapping[int, int], seed: int
) -> dict[int, list[Continuation]]:
    """UN: the unhelpful response that was written for the row, DPO's rejected one (section 4).

    A row for which none could be written has no candidate.

    Raises:
        ValueError: nobody wrote any.
    """
    if planned.unhelpful is None:
        raise ValueError("UN negatives need unhelpful responses, and none were written")
    written = ((row, planned.unhelpful[row]) for row in wanted)
    return {row: [response] for row, response in written if response is not None}


@dataclass
class DrawReport:
    """What became of the candidates of one kind, counted over all draws."""

    asked: int = 0  # columns to fill
    drawn: int = 0  # candidates seen
    equal_to_truth: int = 0
    duplicates: int = 0
    masked: int = 0  # columns left empty
    first_drawn: int = 0  # of the first draw alone: rates that no redrawing has coloured
    first_equal_to_truth: int = 0
    first_duplicates: int = 0


@dataclass
class DrawnNegatives:
    """Candidates `[N][K]` with the ground truth in column 0, their usability, and the kind of each
    column."""

    kinds: list[str]
    candidates: list[list[Continuation]]
    mask: list[list[bool]]
    reports: dict[str, DrawReport] = field(default_factory=dict)


def draw_negatives(planned: Planned, mixture: Mapping[str, int], seed: int) -> DrawnNegatives:
    """Fill the columns of a mixture such as `{"BN": 3, "MN": 5, "TN": 3}` for every planned row.

    A candidate equal to the ground truth, or to an earlier negative of its prefix, teaches nothing:
    it is drawn again, up to three times, then its column is masked (and holds an empty
    continuation).

    Raises:
        KeyError: a kind that is not registered.
        ValueError: a count below 1, or more BN than a global batch has other rows.
    """
    for kind, count in mixture.items():
        sampler_identity(kind)
        if count < 1:
            raise ValueError(f"{kind}: {count} negatives asked for; leave the kind out instead")
    if mixture.get("BN", 0) >= planned.batch:
        raise ValueError(
            f"{mixture['BN']} BN need a global batch of more than {planned.batch}: raise the batch"
        )
    rows = range(len(planned.continuations))
    chosen: list[dict[str, list[Continuation]]] = [{kind: [] for kind in mixture} for _ in rows]
    known = [{planned.continuations[row]} for row in rows]
    reports = {kind: DrawReport() for kind in mixture}
    for kind, count in mixture.items():
        report = reports[kind]
        report.asked = count * len(rows)
        for draw in range(DRAWS):
            wanted = {
                row: count - len(chosen[row][kind])
                for row in rows
                if len(chosen[row][kind]) < count
            }
            if not wanted:
                break
            # Streams of their own for each kind and draw, so that a mixture's other counts change
            # nothing.
            drawn = SAMPLERS[kind](planned, wanted, stream_seed(seed, kind, draw))
            for row, candidates in drawn.items():
                for candidate in candidates:
                    is_truth = candidate == planned.continuations[row]
                    is_duplicate = not is_truth and candidate in known[row]
                    report.drawn += 1
                    report.equal_to_truth += is_truth
                    report.duplicates += is_duplicate
                    if draw == 0:
                        report.first_drawn += 1
                        report.first_equal_to_truth += is_truth
                        report.first_duplicates += is_duplicate
                    if not is_truth and not is_duplicate:
                        known[row].add(candidate)
                        chosen[row][kind].append(candidate)
        report.masked = sum(count - len(chosen[row][kind]) for row in rows)
    return _columns(planned, mixture, chosen, reports)


def _columns(
    planned: Planned,
    mixture: Mapping[str, int],
    chosen: list[dict[str, list[Continuation]]],
    reports: dict[str, DrawReport],
) -> DrawnNegatives:
    kinds = ["truth", *(kind for kind, count in mixture.items() for _ in range(count))]
    result = DrawnNegatives(kinds, [], [], reports)
    for truth, own in zip(planned.continuations, chosen, strict=True):
        candidates, mask = [truth], [True]
        for kind, count in mixture.items():
            missing = count - len(own[kind])
            candidates += [*own[kind], *[()] * missing]
            mask += [True] * len(own[kind]) + [False] * missing
        result.candidates.append(candidates)
        result.mask.append(mask)
    return result
