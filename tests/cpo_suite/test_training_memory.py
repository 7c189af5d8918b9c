"""Which trainings are divided, and what their processes hold."""

import pytest
from transformers import GPT2Config, LlamaConfig

from benchmarks.activations import bytes_a_unit
from cpo_suite.profile import ProfileError, load_profile
from cpo_suite.training_memory import (
    BYTES_A_UNIT,
    gradients_memory_gb,
    is_divided,
    micro_batch_that_fits,
    slowdown,
    training_fields,
    training_memory_gb,
)

BF16 = "optimiser.precision=bf16"


def divided(*settings: str) -> dict[str, bool]:
    profile = load_profile("paper", [BF16, *settings])
    return {name: is_divided(profile, name) for name in profile.models}


def test_auto_divides_what_does_not_fit_whole():
    # GPT2-XL takes 36.7 GB whole, OpenLlama-3B 73.2: of .92 of a GPU's memory.
    assert divided() == {"gpt2": False, "llama": False}  # on 85 GB, of which 78.2
    assert divided("gpu_memory_gb=80") == {"gpt2": False, "llama": False}  # of which 73.6
    assert divided("gpu_memory_gb=79") == {"gpt2": False, "llama": True}  # of which 72.7
    assert divided("gpu_memory_gb=40") == {"gpt2": False, "llama": True}  # of which 36.8
    assert divided("gpu_memory_gb=39") == {"gpt2": True, "llama": True}  # of which 35.9
    assert divided("gpu_memory_gb=39", "processes.count=1") == {"gpt2": False, "llama": False}
    assert divided("gpu_memory_gb=39", "processes.divide=never") == {"gpt2": False, "llama": False}
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
    # 10 layers and one more keep 89.7 bytes a unit, each of 1,000 units of 100 tokens.
    activations = 89.7 * 11 * 1000 * 100 / 1e9  # 0.099 GB
    whole = training_memory_gb(profile, "llama", divided=False)
    # After the continuations' backward pass, their gradients wait for those of the prefixes: 4
    # bytes for each of 1e9 weights. Three eighths of the activations are left.
    assert whole == pytest.approx(16 + 4 + 3 / 8 * activations + 1)
    # A quarter of 16 GB; 0.88e9 weights outside the layers and two layers of 0.012e9, at 8 bytes.
    # A group has up to 768 + 12 x 256 tokens, more than 100, so that layers are recomputed: 10
    # inputs at 4 bytes a unit, one layer and its gradients.
    recomputed = (10 * 4 + 2 * 75.1) * 1000 * 3840 / 1e9  # 0.73 GB
    assert training_memory_gb(profile, "llama") == pytest.approx(4 + 7.232 + recomputed + 1)
    # With 100,000 tokens in a micro-batch no group is larger, and every layer keeps 47.5 in bf16.
    large = [*settings, BF16, "optimiser.micro_batch_tokens=100000"]
    kept = 47.5 * 11 * 1000 * 100_000 / 1e9
    held = training_memory_gb(load_profile("paper", large), "llama")
    assert held == pytest.approx(4 + 7.232 + 2 + kept + 1)


def test_gradients_alone_are_taken_whole():
    # 3.43e9 weights and their waiting gradients at 4 bytes each, 27.44 GB. Two thirds of 2,048
    # tokens keep 89.7 bytes for each of 3,200 units in 26 layers and one more: 10.58 GB.
    assert gradients_memory_gb(load_profile("paper", [BF16]), "llama") == pytest.approx(
        27.44 + 10.58 + 1, abs=0.01
    )


def test_on_a_cpu_a_process_keeps_what_it_has_freed():
    gpu, cpu = (load_profile("paper", [BF16, f"gpus={gpus}"]) for gpus in (8, 0))
    # 47.4 bytes for each of 1,600 units of 2,048 tokens in 48 layers and one more: 7.6 GB.
    more = training_memory_gb(cpu, "gpt2") - training_memory_gb(gpu, "gpt2")
    assert more == pytest.approx(0.4 * 47.4 * 49 * 1600 * 2048 / 1e9)


@pytest.mark.parametrize("divided", [False, True])
@pytest.mark.parametrize(("name", "precision"), list(BYTES_A_UNIT))
def test_activations_are_those_that_a_backward_pass_keeps(name, precision, divided):
    config = {
        "gpt2": GPT2Config(n_embd=512, n_head=8),
        "llama": LlamaConfig(hidden_size=256, num_attention_heads=4, intermediate_size=691),
    }[name]
    kept = bytes_a_unit(config, precision, divided)
    assert kept == pytest.approx(BYTES_A_UNIT[name, precision][divided], rel=0.1)


def test_the_micro_batch_that_fits_is_the_largest_power_of_two():
    def fits(*settings: str) -> int:
        return micro_batch_that_fits(load_profile("paper", [BF16, *settings]), "gpt2")

    never = "processes.divide=never"
    # 18 x 1.56 GB and 1 are 29.08 GB. A token keeps 47.4 x 49 x 1,600 bytes, 3.72 MB: 2,048 of them
    # are 7.6 GB, 1,024 are 3.8 and 64 are 0.24.
    # Up to 1,024, waiting gradients are more: 2 x 1.56 GB, with three eighths of the activations
    # 4.55 at 1,024 and 3.21 at 64.
    # Of a GPU's memory .92 are usable: 36.7 GB need one of 39.88, 33.6 one of 36.55, 32.3 of 35.1.
    assert fits(never, "gpu_memory_gb=39.9") == 2048
    assert fits(never, "gpu_memory_gb=39.8") == 1024
    assert fits(never, "gpu_memory_gb=36.6") == 1024
    assert fits(never, "gpu_memory_gb=36.5") == 512
    assert fits(never, "gpu_memory_gb=35.15") == 64
    assert fits(never, "gpu_memory_gb=35.05") == 0
    # Divided, the longest group of 3,840 tokens takes (4 x 48 + 2 x 36.3) x 1,600 bytes for each
    # whatever the micro-batch, 1.6 GB, and the model 3.12 + 3.12 + 1.17 + 1.
    assert fits("processes.divide=always", "gpu_memory_gb=11.0") > 0
    assert fits("processes.divide=always", "gpu_memory_gb=10.8") == 0


def test_recomputed_layers_take_a_third_longer():
    divided = load_profile("paper", [BF16, "gpu_memory_gb=43"])
    # Within the limits, 768 + 12 x 256 = 3,840 tokens are more than a micro-batch's 2,048, and
    # 768 + 256 = 1,024 are fewer.
    assert slowdown(divided, "llama", "instructions", 12) == pytest.approx(4 / 3)
    assert slowdown(divided, "llama", "instructions", 1) == 1
    assert slowdown(load_profile("paper", [BF16]), "llama", "instructions", 12) == 1  # whole


def test_a_model_of_unknown_shape_is_gathered_whole():
    profile = load_profile("paper", [BF16, "models.llama.width=null", "processes.divide=always"])
    gathered = 8 * 3.43 + 2 * 3.43 + 16 * 3.43 / 8
    assert training_memory_gb(profile, "llama") == pytest.approx(gathered + 1, abs=0.01)


def test_trainings_are_told_whether_they_are_divided():
    profile = load_profile("paper", [BF16, "gpu_memory_gb=45"])
    assert training_fields(profile, "llama")["divided"] is True
    assert training_fields(profile, "gpt2")["divided"] is False
