"""Profiles: valid as they come, and every mistake in one named with what was meant."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cpo_suite import profile as profiles
from cpo_suite.profile import (
    ROOT,
    ProfileError,
    load_profile,
    parse_value,
    profile_names,
    with_absolute_paths,
)


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_is_valid_and_named_as_its_file(name):
    profile = load_profile(name, substitute=False)
    assert profile.name == name
    assert profile.trained_rows


def test_the_names_that_are_promised_exist():
    assert set(profile_names()) >= {"smoke", "tiny", "small", "paper"}


def test_the_paper_profile_has_the_papers_settings():
    # Section 4: GPT2-XL and OpenLlama-3B, AdamW at 1e-5 with weight decay 0.05, batch 64, a
    # reference of 2,000 steps, CPO for 1,000 steps with beta = 5 and 11 negatives; the
    # ablation has 1,000, 200 and 4.
    paper = load_profile("paper")
    assert paper.models["gpt2"].pretrained == "openai-community/gpt2-xl"
    assert paper.models["llama"].pretrained == "openlm-research/open_llama_3b"
    assert (paper.reference.steps, paper.reference.batch) == (2000, 64)
    assert paper.ablation_reference.steps == 1000
    assert paper.continuation.steps == {
        "long": 1000, "short": 200, "ablation": 200, "articles": 1000,
    }  # fmt: skip
    assert (paper.continuation.beta, paper.continuation.batch) == (5.0, 64)
    assert paper.optimiser.weight_decay == 0.05
    rates = [paper.reference.learning_rate, *paper.continuation.learning_rate.values()]
    assert rates == [1e-5] * 3
    counts = {name: sum(mixture.values()) for name, mixture in paper.negatives.items()}
    assert {count for name, count in counts.items() if name.endswith("-ablation")} == {4}
    assert (counts["AN"], counts["MixN"], counts["BN-articles"], counts["UN"]) == (11, 11, 4, 1)
    assert paper.negatives["MixN"] == {"BN": 3, "MN": 5, "TN": 3}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        ("5.e-1", 0.5),
        (".5", 0.5),
        ("-2e-3", -2e-3),
        ("3", 3),
        ("1.0", 1.0),
        ("true", True),
        ("[a, b]", ["a", "b"]),
        ("e5", "e5"),
        ("null", None),
    ],
)
def test_values_are_read_as_a_person_means_them(text, value):
    read = parse_value(text)
    assert read == value
    assert type(read) is type(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_that_python_writes_is_read_back(number):
    read = parse_value(repr(number))
    assert type(read) is float
    assert read == number


@given(st.integers())
def test_every_integer_stays_one(number):
    assert type(parse_value(str(number))) is int


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def tiny() -> dict[str, Any]:
    raw = yaml.load((ROOT / "profiles" / "tiny.yaml").read_text(), Loader=profiles._Loader)
    return copy.deepcopy(raw)


def every_group(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(value, dict):
        return []
    deeper = [every_group(item, (*path, key)) for key, item in value.items()]
    return [path, *(group for groups in deeper for group in groups)]


# Groups whose keys a user chooses: any name is valid there.
CONFIGURATIONS = {("models", name, "config") for name in ("gpt2", "llama", "llama_small")}
FREE = {("decoding",), ("negatives",), ("claims",), *CONFIGURATIONS}


@pytest.mark.parametrize(
    "group", [group for group in every_group(tiny()) if group not in FREE], ids=".".join
)
def test_an_unknown_key_anywhere_is_named_with_the_nearest(group, tmp_path):
    raw = tiny()
    place: Any = raw
    for key in group:
        place = place[key]
    known = next(iter(place)) if place else "num_beams"
    misspelt = known[:-1] + "xx" if len(known) > 2 else known + "N"
    place[misspelt] = place.get(known, 1)
    with pytest.raises(ProfileError) as refused:
        load_profile(write(tmp_path / "mine.yaml", raw))
    message = str(refused.value)
    assert misspelt in message
    assert f"Did you mean '{known}'?" in message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seeds=many", "seeds: Input should be a valid integer"),
        ("seeds=1.5", "seeds: Input should be a valid integer"),
        ("seeds=0", "seeds: Input should be greater than or equal to 1"),
        ("committed=1", "committed: Input should be a valid boolean"),
        ("name=5", "name: Input should be a valid string"),
        ("continuation.beta=-1", "continuation.beta: Input should be greater than 0"),
        ("continuation.steps.long=0", "continuation.steps.long: Input should be greater"),
        ("continuation.learning_rate={mle: 1e-4}", "continuation.learning_rate: `cpo` is missing"),
        (
            "optimiser.precision=fp16",
            "optimiser.precision: Input should be 'auto', 'fp32' or 'bf16'",
        ),
        ("negatives.MixN={ANN: 3}", "unknown kind 'ANN'. Did you mean 'AN'?"),
        ("negatives.MixN={BN: 0}", "negatives.MixN.BN: Input should be greater"),
        ("negatives.MixN={BN: 16}", "16 BN cannot be drawn from the 15 other rows"),
        ("rows=[t2/ANRR]", "unknown row 't2/ANRR'. Did you mean 't2/ANR'?"),
        ("models.lama={}", "unknown key 'models.lama'. Did you mean 'llama'?"),
        ("models.llama.config={hidden_size: 8}", "`config` needs a `model_type`"),
        ("models.llama.pretrained=folder", "give either `pretrained` or `config`"),
        ("decoding={}", "decoding: `greedy` is missing"),
        ("optimizer.precision=bf16", "unknown key 'optimizer'. Did you mean 'optimiser'?"),
        ("minutes.x=1", "'minutes' is one value, not a group of keys"),
        ("seeds", "an override is dotted.key=value, not 'seeds'"),
        ("=3", "an override is dotted.key=value, not '=3'"),
        ("seeds=[", "'[' is no YAML value"),
        ("name=2026-01-01", None),
    ],
)
def test_what_does_not_fit_is_refused_with_its_key(override, message):
    if message is None:  # YAML reads a date; a text is what the key takes
        assert load_profile("tiny", [override]).name == "2026-01-01"
        return
    with pytest.raises(ProfileError) as refused:
        load_profile("tiny", [override])
    assert message in str(refused.value)


def test_overrides_reach_every_kind_of_value():
    profile = load_profile(
        "tiny",
        [
            "seeds=3",
            "continuation.beta=1",
            "continuation.learning_rate.cpo=1e-5",
            "negatives.MixN={BN: 1, MN: 2, TN: 1}",
            "models.llama.config.hidden_size=64",
            "decoding.beam.num_beams=4",
            "rows=[t2/MLE2]",
        ],
    )
    assert profile.seeds == 3
    assert profile.continuation.beta == 1.0
    rates = load_profile("tiny").continuation.learning_rate
    assert profile.continuation.learning_rate == rates | {"cpo": 1e-5}
    assert profile.negatives["MixN"] == {"BN": 1, "MN": 2, "TN": 1}
    assert profile.models["llama"].config["hidden_size"] == 64
    assert profile.decoding["beam"].num_beams == 4
    assert profile.rows == ("t2/MLE2",)


def test_an_override_changes_one_place_even_where_the_file_repeats_by_alias():
    profile = load_profile("tiny", ["models.gpt2.pretraining.steps=7"])
    assert profile.models["gpt2"].pretraining.steps == 7
    assert profile.models["llama"].pretraining.steps != 7


def test_a_profile_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        load_profile("tiny").seeds = 2


def test_an_unknown_profile_is_refused_with_the_nearest():
    with pytest.raises(ProfileError, match="unknown profile 'tinny'. Did you mean 'tiny'"):
        load_profile("tinny")
    with pytest.raises(ProfileError, match="no profile file"):
        load_profile("nowhere.yaml")


@pytest.mark.parametrize("content", ["a: [", "- 1\n- 2", "just words", ""])
def test_a_file_that_is_no_profile_is_refused(content, tmp_path):
    path = write(tmp_path / "mine.yaml", content)
    with pytest.raises(ProfileError, match="mine.yaml"):
        load_profile(path)


def test_a_missing_key_is_named(tmp_path):
    raw = tiny()
    del raw["continuation"]["beta"]
    with pytest.raises(ProfileError, match="key 'continuation.beta' is missing"):
        load_profile(write(tmp_path / "mine.yaml", raw))


def test_every_mistake_is_said_at_once():
    with pytest.raises(ProfileError) as refused:
        load_profile("tiny", ["sedes=1", "continuation.beta=no"])
    assert "sedes" in str(refused.value)
    assert "continuation.beta" in str(refused.value)


def test_environment_variables_are_filled_in_or_named(monkeypatch, tmp_path):
    monkeypatch.setenv("CPO_DATA", "/somewhere")
    profile = load_profile("small")
    assert profile.instructions.path == "/somewhere"
    monkeypatch.delenv("CPO_DATA")
    monkeypatch.delenv("CPO_OTHER", raising=False)
    other = "articles.path=${CPO_OTHER}/x.jsonl"
    assert profiles.missing_environment("small", [other]) == ["CPO_DATA", "CPO_OTHER"]
    with pytest.raises(ProfileError, match="variables CPO_DATA, CPO_OTHER"):
        load_profile("small", [other])
    assert load_profile("small", substitute=False).instructions.path == "${CPO_DATA}"
    given = ["instructions.path=/a", "articles.path=/b"]  # then no variable is needed
    assert load_profile("small", given).articles.path == "/b"


# --- Paths ----------------------------------------------------------------------------------------


def with_paths(folder: Path, pair_file: str, model: str) -> Path:
    """A profile of one's own in `folder`, with such paths for its pairs, model and judge."""
    raw = tiny()
    raw["instructions"] |= {"source": "jsonl", "path": pair_file}
    del raw["models"]["gpt2"]["config"], raw["models"]["gpt2"]["pretraining"]
    raw["models"]["gpt2"]["pretrained"] = model
    raw["judge"] = {"kind": "local", "model": model}
    folder.mkdir(exist_ok=True)
    return write(folder / "mine.yaml", raw)


