"""Measures: values by hand, intervals against their theory, and input that must not be scored."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from cpo import metrics
from cpo.metrics import MetricError

# --- Intervals ------------------------------------------------------------------------------------


def test_win_rate_by_hand() -> None:
    # 3 wins, 2 ties, 3 losses: (3 + 2 * 0.5) / 8 = 0.5. Var of one point = (6 * 0.25) / 8 = 0.1875,
    # so the bootstrap's standard error is sqrt(0.1875 / 8) = 0.153 and 1.96 of them are 0.300. The
    # draws lie on a grid of 1/16, so the ends may be one step off.
    estimate = metrics.win_rate([1, 1, 1, 0.5, 0.5, 0, 0, 0])
    assert estimate.value == 0.5
    assert estimate.n == 8
    assert estimate.low == pytest.approx(0.2, abs=1 / 16)
    assert estimate.high == pytest.approx(0.8, abs=1 / 16)


def test_without_ties_the_interval_is_wilsons() -> None:
    # Wilson, p = 0.3, n = 10, z = 1.959964: centre (p + z^2 / 2n) / (1 + z^2 / n) = 0.355507,
    # half width z sqrt(p (1 - p) / n + z^2 / 4n^2) / (1 + z^2 / n) = 0.247715.
    estimate = metrics.win_rate([1] * 3 + [0] * 7)
    assert estimate.value == pytest.approx(0.3)
    assert estimate.low == pytest.approx(0.355507 - 0.247715, abs=2e-6)
    assert estimate.high == pytest.approx(0.355507 + 0.247715, abs=2e-6)
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    low, high = proportion.proportion_confint(3, 10, method="wilson")
    assert (estimate.low, estimate.high) == pytest.approx((low, high))


def test_a_certain_winner_still_has_an_interval() -> None:
    estimate = metrics.win_rate([1] * 20)
    assert estimate.high == pytest.approx(1)
    assert 0.8 < estimate.low < 0.9  # Wilson: n / (n + z^2) = 20 / 23.84 = 0.839


def test_ties_narrow_the_interval() -> None:
    with_ties = metrics.win_rate([1] * 50 + [0.5] * 100 + [0] * 50)
    without = metrics.win_rate([1] * 100 + [0] * 100)
    assert with_ties.high - with_ties.low < 0.8 * (without.high - without.low)


def test_invalid_points_are_left_out() -> None:
    estimate = metrics.win_rate([1, math.nan, 0.5, math.nan])
    assert estimate.value == 0.75
    assert estimate.n == 2


@pytest.mark.parametrize("points", [[], [math.nan], [1, 2], [-1, 0.5], [[1.0], [0.0]], [math.inf]])
def test_win_rate_refuses(points: list[float]) -> None:
    with pytest.raises(MetricError):
        metrics.win_rate(points)


def test_bootstrap_is_deterministic_and_seeded() -> None:
    values = np.random.default_rng(3).normal(size=200)
    assert metrics.mean_estimate(values) == metrics.mean_estimate(values)
    assert metrics.mean_estimate(values, seed=1) != metrics.mean_estimate(values, seed=2)


def test_chunks_do_not_change_what_is_drawn_of(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).normal(size=50)
    whole = metrics.mean_estimate(values)
    monkeypatch.setattr(metrics, "CHUNK_VALUES", 333)  # 6 draws at a time, the last chunk shorter
    assert metrics.mean_estimate(values) == whole


def test_the_bootstrap_covers_the_truth_about_95_times_in_100(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "DRAWS", 1000)
    draw = np.random.default_rng(0)
    covered = 0
    for trial in range(400):  # points of 1, 0.5, 0 with chances 0.4, 0.3, 0.3: their mean is 0.55
        points = draw.choice([1, 0.5, 0], p=[0.4, 0.3, 0.3], size=150)
        estimate = metrics.win_rate(points, seed=trial)
        covered += estimate.low <= 0.55 <= estimate.high
    # Binomial(400, 0.95) has a standard deviation of 1.1 points: 4 of them, and some bias.
    assert 0.90 < covered / 400 < 0.99


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=40))
def test_the_value_is_the_mean_and_lies_in_its_interval(points: list[float]) -> None:
    estimate = metrics.win_rate(points)
    assert estimate.value == pytest.approx(sum(points) / len(points))
    assert -1e-12 <= estimate.low <= estimate.value <= estimate.high <= 1 + 1e-12


def test_paired_difference_uses_the_pairs() -> None:
    draw = np.random.default_rng(0)
    hard = draw.normal(size=300)  # the prompts differ far more than the two models do
    estimate = metrics.paired_difference(hard + 0.1, hard)
    assert estimate.value == pytest.approx(0.1)
    assert estimate.high - estimate.low < 1e-9
    shuffled = metrics.paired_difference(hard + 0.1, draw.permutation(hard))
    assert shuffled.high - shuffled.low > 0.2


def test_paired_difference_by_hand_and_its_exclusions() -> None:
    # Prompt 2 is invalid in a, prompt 4 in b: what is left is (1 - 0.5), (0 - 1) -> mean -0.25.
    estimate = metrics.paired_difference([1, math.nan, 0, 1], [0.5, 1, 1, math.nan])
    assert estimate.value == pytest.approx(-0.25)
    assert estimate.n == 2
    with pytest.raises(MetricError, match="same prompts"):
        metrics.paired_difference([1, 0], [1])
    with pytest.raises(MetricError, match="no valid"):
        metrics.paired_difference([math.nan], [1])


def test_mean_over_seeds_keeps_what_any_seed_has() -> None:
    mean = metrics.mean_over_seeds([[1, math.nan, math.nan], [0.5, 0, math.nan]])
    assert mean[:2].tolist() == [0.75, 0]
    assert np.isnan(mean[2])


def test_token_mean_loss_weighs_by_tokens() -> None:
    # 12 nats over 8 tokens is 1.5; the mean of the two texts' own means, 3 and 1, would be 2.
    estimate = metrics.token_mean_loss([-6, -6], [2, 6])
    assert estimate.value == pytest.approx(1.5)
    assert (estimate.low, estimate.high) == (1, 3)  # both draws the same text
    assert estimate.n == 2


@pytest.mark.parametrize(
    ("logps", "tokens"), [([], []), ([-1.0], [0]), ([-1.0], [1, 2]), ([math.nan], [1])]
)
def test_token_mean_loss_refuses(logps: list[float], tokens: list[int]) -> None:
    with pytest.raises(MetricError):
        metrics.token_mean_loss(logps, tokens)


# --- Texts ----------------------------------------------------------------------------------------


def test_repeated_ngrams_by_hand() -> None:
    # a b a b a b: bigrams ab ba ab ba ab, 2 distinct of 5.
    assert metrics.repeated_ngrams(list("ababab"), n=2) == pytest.approx(1 - 2 / 5)
    assert metrics.repeated_ngrams([1, 2, 3, 4, 5]) == 0
    assert metrics.repeated_ngrams([7, 7, 7]) == 0  # shorter than 4: it has no 4-gram to repeat
    assert metrics.repeated_ngrams([]) == 0
    assert metrics.repeated_ngrams([7] * 13) == pytest.approx(0.9)  # ten 4-grams, one distinct


def test_word_f1_by_hand() -> None:
    # {the: 2, cat, sat} and {the, cat, ran}: 2 in common, F1 = 2 * 2 / (4 + 3).
    assert metrics.word_f1("The cat, the sat.", "the CAT ran") == pytest.approx(4 / 7)
    assert metrics.word_f1("same words", "words same") == 1
    assert metrics.word_f1("", "something") == 0


def test_lengths() -> None:
    assert metrics.lengths([[1, 2], [], [3]]).tolist() == [2, 0, 1]


# --- MAUVE ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def samples() -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    return draw.normal(size=(200, 8)), draw.normal(size=(200, 8))


def test_mauve_tells_one_distribution_from_two(samples: tuple[np.ndarray, np.ndarray]) -> None:
    pytest.importorskip("mauve")
    first, second = samples
    alike = metrics.mauve_score(first, second, seeds=(0, 1))
    assert alike.value > 0.9
    assert alike.low <= alike.value <= alike.high
    assert alike.n == 200
    shifted = second + np.array([6.0] + [0.0] * 7)
    assert metrics.mauve_score(first, shifted, seeds=(0,)).value < 0.2


def test_mauve_is_mauve_texts_own(samples: tuple[np.ndarray, np.ndarray]) -> None:
    mauve = pytest.importorskip("mauve")
    first, second = (features.astype(np.float32) for features in samples)
    expected = mauve.compute_mauve(p_features=first, q_features=second, seed=4).mauve
    ours = metrics.mauve_score(first, second, seeds=(4,))
    assert ours.value == pytest.approx(float(expected))


def test_mauves_interval_is_as_wide_as_new_samples_scatter(
    capfd: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("mauve")
    draw = np.random.default_rng(3)
    apart = np.array([1.5] + [0.0] * 7)

    def sample() -> tuple[np.ndarray, np.ndarray]:
        return draw.normal(size=(200, 8)), draw.normal(size=(200, 8)) + apart

    scores = [metrics.mauve_score(*sample(), halves=0).value for _ in range(60)]
    widths = [
        one.high - one.low
        for one in (metrics.mauve_score(*sample(), halves=40) for _ in range(5))
    ]
    assert np.mean(widths) / (2 * 1.96) == pytest.approx(np.std(scores), rel=0.4)
    assert "WARNING" not in "".join(capfd.readouterr())


def test_mauves_halves_are_the_same_for_every_model(
    samples: tuple[np.ndarray, np.ndarray],
) -> None:
    pytest.importorskip("mauve")
    first, second = samples
    again = [metrics.mauve_score(first, second, halves=8).replicates for _ in range(2)]
    assert again[0] == again[1] and len(set(again[0])) > 4


def test_mauve_refuses_what_it_would_score_wrongly(
    samples: tuple[np.ndarray, np.ndarray],
) -> None:
    first, second = samples
    with pytest.raises(MetricError, match="all equal"):
        metrics.mauve_score(first, np.ones_like(first))
    with pytest.raises(MetricError, match="all equal"):  # only directions count
        metrics.mauve_score(np.arange(1, 201)[:, None] * np.ones((200, 8)), second)
    with pytest.raises(MetricError, match="as many"):
        metrics.mauve_score(first, second[:150])
    with pytest.raises(MetricError, match="one size"):
        metrics.mauve_score(first, second[:, :4])
    with pytest.raises(MetricError, match="too few"):
        metrics.mauve_score(first[:30], second[:30], buckets=16)
    with pytest.raises(MetricError, match="too few"):
        metrics.mauve_score(first[:0], second[:0])
    with pytest.raises(MetricError, match="finite"):
        metrics.mauve_score(first, np.where(second > 2, np.nan, second))
    with pytest.raises(MetricError, match="seed"):
        metrics.mauve_score(first, second, seeds=())


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    torch.manual_seed(0)
    config = (
        GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32)
        if request.param == "gpt2"
        else LlamaConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=32,
        )
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config)


def test_last_token_features_are_those_of_each_text_alone(model: torch.nn.Module) -> None:
    texts = [[3], [5, 6, 7, 8, 9], [1, 2], [4, 4, 4]]
    model.train()  # dropout on, if it were left so
    features = metrics.last_token_features(model, texts, batch=2)
    assert model.training  # as it was
    assert features.shape == (4, 16)
    assert features.dtype == np.float32
    model.eval()
    for row, text in zip(features, texts, strict=True):
        with torch.no_grad():
            hidden = model(torch.tensor([text]), output_hidden_states=True).hidden_states[-1]
        np.testing.assert_allclose(row, hidden[0, -1].numpy(), atol=1e-5)


def test_last_token_features_cut_to_one_length(model: torch.nn.Module) -> None:
    cut = metrics.last_token_features(model, [[1, 2, 3, 4], [5, 6]], max_tokens=2)
    np.testing.assert_allclose(
        cut, metrics.last_token_features(model, [[1, 2], [5, 6]]), atol=1e-6
    )


def test_last_token_features_refuse_empty_texts(model: torch.nn.Module) -> None:
    with pytest.raises(MetricError, match="1 of 2 texts"):
        metrics.last_token_features(model, [[1], []])
    with pytest.raises(MetricError):
        metrics.last_token_features(model, [])
