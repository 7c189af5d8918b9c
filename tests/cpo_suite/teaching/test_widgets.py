"""Interactive pieces: controls that move a picture, words where there is no kernel, no debris."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import nbformat
import pytest

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("agg")
ipywidgets = pytest.importorskip("ipywidgets")

from models import tiny_model  # noqa: E402
from PIL import Image  # noqa: E402
from traitlets import TraitError  # noqa: E402

from cpo import training  # noqa: E402
from cpo.data import Example  # noqa: E402
from cpo.evaluation.judging import Verdicts  # noqa: E402
from cpo.scoring import Group  # noqa: E402
from cpo.training import TrainingExample, TrainingSettings, train  # noqa: E402
from cpo_suite.profile import ROOT  # noqa: E402
from cpo_suite.run.executed import make_portable  # noqa: E402
from cpo_suite.teaching import live_curves  # noqa: E402
from cpo_suite.teaching import piece as pieces  # noqa: E402
from cpo_suite.teaching.ensemble_slider import ensemble_slider  # noqa: E402
from cpo_suite.teaching.live_curves import LiveCurves  # noqa: E402
from cpo_suite.teaching.loss_explorer import loss_explorer, loss_parts  # noqa: E402
from cpo_suite.teaching.negative_viewer import (  # noqa: E402
    CHANGED,
    SURPRISE,
    Candidate,
    candidates_page,
    negative_viewer,
    shade_of,
)
from cpo_suite.teaching.optimum import optimum_explorer  # noqa: E402
from cpo_suite.teaching.verdict_browser import judgements, verdict_browser  # noqa: E402

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"

EVIL = "<script>alert('x')</script><img src=x onerror=y> & \"quoted\""


class Page(HTMLParser):
    """The tags of a page, its texts, and its cells row by row."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.alternatives: list[str] = []
        self.in_cell = False
        self.feed(str(page))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True
        if tag == "img":
            self.alternatives.append(dict(attrs).get("alt") or "")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.in_cell:
            self.rows[-1][-1] += data

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag not in ("td", "th")


def candidate(kind: str, words: str, similarity: float = 0.5, surprise: float = 1.0) -> Candidate:
    """A token for each word; the same word has the same id."""
    tokens = [f" {word}" for word in words.split()]
    ids = [int.from_bytes(token.encode()) for token in tokens]
    return Candidate(kind, ids, tokens, [-surprise] * len(ids), similarity)


TRUTH = candidate("truth", "the cat sat on the mat EOS", 1.0)
GROUP = [
    TRUTH,
    candidate("MN", "the dog sat on the mat EOS", 0.9),
    candidate("TN", "the cat EOS", 0.8),
    candidate("BN", "paint it blue today", 0.1, surprise=9.0),
]


def ensemble() -> pieces.Piece:
    return ensemble_slider(
        prompts=["first?", "second?"],
        recorded=["one", "two"],
        answers={0.0: ["c1", "c2"], 0.5: ["m1", "c2"], 1.0: ["l1", "l2"]},
        scores={"grade": {0.0: [0.2, 0.4], 0.5: [1.0, 0.5], 1.0: [0.3, math.nan]}},
    )


def judged(exchanged: bool = False) -> tuple[Verdicts, list[Example], list[str]]:
    """Four prompts, the model at A, A, B, B: it wins, loses, ties, and is judged invalidly."""
    examples = [
        Example(f"p{n}", f"prompt {n}", f"recorded {n}", "open_qa" if n % 2 else "lists", None)
        for n in range(4)
    ]
    verdicts = Verdicts(
        "oracle", tuple(one.id for one in examples), ("A", "A", "B", "B"),
        ("A", "B", "tie", "invalid"), ("A", "A", "tie", "invalid") if exchanged else (),
    )  # fmt: skip
    return verdicts, examples, [f"answer {n}" for n in range(4)]


