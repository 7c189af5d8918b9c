"""The road from recipes to numbers, on models of a few thousand weights."""

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from chat_server import Answer, ScriptedServer, question_of
from safetensors.torch import load_file

from cpo.data import DataError
from cpo.evaluation.reply_store import STORE, ReplyStore
from cpo.evaluation.statistics import Estimate
from cpo.scoring import Group, score_groups
from cpo_suite.paper import MODE_COMPARISONS, ROWS, rows_of
from cpo_suite.report import claims, tables
from cpo_suite.report.paired_measures import degeneration_frame
from cpo_suite.store import Store
from cpo_suite.suite import Suite

SMALL = [
    "models.llama.pretraining.steps=3",
    "models.gpt2.pretraining.steps=3",
    "models.llama_small.pretraining.steps=3",
    "reference={steps: 3, batch: 8, learning_rate: 1e-3}",
    "ablation_reference={steps: 2, batch: 8, learning_rate: 1e-3}",
    "articles_reference={steps: 2, batch: 8, learning_rate: 1e-3}",
    "continuation.batch=8",
    "continuation.steps={long: 3, short: 2, ablation: 2, articles: 2}",
    "instructions.test_prompts=12",
    "instructions.validation_rows=16",
    "optimiser.precision=fp32",
]


def opened(root: Path, overrides: list[str]) -> Suite:
    """A suite of the profile `smoke`, with a store of its own under `root`."""
    suite = Suite.open("smoke", overrides, root / "figures")
    suite.store = Store(root / "artifacts")
    return suite


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Suite:
    return opened(tmp_path_factory.mktemp("suite"), SMALL)


def weights(suite: Suite, row: str) -> dict[str, torch.Tensor]:
    return load_file(suite.model(row).path / "model.safetensors")


def test_a_row_is_made_once_and_found_again(suite):
    first = suite.model("t2/MixNR/0")
    made = (first.path / "manifest.json").stat().st_mtime_ns
    assert suite.model("t2/MixNR/0") == first
    assert (first.path / "manifest.json").stat().st_mtime_ns == made
    # The rows of tables that share a training share its artifact; another objective does not.
    assert suite.model("t2/MixN").path != first.path
    assert (
        suite.negatives_artifact(ROWS["t2/MixN"]).key
        == suite.negatives_artifact(ROWS["t2/MixNR/0"]).key
    )


def test_the_ensemble_lies_between_its_ends(suite):
    cpo, mle, mixed = (weights(suite, row) for row in ("t2/MixNR/0", "t2/MLE2", "t2/MixNR/0.3"))
    for name, value in mixed.items():
        torch.testing.assert_close(value, 0.3 * mle[name] + 0.7 * cpo[name])
    assert suite.history("t2/MixNR/0.3") == suite.history("t2/MixNR/0")


@pytest.mark.parametrize(("row", "loss"), [("t2/MixNR/0", math.lgamma), ("t2/MixN", math.log)])
def test_training_starts_where_the_policy_is_its_reference(suite, row, loss):
    negatives = suite.negatives(row)
    first = suite.history(row)[0]
    used = negatives.mask[: suite.profile.continuation.batch].sum(-1)
    # ln K of the usable candidates, or ln K! = lgamma(K + 1).
    expected = np.mean([loss(k + 1 if loss is math.lgamma else k) for k in used])
    assert first["loss"] == pytest.approx(expected, abs=1e-4)
    assert first["margin"] == pytest.approx(0, abs=1e-3)


def test_reference_values_are_the_reference_s(suite):
    negatives = suite.negatives("t2/MixNR/0")
    model = suite.reference("llama").load()
    rows = range(4)
    groups = [Group(negatives.prefixes[row], negatives.candidates(row)) for row in rows]
    scores = score_groups(model, groups, "fp32", 2, "again").numpy()
    np.testing.assert_allclose(scores, negatives.reference_logps[:4], atol=1e-3)
    assert (negatives.order[:, 0] == 0).all()
    assert np.array_equal(np.sort(negatives.order, -1)[0], np.arange(len(negatives.kinds)))


def test_mle_and_cpo_rows_see_the_same_planned_prompts(suite):
    rows = suite.tokenized("llama", "train")
    known = {one.prefix_ids for one in rows}
    negatives = suite.negatives("t2/MixNR/0")
    assert len(negatives) == 3 * 8 and all(tuple(p) in known for p in negatives.prefixes)
    mle, cpo = suite.model("t2/MLE2").artifact, suite.model("t2/MixNR/0").artifact
    for field in ("start", "examples", "steps", "batch", "seed"):
        assert getattr(mle, field) == getattr(cpo, field)