@pytest.mark.parametrize(
    ("written", "relative"),
    [
        ("there", "own/there"),  # a folder beside the profile
        ("./absent", "own/absent"),
        ("../absent", "absent"),
        ("~/absent", "home/absent"),
        ("absent.gguf", "own/absent.gguf"),
        ("/absent/model", "/absent/model"),
        ("org/absent", None),  # a name of the hub
        ("gpt2", None),  # a folder of the current folder alone
    ],
)
def test_a_path_is_that_beside_the_profile_from_every_folder(
    written, relative, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = with_paths(tmp_path / "own", written, written)
    (tmp_path / "own" / "there").mkdir()
    (tmp_path / "elsewhere" / "gpt2").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "own")
    read = []
    for folder in ("own", "elsewhere"):
        monkeypatch.chdir(tmp_path / folder)
        for name in (path, os.path.relpath(path), tmp_path / "link" / "mine.yaml"):
            read += [load_profile(name), load_profile(name, substitute=False)]
    assert all(one == read[0] for one in read)
    profile = read[0]
    expected = written if relative is None else str(tmp_path / relative)
    assert profile.models["gpt2"].pretrained == profile.judge.model == expected
    data = tmp_path / "own" / written if relative is None else tmp_path / relative
    assert profile.instructions.path == str(data)
    paths = {"instructions.path": str(data)}
    if relative is not None:
        paths |= {"models.gpt2.pretrained": expected, "judge.model": expected}
    assert profile.paths == paths


