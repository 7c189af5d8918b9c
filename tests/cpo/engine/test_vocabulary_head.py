"""The head against torch's own cross entropy over all logits at once."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cpo.engine import vocabulary_head
from cpo.engine.vocabulary_head import token_logps

COUNT, WIDTH, VOCABULARY = 11, 6, 40


def head(dtype: torch.dtype, bias: bool) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """States, weight, bias and targets, one target twice in a row."""
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        values = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return values.to(dtype).requires_grad_()

    targets = torch.randint(0, VOCABULARY, (COUNT,), generator=generator)
    targets[1] = targets[0]
    states, weight = leaf(COUNT, WIDTH), leaf(VOCABULARY, WIDTH)
    return states, weight, leaf(VOCABULARY) if bias else None, targets


def plain(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    scale: float = 1.0,
    cap: float | None = None,
) -> Tensor:
    logits = F.linear(states, weight, bias) * scale
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    return -F.cross_entropy(logits, targets, reduction="none")


def tiles_of(monkeypatch: pytest.MonkeyPatch, states: int, words: int) -> None:
    monkeypatch.setattr(vocabulary_head, "TILE_STATES", states)
    monkeypatch.setattr(vocabulary_head, "TILE_ENTRIES", words)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("options", [{}, {"scale": 0.3}, {"cap": 2.0}, {"scale": 4.0, "cap": 3.0}])
@pytest.mark.parametrize("tile", [(1, 40), (4, 7), (COUNT, 13), (1000, 1), (1000, 1000)])
def test_values_and_gradients_are_those_of_all_logits_at_once(monkeypatch, tile, options, bias):
    tiles_of(monkeypatch, *tile)
    found = []
    for function in (token_logps, plain):
        *leaves, targets = head(torch.float64, bias)
        logps = function(*leaves, targets, **options)
        (logps * torch.linspace(-1, 2, COUNT, dtype=torch.float64)).sum().backward()
        found.append([logps.detach(), *(leaf.grad for leaf in leaves if leaf is not None)])
    torch.testing.assert_close(*found, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("bias", [False, True])
def test_gradients_are_those_of_finite_differences(monkeypatch, bias):
    tiles_of(monkeypatch, 4, 13)
    *leaves, targets = head(torch.float64, bias)
    assert torch.autograd.gradcheck(lambda *given: token_logps(*given, targets), leaves)


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("words", [VOCABULARY, 13])
def test_bf16_gradients_leave_the_values_alone(monkeypatch, words, cap):
    tiles_of(monkeypatch, 4, words)
    found = []
    for options in ({}, {"bf16_gradients": True}, {"bf16_logits": True}):
        *leaves, targets = head(torch.float32, True)
        logps = token_logps(*leaves, targets, cap=cap, **options)
        logps.sum().backward()
        found.append([logps.detach(), *(leaf.grad for leaf in leaves)])
    exact, rough_gradients, rough = found
    assert torch.equal(rough_gradients[0], exact[0])
    assert not torch.equal(rough[0], exact[0])
    # A bf16 number has eight binary digits: 2 ** -8 is 0.4 %, of sums whose terms cancel some more.
    for one in (rough_gradients, rough):
        assert one[0].dtype == torch.float32
        for gradient, expected in zip(one[1:], exact[1:], strict=True):
            assert gradient.dtype == torch.float32
            assert not torch.equal(gradient, expected)
            assert (gradient - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("words", [VOCABULARY, 13])
def test_bf16_slopes_add_up_to_nothing_however_large_the_logits_are(monkeypatch, words):
    tiles_of(monkeypatch, 4, words)
    # d logp / d bias is onehot - softmax, whose sum is 0. Of logits about -50 bf16 keeps quarters.
    states, weight, bias, targets = head(torch.float32, True)
    shifted = (bias.detach() - 50).requires_grad_()
    token_logps(states, weight, shifted, targets, bf16_gradients=True).sum().backward()
    assert abs(float(shifted.grad.sum())) < 1e-4
    assert shifted.grad.abs().sum() > 1


def test_nothing_of_the_size_of_all_logits_is_ever_made(monkeypatch):
    tiles_of(monkeypatch, 3, 11)
    largest = 0
    *leaves, targets = head(torch.float32, False)

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            # The weights, turned or not, and their gradient are there in any case.
            if isinstance(result, Tensor) and result.shape.numel() != VOCABULARY * WIDTH:
                largest = max(largest, result.numel())
            return result

    with Watch():
        token_logps(*leaves, targets).sum().backward()
    # The states, 11 x 6. A tile has 3 x 11 logits, a tile of all words would have 120.
    assert largest == COUNT * WIDTH


def test_a_target_that_is_no_word_has_no_logp(monkeypatch):
    tiles_of(monkeypatch, 4, 13)
    states, weight, bias, targets = head(torch.float64, True)
    expected = token_logps(states, weight, bias, targets)
    for beyond in (-1, VOCABULARY):
        wrong = targets.clone()
        wrong[3] = beyond
        found = token_logps(states, weight, bias, wrong)
        assert found[3].isnan()
        assert torch.equal(found[[0, 1, 2, 4]], expected[[0, 1, 2, 4]])


@pytest.mark.parametrize("word", [0, 12, 13, VOCABULARY - 1])  # at the edges of tiles
def test_an_impossible_word_takes_nothing_from_the_others(monkeypatch, word):
    tiles_of(monkeypatch, 4, 13)
    states, weight, bias, targets = head(torch.float64, True)
    targets[targets == word] = word - 1 if word else 1
    with torch.no_grad():
        bias[word] = -torch.inf
    found = token_logps(states, weight, bias, targets)
    torch.testing.assert_close(found, plain(states, weight, bias, targets))


def test_no_states_have_no_logps():
    weight = torch.randn(VOCABULARY, WIDTH, requires_grad=True)
    logps = token_logps(torch.zeros(0, WIDTH), weight, None, torch.zeros(0, dtype=torch.long))
    assert logps.shape == (0,)
    logps.sum().backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))