def test_generations_verdicts_and_measures_align_with_the_judged_prompts(suite):
    texts = suite.generations("t2/MixNR/0")
    verdicts = suite.verdicts("t2/MixNR/0")
    measures = suite.measures("t2/MixNR/0")
    assert len(texts) == len(verdicts) == len(suite.test_examples) == 12
    assert verdicts.ids == tuple(example.id for example in suite.test_examples)
    expected = {"held_out_loss", "tokens", "seq_rep_4", "rouge_l", "word_f1", "oracle_grade"}
    assert set(measures) - {"mauve"} == expected | {"distinct_2", "distinct_pieces"}
    assert all(isinstance(one, Estimate) and one.n == 12 for one in measures.values())
    assert len(suite.generations("reference/llama")) == 12


def test_measures_of_all_prompts_are_means_of_those_of_each(suite):
    measures, each = suite.measures("t2/MixNR/0"), suite.responses("t2/MixNR/0")
    assert set(each) == (set(measures) - {"distinct_2", "distinct_pieces"}) | {"recorded_tokens"}
    weights = each.pop("recorded_tokens")
    assert weights.tolist() == [
        len(row.continuation_ids) for row in suite.generations_artifact("t2/MixNR/0").rows()
    ]
    loss = each.pop("held_out_loss")
    assert measures["held_out_loss"].value == pytest.approx((loss * weights).sum() / weights.sum())
    for name, values in each.items():
        assert measures[name].value == pytest.approx(values.mean()), name


def test_sampled_responses_have_seeds_of_their_own(suite):
    greedy, first, second = (
        suite.generations("t2/MLE2", method) for method in (None, "sampling/0", "sampling/1")
    )
    assert len(first) == len(greedy) and first != greedy and first != second
    assert suite.responses("t2/MLE2", 0, "sampling/1")["rouge_l"].shape == (12,)
    sampled = Suite.open("smoke", [*SMALL, "sampling_seeds=2"], suite.output)
    sampled.store = suite.store
    planned = {one.name: one for one in sampled.plan()}
    assert planned["generations of t2/MLE2, sampled with seed 1"].cached
    assert "generations of t2/MLE2, sampled with seed 1" not in {one.name for one in suite.plan()}
    lines = tables.measures_frame(sampled, ["t2/MLE2"], sampled.profile.samplings)
    by_seed = [
        sampled.measures("t2/MLE2", 0, one)["rouge_l"] for one in ("sampling/0", "sampling/1")
    ]
    found = lines.set_index("measure").loc["sampled_rouge_l", "value"]
    assert found == pytest.approx((by_seed[0].value + by_seed[1].value) / 2)
    assert "sampled_held_out_loss" not in set(lines["measure"])  # nothing of it is sampled


def test_degeneration_at_the_mode_from_rows_to_the_comparisons_named_beforehand(suite):
    negatives = suite.negatives("x/mode/ANR-beam/beam")
    assert negatives.kinds == ["truth", "AN-beam", "AN-beam"]
    assert suite.negatives("x/mode/ANR-greedy/greedy").kinds == ["truth", "AN-greedy"]
    # Continued MLE is that of tables 3 and 4, decoded by two methods.
    assert suite.model("x/mode/MLE/beam").path == suite.model("t3/MLE").path
    assert suite.model("x/mode/BNR/greedy").path == suite.model("t3/BNR/0").path
    without_mauve = Suite.open("smoke", [*SMALL, "mauve.features=none"], suite.output)
    without_mauve.store = suite.store
    frame = degeneration_frame(without_mauve)
    assert set(frame["measure"]) == {"seq_rep_4", "distinct_pieces", "tokens"}
    assert set(frame["row"]) == {"recorded", *(row.id for row in rows_of("x/mode"))}
    assert set(frame["decoding"]) == {"", "greedy", "beam"}
    paired = frame[frame["against_mle"].notna()]
    assert set(paired["row"]) == {row.id for row in rows_of("x/mode") if row.objective != "mle"}
    outcomes = claims.judge_comparisons(without_mauve, MODE_COMPARISONS)
    for text, outcome in outcomes.items():
        mle, own = text.split(" > ")
        repeated = [without_mauve.responses(row)["seq_rep_4"].mean() for row in (mle, own)]
        assert outcome.effect == pytest.approx(repeated[0] - repeated[1])
        assert outcome.verdict in ("holds", "fails", "undecided")