def test_a_path_of_an_override_is_from_where_it_was_typed(tmp_path, monkeypatch):
    path = with_paths(tmp_path / "own", "mine.jsonl", "org/model")
    overrides = [
        "articles={source: jsonl, path: 'articles: new.jsonl'}",
        "models.gpt2.pretrained=model",
        "seeds=2",
    ]
    (tmp_path / "typed" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "typed")
    there = load_profile(path, overrides)
    assert there.articles.path == str(tmp_path / "typed" / "articles: new.jsonl")
    assert there.models["gpt2"].pretrained == str(tmp_path / "typed" / "model")
    assert there.instructions.path == str(tmp_path / "own" / "mine.jsonl")
    handed_on = [with_absolute_paths(one) for one in overrides]
    assert handed_on[2] == "seeds=2"
    monkeypatch.chdir(tmp_path)
    assert load_profile(path, handed_on) == there


def test_a_path_of_a_variable_is_whole_wherever_the_variable_stands(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CPO_DATA", "~/data")
    monkeypatch.setenv("CPO_SIZE", "small")
    path = with_paths(tmp_path / "own", "${CPO_DATA}/a.jsonl", "model-${CPO_SIZE}")
    (tmp_path / "own" / "model-small").mkdir()
    for folder in (tmp_path, tmp_path / "own"):
        monkeypatch.chdir(folder)
        profile = load_profile(path)
        assert profile.instructions.path == str(tmp_path / "data" / "a.jsonl")
        assert profile.models["gpt2"].pretrained == str(tmp_path / "own" / "model-small")
    assert load_profile(path, substitute=False).instructions.path == "${CPO_DATA}/a.jsonl"
    # What an override replaces needs no variable.
    monkeypatch.delenv("CPO_DATA")
    assert load_profile(path, ["instructions.path=/b"]).instructions.path == "/b"


def test_columns_have_our_names(tmp_path):
    columns = "instructions.columns={context: input, response: output}"
    assert load_profile("tiny", [columns]).instructions.columns["context"] == "input"
    assert load_profile("tiny", ["articles.columns={text: body}"]).articles.columns
    with pytest.raises(ProfileError, match="columns.respons'. Did you mean 'response'"):
        load_profile("tiny", ["instructions.columns={respons: output}"])


def test_a_judging_model_is_called_by_its_name_alone(tmp_path):
    path = with_paths(tmp_path, "mine.jsonl", "./judges/big")
    assert load_profile(path).judge.label == "the local model big"
    path = with_paths(tmp_path, "mine.jsonl", "org/big")
    assert load_profile(path).judge.label == "the local model org/big"
