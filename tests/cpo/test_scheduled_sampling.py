"""Parallel scheduled sampling: what it replaces, what it freezes, and that p = 0 is MLE."""

import math

import pytest
import torch
from models import ARCHITECTURES, VOCABULARY, tiny_model

from cpo.scheduled_sampling import ScheduledSamplingScorer
from cpo.scoring import Group, GroupScorer, collate_groups

BATCH = collate_groups([Group([5, 6, 7], [[8, 9, 10, 11, 0]]), Group([3], [[4, 5, 0]])])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_probability_zero_is_mle(architecture):
    model = tiny_model(architecture)

    def gradients(scorer):
        model.zero_grad()
        logps = scorer.train()(**BATCH)
        (-logps.sum() / 8).backward()  # 5 + 3 continuation tokens
        return [logps.detach(), *[one.grad.clone() for one in model.parameters()]]

    mle = gradients(GroupScorer(model))
    pss = gradients(ScheduledSamplingScorer(model, probability=0.0))
    torch.testing.assert_close(pss, mle)
    other = gradients(ScheduledSamplingScorer(model, probability=1.0))
    assert not torch.allclose(other[0], mle[0])


def test_evaluation_scores_the_ground_truth():
    model = tiny_model("llama")
    pss = ScheduledSamplingScorer(model, probability=1.0).eval()
    torch.testing.assert_close(pss(**BATCH), GroupScorer(model)(**BATCH))


class Recorder(ScheduledSamplingScorer):
    """Keeps the inputs of all passes; expects token 20 + pass number everywhere, surely."""

    def next_token_logits(self, prefix_ids, prefix_mask, continuation_ids, continuation_mask):
        self.seen = [*getattr(self, "seen", []), continuation_ids]
        logits = torch.full((int(continuation_mask.sum()), VOCABULARY), -math.inf)
        logits[:, 20 + len(self.seen)] = 0.0
        return logits

    def token_logps(self, *args):
        self.last = args[-1]
        return super().token_logps(*args)


def test_each_pass_samples_from_the_one_before_and_settled_places_stay():
    scorer = Recorder(tiny_model("gpt2"), probability=1.0, passes=3).train()
    scorer(**BATCH)
    first = [one[0, 0].tolist() for one in [*scorer.seen, scorer.last]]
    # Pass 0 sees the ground truth and replaces every place by 21. Pass 1 sees that, expects 22, and
    # leaves place 0; pass 2 expects 23 and leaves places 0 and 1.
    assert first == [
        [8, 9, 10, 11, 0],
        [21, 21, 21, 21, 21],
        [21, 22, 22, 22, 22],
        [21, 22, 23, 23, 23],
    ]
    assert scorer.last[1, 0].tolist() == [21, 22, 23, 0, 0]  # padding stays padding


def test_a_place_is_replaced_with_the_given_probability_afresh_in_each_pass():
    rows = 400
    batch = collate_groups([Group([1], [[2] * 20])] * rows)
    torch.manual_seed(0)
    scorer = Recorder(tiny_model("gpt2"), probability=0.5, passes=2).train()
    scorer(**batch)
    changed = [(one != 2).float() for one in (scorer.seen[1], scorer.last)]
    for one in changed:
        assert abs(float(one.mean()) - 0.5) < 4 * 0.5 / math.sqrt(rows * 20)  # 4 sigma
    both = float((changed[0] * changed[1])[..., 1:].mean())
    assert abs(both - 0.25) < 4 * 0.44 / math.sqrt(rows * 19)  # independent masks: 0.5 x 0.5


def test_samples_carry_no_gradient_and_only_the_last_pass_does():
    model = tiny_model("llama")
    scorer = ScheduledSamplingScorer(model, probability=0.5, passes=3).train()
    calls = []
    model.base_model.register_forward_hook(
        lambda *_: calls.append(torch.is_grad_enabled()), always_call=True
    )
    scorer(**BATCH)
    assert calls == [False, False, False, False, False, False, True, True]  # two lengths a pass