def test_profiles_with_other_models_share_a_store_and_never_an_answer_to_other_prompts(suite):
    # GPT-2 of 258 entries reads bytes: of the prompts that fit the Llama it has room for a few.
    bytes_only = ["models.gpt2.pretraining.vocabulary=258", "instructions.max_prefix_tokens=125"]
    both = Suite.open("smoke", [*SMALL, *bytes_only], suite.output)
    both.store = suite.store
    rows = tuple(row for row in both.profile.rows if row.startswith("t2/"))
    models = {"llama": both.profile.models["llama"]}
    alone = both.profile.model_copy(update={"models": models, "rows": rows, "claims": {}})
    alone = Suite(alone, suite.store, suite.output)
    few, many = ([one.id for one in each.test_examples] for each in (both, alone))
    assert 0 < len(few) < len(many) == 12
    assert len(both.generations("reference/llama")) == len(few)
    assert len(alone.generations("reference/llama")) == len(many)
    assert both.verdicts("reference/llama").ids == tuple(few)
    assert alone.verdicts("reference/llama").ids == tuple(many)
    assert both.measures("reference/llama")["tokens"].n == len(few)
    # The same models in another order leave the same prompts.
    models = dict(reversed(both.profile.models.items()))
    swapped = Suite(both.profile.model_copy(update={"models": models}), suite.store, suite.output)
    keys = {each.verdicts_artifact("reference/llama").key for each in (both, swapped, alone)}
    assert len(keys) == 2


def test_answers_to_other_prompts_are_refused(suite):
    suite.generations("reference/llama")
    recipe = suite.generations_artifact("reference/llama", None, 0, "test")
    path = suite.store.path(recipe) / "generations.jsonl"
    kept = path.read_text()
    try:
        path.write_text("".join(kept.splitlines(keepends=True)[::-1]))
        with pytest.raises(
            DataError, match="other prompts than those reference/llama is judged on"
        ):
            suite.generations("reference/llama")
    finally:
        path.write_text(kept)


def test_rows_that_do_not_fit_are_counted_where_too_few_are_left(suite):
    short = Suite.open("smoke", [*SMALL, "instructions.max_prefix_tokens=8"], suite.output)
    short.store = suite.store
    with pytest.raises(DataError, match=r"there are 0.*\nllama: .* 0 kept.*\n.*prefix \("):
        short.reference("llama")
    with pytest.raises(DataError, match=r"no test prompt fits.*\n(?s:.*)llama: tokenised.* 0 kept"):
        short.prompts("llama")


def test_the_plan_names_everything_once_and_knows_what_is_made(suite):
    suite.model("t2/MLE2")
    planned = suite.plan()
    keys = [one.key for one in planned]
    assert len(set(keys)) == len(keys)
    by_name = {one.name: one for one in planned}
    assert by_name["model t2/MLE2"].cached
    later = by_name["model t1/ANR"]
    assert not later.cached and later.seconds > 0 and later.disk_gb > 0
    for row in suite.profile.trained_rows:
        assert suite.generations_artifact(row.id).key in keys, row.id


def test_what_is_not_there_is_refused_by_name(suite):
    with pytest.raises(KeyError, match=r"no row 't2/MixNR/0\.6'.*Did you mean 't2/MixNR"):
        suite.model("t2/MixNR/0.6")
    with pytest.raises(ValueError, match="without negatives"):
        suite.negatives("t2/MLE2")


def test_settings_that_matter_change_the_key_and_sizes_of_work_do_not(suite):
    row = ROWS["t2/MixNR/0"]
    key = suite.model_artifact(row).key

    def key_with(*overrides: str) -> str:
        other = Suite.open("smoke", [*SMALL, *overrides], suite.output)
        return other.model_artifact(row).key

    assert key_with("continuation.beta=0.7") != key
    assert key_with("continuation.steps.long=4") != key
    assert key_with("negatives.MixN={BN: 2, MN: 1, TN: 1}") != key
    assert key_with("optimiser.micro_batch_tokens=4000", "rows=[t2/MixNR/0]") == key
    assert key_with("instructions.test_prompts=13") == key  # the training rows are the same


def test_dpo_starts_at_ln_2_from_the_unhelpful_responses(suite):
    negatives = suite.negatives("t2/DPO")
    assert negatives.kinds == ["truth", "UN"] and negatives.mask.all()
    truth, rejected = negatives.texts(0)
    assert rejected and rejected != truth
    assert suite.history("t2/DPO")[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)


