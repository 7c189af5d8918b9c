"""Decoding: padding, order, EOS and limits."""

import pytest
import torch
from models import ARCHITECTURES, EOS, tiny_model
from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper

from cpo.engine import growing_cache
from cpo.generation import generate, up_to_eos

PREFIXES = [[5, 6, 7], [9], [3, 4], [8, 8, 8, 8, 8]]


def greedy_by_hand(model, prefix, count):
    ids = list(prefix)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == EOS:
            break
    return ids[len(prefix) :]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("batch", [1, 3])
def test_greedy_equals_one_sequence_at_a_time(architecture, batch):
    model = tiny_model(architecture).eval()
    found = generate(
        model, PREFIXES, eos_token_id=EOS, max_new_tokens=8, batch=batch, lengths=[4, 1, 3, 2]
    )
    assert found == [[greedy_by_hand(model, prefix, 8)] for prefix in PREFIXES]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    "options", [{"num_beams": 3}, {"do_sample": True, "typical_p": 0.8}], ids=str
)
def test_transformers_decodes_alike_with_its_own_cache(architecture, options, monkeypatch):
    monkeypatch.setattr(growing_cache, "ROOM", 2)  # memory is taken several times
    model = tiny_model(architecture).eval().double()
    ids, mask = torch.tensor([[EOS, 5, 6, 7], [9, 3, 4, 2]]), torch.tensor([[0, 1, 1, 1], [1] * 4])
    torch.manual_seed(3)
    expected = model.generate(
        ids, attention_mask=mask, max_new_tokens=12, top_k=0, eos_token_id=EOS, pad_token_id=EOS,
        **options,
    )[:, 4:].tolist()  # fmt: skip
    monkeypatch.setattr("cpo.generation.stream_seed", lambda *numbers: 3)
    # In order of length, as one batch: [5, 6, 7] first.
    continuations = generate(
        model, [[5, 6, 7], [9, 3, 4, 2]], eos_token_id=EOS, max_new_tokens=12, batch=2, **options
    )
    assert continuations == [[up_to_eos(row, EOS)] for row in expected]
    assert len(continuations[0][0]) > 4 or len(continuations[1][0]) > 4


def test_sampling_is_seeded_and_top_k_is_not_transformers_default():
    model = tiny_model("llama").eval()

    def sample(seed: int, **options):
        return generate(
            model,
            PREFIXES,
            eos_token_id=EOS,
            max_new_tokens=1,
            per_prefix=400,
            batch=1600,
            seed=seed,
            do_sample=True,
            **options,
        )

    assert sample(0) == sample(0) != sample(1)
    assert all(len(group) == 400 for group in sample(0))
    logits = model(torch.tensor([PREFIXES[0]])).logits[0, -1]
    drawn = {ids[0] for ids in sample(0, top_k=2)[0]}
    assert drawn == set(logits.topk(2).indices.tolist())
    flat = {ids[0] for ids in sample(0, temperature=100.0)[0]}
    assert len(flat) > 50  # of 64: nothing cuts at 50


@pytest.mark.parametrize("options", [{"top_k": 5}, {"top_p": 0.9}], ids=["top_k", "top_p"])
def test_a_batch_is_drawn_alike_whatever_comes_before_it(options):
    model = tiny_model("llama").eval()

    def sample(prefixes: list[list[int]]) -> list[list[list[int]]]:
        return generate(
            model, prefixes, eos_token_id=EOS, max_new_tokens=6, per_prefix=4, batch=8,
            do_sample=True, **options,
        )  # fmt: skip

    # Batches are of two prefixes, in order of length: [5], [6, 7] and then the two longer ones.
    last = [[1, 2, 3], [1, 2, 3, 4]]
    assert sample([[5], [6, 7], *last])[2:] == sample([[8], [9, 10], *last])[2:]
    # Other batches, other draws.
    assert sample([last[0]] * 4)[:2] != sample([last[0]] * 4)[2:]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("options", [{"top_k": 3}, {"top_p": 0.3, "temperature": 0.7}], ids=str)
def test_sampling_draws_from_the_models_own_distribution(architecture, options):
    model = tiny_model(architecture).eval()
    count = 4000
    groups = generate(
        model,
        PREFIXES[:2],
        eos_token_id=EOS,
        max_new_tokens=2,
        per_prefix=count,
        batch=5000,
        do_sample=True,
        **options,
    )

    def expected(ids: list[int]) -> dict[int, float]:
        """What transformers' own processors leave of the next token's distribution."""
        logits = model(torch.tensor([ids])).logits[:, -1] / options.get("temperature", 1.0)
        if "top_k" in options:
            logits = TopKLogitsWarper(options["top_k"])(None, logits)
        if "top_p" in options:
            logits = TopPLogitsWarper(options["top_p"])(None, logits)
        chances = logits[0].softmax(-1).tolist()
        return {token: chance for token, chance in enumerate(chances) if chance}

    for prefix, group in zip(PREFIXES, groups, strict=False):
        first = expected(prefix)
        assert {ids[0] for ids in group} <= first.keys()
        for token, chance in first.items():
            began = [ids for ids in group if ids[0] == token]
            assert abs(len(began) / count - chance) < 4 * (0.25 / count) ** 0.5  # 4 sigma
            if token == EOS or len(began) < 200:
                continue
            second = expected([*prefix, token])
            seen = {one: sum(ids[1] == one for ids in began) for one in second}
            assert sum(seen.values()) == len(began)
            for following, times in seen.items():
                bound = 4 * (0.25 / len(began)) ** 0.5
                assert abs(times / len(began) - second[following]) < bound


def test_up_to_eos():
    assert up_to_eos([4, EOS, 5, EOS], EOS) == [4, EOS]
    assert up_to_eos([4, 5], EOS) == [4, 5]


def test_prefixes_that_do_not_fit_are_refused():
    model = tiny_model("gpt2").eval()
    with pytest.raises(ValueError, match="exceed the model's 64 positions"):
        generate(model, [[1] * 60], eos_token_id=EOS, max_new_tokens=8)
    with pytest.raises(ValueError, match="empty prefix"):
        generate(model, [[]], eos_token_id=EOS, max_new_tokens=8)


def test_beams_count_in_the_batch_that_is_decoded_together(monkeypatch):
    model = tiny_model("llama").eval()
    rows, own = [], model.generate

    def recorded(ids, **options):
        rows.append(len(ids))
        return own(ids, **options)

    monkeypatch.setattr(model, "generate", recorded)
    generate(model, PREFIXES, eos_token_id=EOS, max_new_tokens=2, batch=4, num_beams=2)
    assert rows[-2:] == [2, 2]
    # Beams and continuations are the same rows.
    generate(
        model, PREFIXES, eos_token_id=EOS, max_new_tokens=2, batch=4, num_beams=2, per_prefix=2
    )
    assert rows[-2:] == [2, 2]


@pytest.mark.parametrize(
    "setting", [{"use_cache": False}, {"cache_implementation": "static"}], ids=str
)
def test_a_models_own_settings_of_its_cache_change_no_text(setting):
    plain, own = tiny_model("llama").eval(), tiny_model("llama").eval()
    own.load_state_dict(plain.state_dict())
    for name, value in setting.items():
        setattr(own.generation_config, name, value)
    asked = {"eos_token_id": EOS, "max_new_tokens": 6, "num_beams": 2}
    assert generate(own, PREFIXES, **asked) == generate(plain, PREFIXES, **asked)
