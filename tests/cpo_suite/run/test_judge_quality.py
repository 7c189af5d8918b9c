"""`judge-quality`: from the command to the table, the artifact and the captions of win rates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chat_server import ScriptedServer, question_of
from judged_suite import FakeSuite, trial_profile

from cpo_suite.__main__ import main
from cpo_suite.artifacts import measured_quality
from cpo_suite.paper import ROWS
from cpo_suite.profile import JudgeSettings, Server
from cpo_suite.report import captions, tables
from cpo_suite.store import Store

TEXTS = ["a", "bb", "ccc", "dddd"]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """20 pairs on ten prompts; the longer response is the better one on 16, and says the recorded
    judge on all but one, which it leaves out."""
    path = tmp_path / "pairs.jsonl"
    lines = []
    for number in range(20):
        longer = "A" if number % 2 else "B"
        short, long = TEXTS[number % 3], TEXTS[number % 3 + 1]
        line = {
            "instruction": f"Prompt {number // 2}",
            "response_a": long if longer == "A" else short,
            "response_b": short if longer == "A" else long,
            "labels": [longer if number < 16 else {"A": "B", "B": "A"}[longer]] * 2,
            "recorded": {"former": longer} if number else {},
        }
        lines.append(json.dumps(line))
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def measured(pairs: Path, *arguments: str) -> int:
    return main(["judge-quality", "--pairs", str(pairs), *arguments])


def test_a_rule_is_measured_beside_the_baselines_and_kept(pairs, artifacts, capsys) -> None:
    assert measured(pairs, "--judge", "random") == 0
    said = capsys.readouterr().out
    header, _, *lines = (line for line in said.splitlines() if line.startswith("|"))
    assert [line.split("|")[1].strip() for line in lines] == [
        "random", "longest", "one person against the others",
    ]  # fmt: skip
    assert "kappa" in header and "over longest" in header
    assert "0.800 [" in lines[1] and "1.000 [" in lines[2]
    assert "random agrees with a person on 0.500" in said
    assert "does not beat the rule “the longer response”" in said
    [random, longest, people] = measured_quality(JudgeSettings(kind="random"), Store(artifacts))
    assert (random["labelled"], random["pairs"], random["orders"]) == ("pairs", 20, 2)
    assert (longest["agreement"], longest["over_longest"]) == (pytest.approx(0.8), 0)
    assert people["over_longest"] == pytest.approx(0.2)
    assert not people["beats_longest"]  # by two prompts of ten: that may be chance
    # Whatever a run's number of orders; of no other judge.
    assert measured_quality(JudgeSettings(kind="random", orders=2), Store(artifacts))
    assert measured_quality(JudgeSettings(kind="longest"), Store(artifacts)) == []


def test_recorded_verdicts_are_measured_and_unparsable_ones_counted(
    pairs, artifacts, capsys
) -> None:
    assert measured(pairs, "--judge", "recorded:former") == 0
    said = capsys.readouterr().out
    assert "1 of 20 verdicts invalid and left out" in said
    assert "former agrees with a person on 0.789" in said  # 15 of 19
    assert not artifacts.exists()  # no run has such a judge


def test_a_paid_judge_says_its_price_first_keeps_its_limit_and_is_asked_once(
    pairs, artifacts, capsys, monkeypatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    server = ScriptedServer(lambda request: "AB"["Prompt 3" in question_of(request)])
    settings = [
        f"judge.server.base_url={server.url}", "judge.server.usd_per_million_input=1000",
    ]  # fmt: skip
    chosen = ["--judge", "openai", "--judge-model", "judge-1"]
    for setting in settings:
        chosen += ["--set", setting]
    assert measured(pairs, *chosen, "--set", "judge.server.max_usd=0.01") == 2
    said = capsys.readouterr()
    assert "max_usd is $0.01" in said.err and "Nothing was sent" in said.err
    assert server.requests == []
    assert measured(pairs, *chosen) == 0
    assert "40 requests, about" in capsys.readouterr().out
    assert len(server.requests) == 40  # both orders
    assert measured(pairs, *chosen) == 0
    assert len(server.requests) == 40
    server.close()
    of = Server(model="judge-1", base_url=server.url)
    [judge, *_] = measured_quality(JudgeSettings(kind="openai", server=of), Store(artifacts))
    assert judge["judge"].startswith("judge-1 at ") and judge["flip_rate"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the profile tiny has the oracle, of the embedded world alone: give a judge"),
        (["--judge", "none"], "has no judge: give a judge of labelled pairs with --judge"),
        (["--judge", "lngest"], "unknown judge 'lngest'. Did you mean 'longest'?"),
        (["--judge", "local"], "the judge `local` needs `model`"),
        (["--judge", "local", "--judge-model", "./nowhere"], "nowhere"),
        (["--judge", "random", "--judge-model", "m"], "--judge-model is for the judges local and"),
        (["--judge", "recorded:gtp"], "unknown recorded judge 'gtp'"),
        (["--juge", "random"], "unknown argument '--juge'. Did you mean '--judge'?"),
    ],
)
def test_bad_input_is_refused(arguments, message, pairs, artifacts, capsys) -> None:
    assert measured(pairs, *arguments) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said


def test_missing_pairs_are_said_with_what_to_do(tmp_path, artifacts, capsys, monkeypatch) -> None:
    for folder in (None, str(tmp_path)):
        if folder:
            monkeypatch.setenv("CPO_DATA", folder)
        else:
            monkeypatch.delenv("CPO_DATA", raising=False)
        assert main(["judge-quality", "--judge", "random"]) == 2
        said = capsys.readouterr().err
        assert "or give labelled pairs with --pairs FILE" in said
        assert ("CPO_DATA is not set" in said) == (folder is None)
    assert measured(tmp_path / "none.jsonl", "--judge", "random") == 2
    assert "none.jsonl" in capsys.readouterr().err


# --- In the tables --------------------------------------------------------------------------------


def quality(beats: bool) -> list[dict]:
    judge = {
        "judge": "oracle", "labelled": "PandaLM", "pairs": 999, "orders": 2, "invalid": 3,
        "agreement": 0.6, "agreement_low": 0.55, "agreement_high": 0.65, "kappa": 0.25,
        "beats_longest": beats,
    }  # fmt: skip
    return [judge, {"judge": "longest", "agreement": 0.62}]


class SuiteWithTexts(FakeSuite):
    """The longer half of the responses, by one character, wins as often as the shorter half."""

    def generations(self, row_id: str, decoding: str | None = None, seed: int = 0) -> list[str]:
        return ["wwww", "ww"] * 5

    def prompts(self, model: str, task: str) -> list:
        from types import SimpleNamespace

        return [SimpleNamespace(continuation="www")] * 10


def test_a_table_carries_the_judges_agreement(tmp_path: Path) -> None:
    suite = SuiteWithTexts(trial_profile())
    suite.quality = quality(beats=True)
    frame = tables.table(suite, "t1")
    assert list(frame.columns) == tables.TABLE_COLUMNS
    told = captions.caption(frame, suite.profile)
    assert "oracle agrees with a person on 0.600 [0.550, 0.650] of 999 pairs of PandaLM" in told
    assert (
        "(kappa 0.25), 3 of 1,998 verdicts invalid and left out; beside it: longest 0.620" in told
    )
    assert "It beats the rule “the longer response”." in told
    tables.write_table(frame, tmp_path, "table1", suite.profile)
    again = tables.read_table(tmp_path / "table1.csv")
    assert again.attrs["judge_quality"] == suite.quality
    assert "oracle agrees with a person on 0.600" in captions.caption(again, suite.profile)
    # The tables of a judge that nobody measured do not keep what was there.
    suite.quality = []
    tables.write_table(tables.table(suite, "t1"), tmp_path, "table1", suite.profile)
    again = tables.read_table(tmp_path / "table1.csv")
    assert "agrees with a person" not in captions.caption(again, suite.profile)


def test_the_length_controlled_rate_stands_first_where_length_is_as_good(tmp_path: Path) -> None:
    suite = SuiteWithTexts(trial_profile())
    suite.quality = quality(beats=False)
    frame = tables.table(suite, "t1")
    columns = list(frame.columns)
    first = columns.index("ours") - 3
    assert columns[first : first + 4] == [*tables.LENGTH_CONTROLLED, "ours"]
    assert [name for name in columns if name in tables.TABLE_COLUMNS] == tables.TABLE_COLUMNS
    row = frame.set_index("row").loc["t1/MLE"]
    # The longer ones win 1 1 1 .5 0, the shorter ones 1 1 1 .5: rates 3.5 / 5 and 3.5 / 4, whose
    # logits are log(7 / 3) and log(7). One longer or shorter by a character each: the mean of both.
    expected = 1 / (1 + 1 / ((7 / 3) * 7) ** 0.5)
    assert row["length_controlled"] == pytest.approx(expected, abs=0.01)
    assert row["length_controlled_low"] < expected < row["length_controlled_high"]
    assert frame.set_index("row").loc["t1/DPO", tables.LENGTH_CONTROLLED].isna().all()
    shown = tables.readable(frame)
    assert list(shown).index("at equal length") < list(shown).index("ours")
    assert shown["at equal length"][0].startswith("0.80")
    told = captions.caption(frame, suite.profile)
    assert "does not beat the rule “the longer response”: the length-controlled win rate" in told
    tables.write_table(frame, tmp_path, "table1", suite.profile)
    assert "at equal length" in (tmp_path / "table1.md").read_text(encoding="utf-8")


def test_a_model_that_nobody_measured_is_said_to_be_so() -> None:
    profile = trial_profile()
    judge = JudgeSettings(kind="local", model="judge")
    frame = tables.table(FakeSuite(profile), "t1")
    told = captions.caption(frame, profile.model_copy(update={"judge": judge}))
    assert "agreement with people has not been measured (judge-quality)" in told
    assert "has not been measured" not in captions.caption(frame, profile)
    assert ROWS["t4/MLE"].measure == "mauve"  # its table has no judge
    of_mauve = tables.table(FakeSuite(profile), "t4")
    told = captions.caption(of_mauve, profile.model_copy(update={"judge": judge}))
    assert "has not been measured" not in told
