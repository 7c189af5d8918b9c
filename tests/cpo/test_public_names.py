"""The five names of `cpo`: what they need, and that they suffice to train."""

from __future__ import annotations

import json
import math
import os
import runpy
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from models import EOS, VOCABULARY, tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import cpo

ROOT = Path(__file__).parents[2]

# What transformers and accelerate need of the packages that are not named here, they may import.
IMPORTS = """
    import builtins
    import sys

    ALLOWED = {"cpo", "torch", "transformers", "accelerate", "numpy", "tqdm", "filelock"}
    imported = builtins.__import__

    def import_allowed(name, globals=None, *rest, **options):
        importer = (globals or {}).get("__name__", "")
        if importer.partition(".")[0] == "cpo":
            package = name.partition(".")[0]
            assert package in ALLOWED | sys.stdlib_module_names, f"{importer} imports {name}"
        return imported(name, globals, *rest, **options)

    builtins.__import__ = import_allowed
    for name in ("datasets", "matplotlib", "openai", "pandas", "pydantic", "pyarrow", "scipy",
                 "sentence_transformers"):
        sys.modules[name] = None

    import cpo
    assert "torch" not in sys.modules
    from cpo import cpo_loss, interpolate, ranked_cpo_loss
    from cpo.neighbours import simpo_loss
    assert not {"transformers", "accelerate"} & set(sys.modules)
    from cpo import GroupScorer, draw_negatives
"""


def test_the_public_names_need_torch_transformers_and_accelerate_and_the_losses_torch_alone():
    command = [sys.executable, "-c", textwrap.dedent(IMPORTS)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, env=environment)


def test_there_are_five_of_them():
    assert set(cpo.__all__) == {
        "cpo_loss", "ranked_cpo_loss", "GroupScorer", "draw_negatives", "interpolate"
    }  # fmt: skip
    assert all(callable(getattr(cpo, name)) for name in cpo.__all__)
    with pytest.raises(ImportError, match="dpo_loss"):
        from cpo import dpo_loss  # noqa: F401


def test_a_short_script_trains_on_a_jsonl_file(tmp_path, capsys, monkeypatch):
    words = {"<eos>": EOS, **{f"w{number}": number for number in range(1, VOCABULARY)}}
    plain = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<eos>")
    start, end = tmp_path / "start", tmp_path / "end"
    tokenizer.save_pretrained(start)
    tiny_model("llama").save_pretrained(start)
    generator = torch.Generator().manual_seed(0)

    def text() -> str:
        ids = torch.randint(1, VOCABULARY, (9,), generator=generator).tolist()
        return " ".join(f"w{number}" for number in ids)

    lines = [json.dumps({"prompt": text(), "response": text()}) + "\n" for _ in range(35)]
    (tmp_path / "pairs.jsonl").write_text("".join(lines))
    script = ROOT / "docs" / "train_on_jsonl.py"
    assert len(script.read_text().splitlines()) <= 40
    arguments = [script, tmp_path / "pairs.jsonl", start, end]
    monkeypatch.setattr(sys, "argv", [str(argument) for argument in arguments])
    runpy.run_path(str(script))
    losses = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 2  # of 35 rows two batches of 16
    assert losses[0] == pytest.approx(math.log(8), abs=1e-3)  # 1 + 2 BN + 3 MN + 2 TN
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (start, end))
    assert not torch.equal(before.lm_head.weight, after.lm_head.weight)
