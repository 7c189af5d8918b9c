"""Which trainings are divided, and what their processes hold."""

import pytest

from cpo_suite.profile import ProfileError, load_profile
from cpo_suite.training_memory import is_divided, training_fields, training_memory_gb

BF16 = "optimiser.precision=bf16"


def divided(*settings: str) -> dict[str, bool]:
    profile = load_profile("paper", [BF16, *settings])
    return {name: is_divided(profile, name) for name in profile.models}


def test_auto_divides_what_does_not_fit_whole():
    # GPT2-XL takes 40.1 GB whole, OpenLlama-3B 74.7.
    assert divided() == {"gpt2": False, "llama": False}  # on 85 GB
    assert divided("gpu_memory_gb=74") == {"gpt2": False, "llama": True}
    assert divided("gpu_memory_gb=40") == {"gpt2": True, "llama": True}
    assert divided("gpu_memory_gb=40", "processes.count=1") == {"gpt2": False, "llama": False}
    assert divided("gpu_memory_gb=40", "processes.divide=never") == {"gpt2": False, "llama": False}
    assert divided("processes.divide=always") == {"gpt2": True, "llama": True}


def test_one_process_cannot_divide():
    with pytest.raises(ProfileError, match="divide=always needs several processes: raise count"):
        load_profile("paper", ["processes.count=1", "processes.divide=always"])


def test_a_process_holds_its_share_and_what_is_gathered():
    # A model of 1e9 weights, of which 10 layers of 12 x 1,000^2 are 0.12e9; 100 tokens.
    settings = [
        *("models.llama.parameters=1e9", "models.llama.width=1000", "models.llama.layers=10"),
        *("optimiser.micro_batch_tokens=100", "optimiser.precision=fp32"),
        *("processes.count=4", "processes.divide=always"),
    ]
    profile = load_profile("paper", settings)
    activations = 118 * 1000 * 10 * 100 / 1e9  # 0.118 GB
    whole = training_memory_gb(profile, "llama", divided=False)
    assert whole == pytest.approx(16 + activations + 1)
    # A quarter of 16 GB; 0.88e9 weights outside the layers and two layers of 0.012e9, at 8 bytes.
    assert training_memory_gb(profile, "llama") == pytest.approx(4 + 7.232 + activations + 1)
    bf16 = load_profile("paper", [*settings, BF16])
    kept = 70 * 1000 * 10 * 100 / 1e9
    assert training_memory_gb(bf16, "llama") == pytest.approx(4 + 7.232 + 2 + kept + 1)


def test_a_model_of_unknown_shape_is_gathered_whole():
    profile = load_profile("paper", [BF16, "models.llama.width=null", "processes.divide=always"])
    gathered = 8 * 3.43 + 2 * 3.43 + 16 * 3.43 / 8
    assert training_memory_gb(profile, "llama") == pytest.approx(gathered + 1, abs=0.01)


def test_trainings_are_told_whether_they_are_divided():
    profile = load_profile("paper", [BF16, "gpu_memory_gb=43"])
    assert training_fields(profile, "llama")["divided"] is True
    assert training_fields(profile, "gpt2")["divided"] is False
