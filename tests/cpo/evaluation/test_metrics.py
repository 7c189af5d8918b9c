"""Measures of texts: values by hand, MAUVE against its own, and input that must not be scored."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rouge_score import rouge_scorer
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from cpo.evaluation import metrics
from cpo.evaluation.statistics import MetricError

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


def test_rouge_l_by_hand() -> None:
    # The longest common subsequence is "the cat sat": P = 3/4, R = 3/5, F1 = 2 P R / (P + R) = 2/3.
    assert metrics.rouge_l("The cat sat up", "the big cat sat down!") == pytest.approx(2 / 3)
    assert metrics.rouge_l("walked dogs", "Walking dog") == 1  # stems
    assert metrics.rouge_l("b a", "a b") == pytest.approx(1 / 2)  # order counts
    assert metrics.rouge_l("", "words") == metrics.rouge_l("words", "") == 0


def test_rouge_l_is_that_of_the_package() -> None:
    package = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    texts = [
        "Caresses flies, dying mules DENIED!",
        "the flying mule dies; caressed, it denies",
        "a-b",
    ]
    for response, recorded in itertools.product(texts, texts):
        expected = package.score(recorded, response)["rougeL"].fmeasure
        assert metrics.rouge_l(response, recorded) == expected


WORDS = st.lists(st.sampled_from(["aa", "bb", "cc", "dd"]), min_size=1, max_size=9)


@given(WORDS, WORDS)
def test_rouge_l_is_the_longest_common_subsequence(first: list[str], second: list[str]) -> None:
    """Parity with the definition: of all subsequences of one text, the longest in the other."""

    def is_within(part: tuple[str, ...], whole: list[str]) -> bool:
        rest = iter(whole)
        return all(word in rest for word in part)

    longest = max(
        length
        for length in range(len(first) + 1)
        for part in itertools.combinations(first, length)
        if is_within(part, second)
    )
    expected = 2 * longest / (len(first) + len(second))
    score = metrics.rouge_l(" ".join(first), " ".join(second))
    assert score == pytest.approx(expected)
    assert score == pytest.approx(metrics.rouge_l(" ".join(second), " ".join(first)))


def test_distinct_ngrams_by_hand() -> None:
    texts = [[1, 2, 1, 2], [2, 1], [3], []]
    # Seven tokens, three of them distinct; bigrams 12 21 12 | 21, two distinct of four.
    assert metrics.distinct_ngrams(texts, 1).value == pytest.approx(3 / 7)
    assert metrics.distinct_ngrams(texts, 1, share=False).value == 3
    assert metrics.distinct_ngrams(texts, 2).value == pytest.approx(2 / 4)
    with pytest.raises(MetricError, match="2 texts with 0 4-grams"):
        metrics.distinct_ngrams([[1, 2], [3]], 4)
    with pytest.raises(MetricError, match="1 texts"):
        metrics.distinct_ngrams([[1, 2]], 1)


@given(st.lists(st.lists(st.integers(0, 5), max_size=8), min_size=2, max_size=8))
def test_distinct_ngrams_of_one_text_are_what_it_does_not_repeat(texts: list[list[int]]) -> None:
    whole = [token for text in texts for token in text]
    if len(whole) >= 2:
        of_all = metrics.distinct_ngrams([whole, []], 2, halves=0).value
        assert of_all == pytest.approx(1 - metrics.repeated_ngrams(whole, 2))


@pytest.mark.parametrize(("n", "share"), [(1, False), (1, True), (2, True)])
def test_distinct_ngrams_interval_is_as_wide_as_new_samples_scatter(n: int, share: bool) -> None:
    draw = np.random.default_rng(0)
    frequencies = 1 / np.arange(1, 1001)  # Zipf's
    frequencies /= frequencies.sum()

    def sample() -> list[list[int]]:
        return [draw.choice(1000, 30, p=frequencies).tolist() for _ in range(150)]

    values = [metrics.distinct_ngrams(sample(), n, share, halves=0).value for _ in range(80)]
    found = [metrics.distinct_ngrams(sample(), n, share) for _ in range(6)]
    widths = [one.high - one.low for one in found]
    assert np.mean(widths) / (2 * 1.96) == pytest.approx(np.std(values), rel=0.4)
    # Half the texts have another level: the replicates are scaled to that of all.
    assert np.mean(found[0].replicates) == pytest.approx(found[0].value)


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


def exact_mauve(p: np.ndarray, q: np.ndarray, scaling: float = 5.0) -> float:
    """The area under the divergence curve of two histograms (Pillutla et al. 2021, equation 2)."""

    def divergence(one: np.ndarray, other: np.ndarray) -> float:
        used = one > 0
        return float((one[used] * np.log(one[used] / other[used])).sum())

    curve = [(0.0, 1.0)]
    for weight in np.linspace(1e-6, 1 - 1e-6, 1001):
        mixed = weight * p + (1 - weight) * q
        x, y = (math.exp(-scaling * divergence(one, mixed)) for one in (p, q))
        curve.append((x, y))
    x, y = np.array([*curve, (1.0, 0.0)]).T
    return float(np.trapezoid(y, x))


# Texts a side, and how many of them are the first, the second ... distinct text on either side.
FEW_TEXTS = {
    "two, alike": ([30, 30], [30, 30]),
    "two, in other shares": ([30, 30], [45, 15]),
    "two, nearly alike": ([30, 30], [31, 29]),
    "three, one on one side only": ([30, 30, 0], [30, 15, 15]),
    "as many as buckets": ([10] * 6, [10] * 6),
}


@pytest.mark.parametrize("rounding", [0.0, 1e-7, 1e-6])
@pytest.mark.parametrize("shares", FEW_TEXTS)
def test_mauve_of_few_distinct_texts_is_that_of_their_shares(shares: str, rounding: float) -> None:
    pytest.importorskip("mauve")
    for seed in range(4):
        draw = np.random.default_rng(seed)
        texts = draw.normal(size=(6, 16))
        texts /= np.linalg.norm(texts, axis=1, keepdims=True)
        sides = []
        for counts in FEW_TEXTS[shares]:
            rows = draw.permutation(np.repeat(np.arange(len(counts)), counts))
            sides.append(texts[rows] + rounding * draw.normal(size=(60, 16)))
        value = metrics.mauve_score(*sides, seeds=(seed,), halves=0).value
        p, q = (np.array(counts) / 60 for counts in FEW_TEXTS[shares])
        # mauve-text takes 25 points of the curve.
        assert value == pytest.approx(exact_mauve(p, q), abs=0.005)
        if np.array_equal(p, q):
            assert value == 1


def test_equal_sets_have_a_mauve_of_one_in_every_half() -> None:
    pytest.importorskip("mauve")
    texts = np.random.default_rng(0).normal(size=(2, 8))[[0, 1] * 30]
    assert set(metrics.mauve_score(texts, texts, halves=20).replicates) == {1.0}


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
        one.high - one.low for one in (metrics.mauve_score(*sample(), halves=40) for _ in range(5))
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
    with pytest.raises(MetricError, match="equal feature shapes"):
        metrics.mauve_score(first, second[:150])
    with pytest.raises(MetricError, match="equal feature shapes"):
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
    np.testing.assert_allclose(cut, metrics.last_token_features(model, [[1, 2], [5, 6]]), atol=1e-6)


def test_last_token_features_refuse_empty_texts(model: torch.nn.Module) -> None:
    with pytest.raises(MetricError, match="1 of 2 texts"):
        metrics.last_token_features(model, [[1], []])
    with pytest.raises(MetricError):
        metrics.last_token_features(model, [])