def test_a_row_without_an_unhelpful_response_is_masked(suite):
    refusal = Answer(status=400, error={"code": "content_filter"})

    def answer(request):
        question = question_of(request)
        refused = hashlib.sha256(question.encode()).digest()[0] % 4 == 0
        return refusal if refused else f"<think>Of no use: {question}</think>\n\nThings exist."

    with ScriptedServer(answer) as server:
        server_settings = f"{{model: m, base_url: '{server.url}', api_key_variable: ''}}"
        writer = f"unhelpful={{writer: chat, server: {server_settings}}}"
        with_chat = Suite.open("smoke", [*SMALL, writer], suite.output)
        with_chat.store = suite.store
        negatives = with_chat.negatives("t2/DPO")
        history = with_chat.history("t2/DPO")
    usable = negatives.mask[:, 1]
    assert 0 < usable.sum() < len(usable)
    texts = {negatives.texts(row)[1].strip() for row in range(len(negatives)) if usable[row]}
    assert texts == {"Things exist."}
    # A pair of which one half is missing teaches nothing: ln 2 for each of the others.
    first = negatives.mask[: with_chat.profile.continuation.batch, 1]
    assert history[0]["loss"] == pytest.approx(first.mean() * math.log(2), abs=1e-4)
    # The replies, reasoning included, were paid for: they stay beside what was made of them.
    with ReplyStore(suite.store.root / STORE) as kept:
        replies = [reply for _, reply in kept.rows("unhelpful response")]
    assert {reply.fault for reply in replies} == {"", "refused"}
    assert any("Of no use" in reply.raw for reply in replies)


def test_pss_is_a_training_of_its_own_from_the_same_reference(suite):
    mle, pss = (suite.model(row) for row in ("t2/MLE2", "t2/PSS"))
    assert pss.artifact.start == mle.artifact.start and pss.artifact.steps == mle.artifact.steps
    # The targets are the same, some inputs are the model's own: the loss is another one.
    assert suite.history("t2/PSS")[0]["loss"] != suite.history("t2/MLE2")[0]["loss"]


def test_the_combined_objective_adds_the_mle_loss(suite):
    combined, cpo, mle = (
        suite.history(row)[0]["loss"] for row in ("x/MixNR+MLE/0.5", "t2/MixNR/0", "t2/MLE2")
    )
    # The first step, from the same reference on the same planned batch: alpha L_MLE + L_CPO.
    assert combined == pytest.approx(0.5 * mle + cpo, abs=1e-4)


def test_articles_are_continued_from_15_percent(suite):
    rows = suite.tokenized("llama", "test", "articles")
    cap = suite.profile.articles.max_tokens
    for row in rows:
        total = len(row.prefix_ids) + len(row.continuation_ids) - row.has_eos
        assert total <= cap and len(row.prefix_ids) == round(0.15 * total)
    negatives = suite.negatives("t4/BNR/0")
    assert negatives.kinds == ["truth", "BN", "BN"]
    assert suite.model("t3/BNR/0.5").path == suite.model("t4/BNR/0.5").path
    prompts, texts = suite.prompts("llama", "articles"), suite.generations("t4/BNR/0.3")
    assert len(prompts) == len(texts) == len(suite.verdicts("t3/BNR/0.5"))
    assert prompts[0].prefix + prompts[0].continuation in prompts[0].source.text
    assert 0 <= suite.measures("t4/BNR/0.3")["mauve"].value <= 1


def test_decodings_share_the_model_and_nothing_else(suite):
    greedy = suite.generations("f1a/MLE/greedy")
    assert greedy == suite.generations("t2/MLE1")
    assert suite.model("f1a/MLE/top_k").path == suite.model("t2/MLE1").path
    assert suite.generations("f1a/MLE/top_k") != greedy
    assert len(suite.generations("f1a/MLE/beam")) == len(greedy)


def test_settings_are_chosen_on_other_prompts_than_they_are_judged_on(suite):
    chosen, judged = (suite.verdicts("t2/MLE1", split=one) for one in ("validation", "test"))
    assert not set(chosen.ids) & set(judged.ids)
    assert chosen.ids == tuple(one.id for one in suite.validation_examples)


def test_claims_are_judged_by_the_suite(suite):
    named = {
        1: ("t2/MLE2 > t2/MLE2",),
        6: ("best(t3/BNR) >= ends(t3/BNR)",),
        9: ("overhead t2/MixNR/0",),
        12: ("t2/MLE1 > t1/MixNR/0.9",),
    }
    rows = tuple(row for row in suite.profile.rows if not row.startswith("t1"))
    profile = suite.profile.model_copy(update={"claims": named, "rows": rows})
    outcomes = claims.judge_claims(Suite(profile, suite.store, suite.output))
    # After a few steps every answer loses: no room to differ.
    assert outcomes[1][0].verdict == "uninformative"
    assert (outcomes[1][0].effect, outcomes[1][0].low, outcomes[1][0].high) == (0, 0, 0)
    assert "by validation prompts" in outcomes[6][0].note
    assert outcomes[9][0].effect > 0 and "times the tokens" in outcomes[9][0].note
    assert outcomes[12][0].verdict == "not run" and "t1/MixNR/0.9" in outcomes[12][0].note
    assert outcomes[2] == []