PIECES: dict[str, Callable[[], pieces.Piece]] = {
    "loss explorer": loss_explorer,
    "optimum explorer": optimum_explorer,
    "negative viewer": lambda: negative_viewer([("a", GROUP), ("b", GROUP[:2])]),
    "ensemble slider": ensemble,
    "verdict browser": lambda: verdict_browser({"t2/ANR": judgements(*judged())}),
}


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What is displayed: ("new" or "replaced", the bundle or the HTML)."""
    shown: list[tuple[str, Any]] = []
    monkeypatch.delenv("CPO_PLAIN_PROGRESS", raising=False)  # somebody looks on

    class Handle:
        def display(self, item: Any) -> None:
            shown.append(("new", item.data))

        def update(self, item: Any) -> None:
            shown.append(("replaced", item.data))

    def display(item: Any, raw: bool = False, display_id: Any = None) -> Any:
        shown.append(("new", item if raw else item.data))
        return Handle()

    monkeypatch.setattr(pieces, "display", display)
    monkeypatch.setattr(pieces, "DisplayHandle", Handle)
    monkeypatch.setattr(live_curves, "display", display)
    return shown


# --- All pieces -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PIECES)
def test_every_control_is_native_described_and_reached_in_the_order_shown(name):
    piece = PIECES[name]()
    native = (
        ipywidgets.IntSlider, ipywidgets.FloatSlider, ipywidgets.SelectionSlider,
        ipywidgets.Dropdown, ipywidgets.Checkbox,
    )  # fmt: skip
    assert list(piece.box.children) == list(piece.controls.values())
    for control in piece.controls.values():
        assert isinstance(control, native)
        assert control.description and not control.disabled
        assert control.tabbable is not False


@pytest.mark.parametrize("name", PIECES)
def test_the_picture_is_an_output_of_its_own_and_the_controls_have_words_in_their_place(
    name, screen
):
    piece = PIECES[name]()
    piece._ipython_display_()
    (_, controls), (_, picture) = screen
    assert controls[WIDGET_VIEW]["model_id"] == piece.box.model_id
    for words in (controls["text/plain"], Page(controls["text/html"]).text):
        assert words.lower() == f"{name}: its controls need a running notebook."
    for control in piece.controls.values():  # what they were set to stands below the picture
        said = f"{control.description}: " in Page(picture).text
        assert said == (control.layout.display != "none")
    assert "img" not in Page(controls["text/html"]).tags  # the picture is not stored twice
    assert picture == piece.picture
    assert len(picture) < 60_000


@pytest.mark.parametrize("name", PIECES)
def test_a_control_that_moves_replaces_the_picture_and_adds_none(name, screen):
    piece = PIECES[name]()
    piece._ipython_display_()
    before = piece.picture
    moved = {
        "loss explorer": "beta",
        "optimum explorer": "kind",
        "negative viewer": "colour",
        "ensemble slider": "alpha",
        "verdict browser": "pair",
    }
    control = piece.controls[moved[name]]
    options = getattr(control, "options", None)
    other = options[-1] if options else control.max
    control.value = other[1] if isinstance(other, tuple) else other
    assert piece.picture != before
    assert screen[2:] == [("replaced", piece.picture)]
    control.value = control.value  # nothing moved
    assert len(screen) == 3


@pytest.mark.parametrize("name", PIECES)
def test_where_nobody_looks_on_a_piece_is_stored_as_its_states(name, screen, monkeypatch):
    piece = PIECES[name]()
    before = {name: control.value for name, control in piece.controls.items()}
    picture = piece.picture
    monkeypatch.setenv("CPO_PLAIN_PROGRESS", "1")
    piece._ipython_display_()
    [(_, stored)] = screen  # nothing else: no widget, no picture a second time
    page = Page(stored)
    assert page.tags.count("input") == len(piece.states) == stored.count("class='state'")
    assert stored.count(" checked>") == 1
    assert 2 <= len(piece.states) <= 12
    shown = stored.split("class='state'")[1:]
    assert len(set(shown)) == len(shown)  # no state twice
    assert {name: control.value for name, control in piece.controls.items()} == before
    assert piece.picture == picture
    assert len(stored) < 200_000


def test_the_stored_states_are_those_that_tell_something(screen):
    # The explorer: two candidates at 0 have a loss of ln 2; four, ranked, of ln 4!.
    states = dict(zip(*_labels_and_texts(loss_explorer()), strict=True))
    assert "Loss 0.693" in states["all at 0, two candidates"]
    assert "Loss 3.178" in states["all at 0, ranked"]
    for beta in (0.1, 1.0, 5.0):  # those of the profiles: none is shown twice
        labels = [*loss_explorer(beta=beta).states]
        assert len(labels) == 12 and f"the same, beta {beta:g}" not in labels
    # One pair of each outcome of the model, in turn; there is one each.
    browser = verdict_browser({"ANR": judgements(*judged())})
    labels, texts = _labels_and_texts(browser)
    assert labels == ["ANR, won 1", "ANR, tied 1", "ANR, lost 1", "ANR, invalid 1"]
    assert "prompt 2, p1" in texts[2]
    # Prompts to which the ends answer otherwise, and what is between the ends.
    labels, _ = _labels_and_texts(ensemble())
    assert labels == ["prompt 1, alpha 0.5", "prompt 2, alpha 0.5"]
    same = ensemble_slider(["a", "b"], ["", ""], {0.0: ["x", "y"], 1.0: ["x", "z"]}, {})
    assert _labels_and_texts(same)[0] == ["prompt 2, alpha 0", "prompt 2, alpha 1"]
    # More alphas than are stored: evenly from those between, at each sixth of the way.
    many = {tenth / 10: ["c" if tenth < 5 else "m"] for tenth in range(11)}
    labels, _ = _labels_and_texts(ensemble_slider(["a"], [""], many, {}))
    assert labels == ["prompt 1, alpha 0.2", "prompt 1, alpha 0.5", "prompt 1, alpha 0.8"]


def _labels_and_texts(piece: pieces.Piece) -> tuple[list[str], list[str]]:
    """Of each state that is stored."""
    states = piece.stored().split("class='state'")[1:]
    return [*piece.states], [Page(f"<div{state}").text for state in states]


def test_only_the_pieces_import_ipywidgets():
    for path in [*(ROOT / "cpo").rglob("*.py"), *(ROOT / "cpo_suite").rglob("*.py")]:
        if path.parent != ROOT / "cpo_suite" / "teaching":
            text = path.read_text("utf-8")
            assert not re.search(r"^\s*(import|from) ipywidgets", text, re.MULTILINE), path


# --- Loss explorer --------------------------------------------------------------------------------


def test_loss_weights_and_pushes_by_hand():
    # log-ratios ln 2, 0, 0: with beta 2 exp r is 4, 1, 1, so weights are 4/6, 1/6, 1/6; the loss
    # is -ln(4/6), and the pushes beta ([j = 1] - w_j) are 2/3, -1/3, -1/3.
    loss, parts = loss_parts([math.log(2), 0, 0], beta=2.0, ranked=False)
    assert parts["reward"].tolist() == pytest.approx([2 * math.log(2), 0, 0])
    assert parts["weight"].tolist() == pytest.approx([4 / 6, 1 / 6, 1 / 6])
    assert parts["push"].tolist() == pytest.approx([2 / 3, -1 / 3, -1 / 3])
    assert loss == pytest.approx(math.log(1.5))
    # Ranked, all rewards 0: candidate j is in the factors k <= j, with weights 1/3, 1/2, 1, and is
    # the numerator of one. Pushes: 1 - 1/3, 1 - 1/3 - 1/2, 1 - 1/3 - 1/2 - 1.
    loss, parts = loss_parts([0, 0, 0], beta=1.0, ranked=True)
    assert loss == pytest.approx(math.log(6))
    assert parts["push"].tolist() == pytest.approx([2 / 3, 1 / 6, -5 / 6])


def test_the_explorer_shows_as_many_candidates_as_k_says():
    piece = loss_explorer([math.log(2), 0, 0], beta=1.0)
    text = Page(piece.picture).text
    assert "Loss 0.693" in text and "ln K = 1.099" in text  # weights 1/2, 1/4, 1/4; ln 3
    [words] = Page(piece.picture).alternatives
    assert "y1, ground truth: reward +0.69, weight 0.50, pushed +0.50" in words
    assert "y3: reward +0.00, weight 0.25, pushed -0.25" in words and "y4" not in words

    before = piece.picture
    piece.controls["y4"].value = 1.0  # not one of the three
    assert piece.picture == before and piece.controls["y4"].layout.display == "none"
    piece.controls["size"].value = 4
    assert piece.controls["y4"].layout.display != "none"
    # exp r is 2, 1, 1, e
    assert f"Loss {math.log((4 + math.e) / 2):.3f}" in Page(piece.picture).text
    piece.controls["ranked"].value = True
    assert "ln K! = 3.178" in Page(piece.picture).text  # ln 24
    data = re.search(r"base64,([^']*)'", piece.picture)
    assert data
    with Image.open(io.BytesIO(base64.b64decode(data.group(1)))) as image:
        assert image.format == "PNG" and image.width > 600
    with pytest.raises(ValueError, match="2 to 6"):
        loss_explorer([0.0])


# --- Negative viewer ------------------------------------------------------------------------------


def test_what_changed_is_marked_and_what_is_gone_struck_out():
    page = candidates_page("Who sat?", GROUP, "all", CHANGED)
    rows = page.split("<tr>")[1:]
    assert "the<del> cat</del><mark> dog</mark> sat on the mat EOS" in rows[2]
    assert "the cat<del> sat on the mat</del> EOS" in rows[3]
    assert "<mark> paint it blue today</mark>" in rows[4]
    assert "<del>" not in rows[4]  # another text altogether: striking out all of the truth is noise
    cells = Page(page).rows
    assert [row[:3] for row in cells[1:]] == [
        ["1", "truth", "1.000"], ["2", "MN", "0.900"], ["3", "TN", "0.800"], ["4", "BN", "0.100"],
    ]  # fmt: skip
    assert cells[4][3:5] == ["-36.0; -9.00 a token", "'paint' -9.0"]


def test_surprise_shades_tokens_and_underlines_new_ones():
    # 4 shades up to 8 nats: less than 2 is none.
    assert [shade_of(-x) for x in (0, 1.9, 2, 7.9, 8, 50)] == [0, 0, 1, 3, 4, 4]
    rows = candidates_page("p", GROUP, "all", SURPRISE).split("<tr>")[1:]
    assert "background" not in rows[1] and "<u>" not in rows[1]
    assert "the<u> dog</u> sat on the mat EOS" in rows[2]
    darkest = r"<span style='background:rgb\(230,159,0\);color:#000'><u> paint it blue today</u>"
    assert re.search(darkest, rows[4])
    with pytest.raises(ValueError, match="2 ids, 1 tokens and 2"):
        Candidate("AN", [1, 2], ["a"], [0.0, 0.0], 0.0)


def test_the_viewer_goes_through_prompts_and_kinds():
    piece = negative_viewer([("### Instruction:\nWho?", GROUP), ("How?", GROUP[:3])])
    assert [label for label, _ in piece.controls["prompt"].options] == ["1: Who?", "2: How?"]
    assert len(Page(piece.picture).rows) == 5
    piece.controls["kind"].value = "TN"
    assert [row[:2] for row in Page(piece.picture).rows[1:]] == [["1", "truth"], ["3", "TN"]]
    piece.controls["kind"].value = "all"
    piece.controls["prompt"].value = 1
    assert "How?" in piece.picture and len(Page(piece.picture).rows) == 4


# --- Ensemble slider ------------------------------------------------------------------------------


def test_answers_between_the_ends_with_their_scores():
    piece = ensemble()
    assert piece.controls["alpha"].value == 0.5
    rows = Page(piece.picture).rows
    assert rows[0] == ["recorded", "alpha = 0 (CPO)", "alpha = 0.5", "alpha = 1 (MLE continued)"]
    assert rows[1] == ["one", "c1", "m1", "l1"]
    assert rows[2] == ["alpha", "grade, this prompt", "grade, mean"]
    # Means by hand: (0.2 + 0.4) / 2, (1 + 0.5) / 2, and 0.3 alone, the other being unknown.
    assert rows[3:] == [["0", "0.200", "0.300"], ["0.5 (chosen)", "1.000", "0.750"],
                        ["1", "0.300", "0.300"]]  # fmt: skip
    piece.controls["prompt"].value = 2
    rows = Page(piece.picture).rows
    assert rows[1] == ["two", "c2", "(the same text as at alpha = 0)", "l2"]
    assert rows[-1] == ["1", "", "0.300"]
    piece.controls["alpha"].value = 1.0
    assert len(Page(piece.picture).rows[0]) == 3  # an end is not shown twice
    with pytest.raises(ValueError, match="1 answers at alpha 0.5 to 2 prompts"):
        ensemble_slider(["a", "b"], ["", ""], {0.5: ["x"]}, {})
    with pytest.raises(ValueError, match="1 grade at alpha 0.5 to 2 prompts"):
        ensemble_slider(["a", "b"], ["", ""], {0.5: ["x", "y"]}, {"grade": {0.5: [1.0]}})


# --- Verdict browser ------------------------------------------------------------------------------


def test_pairs_stand_in_the_order_that_the_judge_saw():
    pairs = judgements(*judged())
    assert pairs["outcome"].tolist() == ["won", "lost", "tied", "invalid"]
    assert pairs["number"].tolist() == [1, 2, 3, 4]
    assert pairs[["A", "B"]][1:3].values.tolist() == [
        ["answer 1", "recorded 1"], ["recorded 2", "answer 2"],
    ]  # fmt: skip
    # Both orders: A twice means that the first pair's winner changes with the order, as the model
    # is A, then B; on the second prompt it loses at A and at B.
    both = judgements(*judged(exchanged=True))
    assert both["outcome"].tolist() == ["split", "lost", "tied", "invalid"]
    verdicts, examples, responses = judged()
    with pytest.raises(ValueError, match="do not belong together"):
        judgements(verdicts, examples[::-1], responses)


def test_the_browser_filters_and_shows_the_parts_of_the_grade():
    def parts(example, text):
        return {"right": 0.25 if text.startswith("answer") else 0.75, "to_the_point": 1.0}

    piece = verdict_browser({"t2/ANR": judgements(*judged(exchanged=True))}, parts)
    page = Page(piece.picture)
    assert "Pair 1 of 4" in page.text and "with the sides exchanged, A is better" in page.text
    assert page.rows == [
        ["", "answer", "right", "to the point"],
        ["A (the model's, better)", "answer 0", "0.25", "1.00"],
        ["B (recorded)", "recorded 0", "0.75", "1.00"],
    ]
    assert piece.controls["pair"].max == 4
    piece.controls["pair"].value = 3
    piece.controls["category"].value = "lists"  # of prompts 1 and 3
    assert (piece.controls["pair"].value, piece.controls["pair"].max) == (1, 2)
    piece.controls["pair"].value = 2
    assert "Pair 2 of 2: prompt 3" in Page(piece.picture).text
    with pytest.raises(TraitError):
        piece.controls["outcome"].value = "win"
    piece.controls["outcome"].value = "lost"  # none of these
    assert "No pair is left" in piece.picture
    piece.controls["category"].value = "all"
    assert "Pair 1 of 1: prompt 2" in Page(piece.picture).text


# --- Texts are data -------------------------------------------------------------------------------


def test_no_text_acts_as_html():
    example = Example(EVIL, EVIL, EVIL, EVIL, None)
    verdicts = Verdicts("oracle", (EVIL,), ("A",), ("tie",), ("tie",))
    evil = Candidate(EVIL, [1, 2], [EVIL, EVIL], [-9.0, 0.0], 0.5)
    other = Candidate(EVIL, [3, 1], [EVIL, EVIL], [-9.0, 0.0], 0.5)
    grades = {EVIL: {0.5: [1.0]}}
    pairs = {EVIL: judgements(verdicts, [example], [EVIL])}
    pages = [
        *(candidates_page(EVIL, [evil, other], "all", how) for how in (CHANGED, SURPRISE)),
        ensemble_slider([EVIL], [EVIL], {0.5: [EVIL]}, grades).picture,
        verdict_browser(pairs, lambda *_: {EVIL: 1.0}).picture,
        negative_viewer([(EVIL, [evil, other])]).picture,
        live_curves.curves_page({EVIL: (5, [{"step": 1, "loss": 1.0}])}),
    ]
    for page in pages:
        parsed = Page(page)
        assert "script" not in parsed.tags
        pictures = [alternative for alternative in parsed.alternatives if alternative]
        assert parsed.tags.count("img") == len(pictures)  # ours alone
        assert "alert('x')" in parsed.text + " ".join(pictures)


# --- Live curves ----------------------------------------------------------------------------------


def small_training(tmp_path, steps: int = 3, description: str = "training t2/AN") -> list[Any]:
    groups = [Group([1, 2], [[3, 4], [5]]) for _ in range(2 * steps)]
    examples = [TrainingExample(one, (True, True), (-3.0, -2.0)) for one in groups]
    settings = TrainingSettings(
        "ranking_nce", steps, 2, 1e-3, beta=1.0, micro_batch=2, description=description,
        starts_at_reference=False,  # its values are made up
    )  # fmt: skip
    return train(tiny_model("llama"), examples, settings, tmp_path / "out", tmp_path / "partial")


def test_live_curves_are_one_picture_replaced_in_its_place(tmp_path, screen, monkeypatch):
    monkeypatch.setattr(live_curves, "in_notebook", lambda: True)
    monkeypatch.delenv("CPO_PLAIN_PROGRESS", raising=False)
    with LiveCurves(seconds=0.0):
        history = small_training(tmp_path)
    assert [how for how, _ in screen] == ["new", *["replaced"] * (len(screen) - 1)]
    assert len(screen) >= 2
    assert f"t2/AN: step 1 of 3, loss {history[0]['loss']:.3f}" in screen[0][1]
    last = Page(screen[-1][1])
    assert last.tags == ["img"]  # the line about the step is gone
    assert f"t2/AN: step 3 of 3, loss {history[-1]['loss']:.3f}" in last.alternatives[0]
    assert training.WATCHERS == []


def test_live_curves_are_redrawn_now_and_then_and_once_where_nobody_looks(screen, monkeypatch):
    monkeypatch.setattr(live_curves, "in_notebook", lambda: True)
    monkeypatch.delenv("CPO_PLAIN_PROGRESS", raising=False)
    clock = [1000.0]
    monkeypatch.setattr(live_curves.time, "monotonic", lambda: clock[0])
    log: list[dict[str, float]] = []

    def a_hundred_steps(curves: LiveCurves) -> None:
        for step in range(1, 101):
            log.append({"step": step, "loss": 1.0})
            clock[0] += 0.1
            curves.watch("training x", 100, log)

    with LiveCurves(seconds=2.0) as curves:
        a_hundred_steps(curves)
    # At 0.1 s, then every 2 s of 10 (floating point may make it one step later), and at the end.
    assert len(screen) in (5, 6)
    screen.clear()
    log.clear()
    monkeypatch.setenv("CPO_PLAIN_PROGRESS", "1")
    with LiveCurves(seconds=0.0) as curves:
        a_hundred_steps(curves)
    assert [how for how, _ in screen] == ["new"]


def test_live_curves_show_nothing_in_a_terminal(tmp_path, screen, capsys):
    with LiveCurves(seconds=0.0) as curves:
        small_training(tmp_path, steps=1)
    with LiveCurves():
        pass
    assert screen == [] and len(curves.trainings) == 1
    assert capsys.readouterr().out == ""


def test_a_second_training_of_one_name_has_a_line_of_its_own():
    curves = LiveCurves()
    for log in ([{"step": 1, "loss": 2.0}], [{"step": 1, "loss": 4.0}, {"train_loss": 3.0}]):
        curves.watch("training t2/AN", 4, log)
        curves.watch("training t2/AN", 4, log)
    picture = live_curves.curves_page(curves.trainings)
    assert "t2/AN: step 1 of 4, loss 2.000; t2/AN (2): step 1 of 4, loss 4.000" in picture


def test_a_fault_in_drawing_does_not_stop_a_training(tmp_path, monkeypatch):
    def broken(*_: object) -> None:
        raise OSError("no screen")

    monkeypatch.setattr(training, "WATCHERS", [broken])
    with pytest.warns(UserWarning, match="no screen"):
        assert len(small_training(tmp_path)) == 3
    assert training.WATCHERS == []


# --- Without a kernel -----------------------------------------------------------------------------


def test_executed_copies_keep_what_stands_in_for_a_widget_and_drop_the_rest():
    def output(**data: Any) -> Any:
        return nbformat.v4.new_output(
            "display_data", {k.replace("_", "/"): v for k, v in data.items()}
        )

    view = {"model_id": "m"}
    cell = nbformat.v4.new_code_cell("x")
    cell.outputs = [output(text_html="<p>words</p>", text_plain="w"), output(text_plain="bar 0%|")]
    for one in cell.outputs:
        one["data"][WIDGET_VIEW] = view
    cell.outputs.append(output(text_plain="42"))
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {"state": {}}})
    make_portable(notebook)
    assert [dict(one.data) for one in notebook.cells[0].outputs] == [
        {"text/html": "<p>words</p>", "text/plain": "w"}, {"text/plain": "42"},
    ]  # fmt: skip
    assert "widgets" not in notebook.metadata


@pytest.mark.slow
def test_a_page_made_of_a_saved_notebook_shows_the_picture_as_last_drawn(tmp_path):
    nbclient, nbconvert = pytest.importorskip("nbclient"), pytest.importorskip("nbconvert")
    sources = [
        "from cpo_suite.teaching.loss_explorer import loss_explorer\n"
        "piece = loss_explorer([0.0, 0.0], beta=1.0)\npiece",
        "piece.controls['y1'].value = 1.0",
        "from cpo_suite.teaching.live_curves import LiveCurves\n"
        "log = []\n"
        "with LiveCurves(seconds=0.0) as curves:\n"
        "    for step in (1, 2):\n"
        "        log.append({'step': step, 'loss': 1.0 / step})\n"
        "        curves.watch('training x', 2, log)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
    nbclient.NotebookClient(notebook, kernel_name="python3", timeout=120).execute()
    first, second, third = (cell.outputs for cell in notebook.cells)
    assert len(first) == 2 and not second and len(third) == 1
    assert len(nbformat.writes(notebook)) < 200_000
    exporter = nbconvert.HTMLExporter(embed_images=True)
    for saved in ("as it is", "as the runner leaves it"):
        if saved != "as it is":
            make_portable(notebook)
        page, _ = exporter.from_notebook_node(notebook)
        alternatives = Page(page).alternatives
        # ln(1 + e^-1) = 0.313: the state after the second cell.
        assert any(one.startswith("Loss 0.313") for one in alternatives), alternatives
        assert "Training curves. x: step 2 of 2, loss 0.500." in " ".join(alternatives)
    assert "its controls need a running notebook" in page and "widget-view" not in page
