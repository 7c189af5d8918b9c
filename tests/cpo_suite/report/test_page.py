"""The report: notebook 09 as it was run, one page that needs nothing else; and samples."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.pylabtools import select_figure_formats
from IPython.utils.capture import capture_output
from judged_suite import FakeSuite, trial_profile
from nbformat.v4 import new_output

from cpo.data import Example
from cpo_suite.paper import rows_of
from cpo_suite.profile import ROOT, Profile
from cpo_suite.report import claims, page, plots, tables
from cpo_suite.report.claims import Outcome
from cpo_suite.report.names import row_name
from cpo_suite.suite import Suite


@pytest.fixture
def profile() -> Profile:
    return trial_profile()


@pytest.fixture
def suite(profile: Profile) -> FakeSuite:
    return FakeSuite(profile)


NASTY = "<script>alert('&')</script> </pre></main> \"quoted\" | pipe"
# Elements without an end tag, by the HTML standard.
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Checks that tags nest, and collects headings, images and whatever would be fetched."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.headings: list[int] = []
        self.images: list[dict[str, str | None]] = []
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []  # within the page
        self.tags: set[str] = set()
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "img":
            self.images.append(dict(attrs))
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name == "href" and (value or "").startswith("#"):
                self.links.append(str(value)[1:])
            elif name in ("src", "href", "srcset", "data") and not str(value).startswith("data:"):
                self.fetched.append(str(value))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def examples() -> list[Example]:
    return [
        Example(f"item-{number}", f"prompt {number} {NASTY}", f"truth {number}", "", None)
        for number in range(50)
    ]


def check_alone(source: str) -> Page:
    """A page as a reader without a network or a pair of eyes needs it."""
    parsed = Page(source)
    assert parsed.tags.isdisjoint({"script", "iframe", "link"}) and not parsed.fetched
    assert not re.search(r"url\(|@import", source)
    assert '<html lang="en">' in source and "width=device-width" in source
    steps = zip(parsed.headings, parsed.headings[1:], strict=False)
    assert parsed.headings[0] == 1 and parsed.headings.count(1) == 1
    assert all(after <= before + 1 for before, after in steps)
    assert parsed.links == [name for name in parsed.ids if name in parsed.links]  # all lead there
    return parsed


# --- Samples --------------------------------------------------------------------------------------


def test_samples_page(examples: list[Example]) -> None:
    texts = {"MLE": [f"mle {n} {NASTY}" for n in range(50)], "MixNR <0.5>": [""] * 50}
    body = page.samples(examples, texts, "Prompts: someone, CC BY-SA 3.0.", count=5)
    parsed = check_alone(page.page("Samples, side by side", body))
    assert parsed.headings == [1] + 5 * [2, 3, 3, 3]
    for number in (0, 10, 20, 30, 40):  # evenly spaced over 50
        assert f"prompt {number} {NASTY}" in parsed.text and f"mle {number} {NASTY}" in parsed.text
    assert "prompt 1 " not in parsed.text
    assert "CC BY-SA 3.0" in parsed.text and "MixNR <0.5>" in parsed.text
    assert parsed.text.count("(empty)") == 5
    # In a notebook they stand below a heading of their own.
    part = page.samples(examples, texts, "Own.", count=2, level=3)
    assert Page(part).headings == 2 * [3, 4, 4, 4]
    with pytest.raises(ValueError, match="MLE: 3 responses to 50 prompts"):
        page.samples(examples, {"MLE": ["a"] * 3}, "Own.")


def test_samples_are_chosen_by_a_rule() -> None:
    gains = [0.0, -0.5, 0.3, 0.1, -0.1, 0.0, 0.3, 0.9, 0.0, 0.0, -0.2, 0.0, 0.0, -0.5]
    chosen = page.chosen_by_rule(gains)
    # Best first, equal ones in the prompts' order; then worst first; then four of the others.
    assert list(chosen)[:6] == [7, 2, 6, 1, 13, 10]
    drawn = list(chosen)[6:]
    assert len(drawn) == 4 and drawn == sorted(drawn) and not {7, 2, 6, 1, 13, 10} & set(drawn)
    assert chosen[7] == "+0.90, largest gain" and chosen[1] == "-0.50, largest loss"
    assert all(chosen[at].endswith("drawn") for at in drawn)
    assert (
        chosen == page.chosen_by_rule(gains)
        and drawn != list(page.chosen_by_rule(gains, seed=1))[6:]
    )
    # Nothing is better where nothing gained, and a few prompts are all shown.
    assert set(page.chosen_by_rule([0.0, -0.1]).values()) == {"-0.10, largest loss", "+0.00, drawn"}


def test_chosen_samples_say_why(examples: list[Example]) -> None:
    texts = {"MLE": ["text"] * 50}
    body = page.samples(
        examples, texts, "Own.", chosen={7: "+0.90, largest gain", 3: "drawn"}, rule="by <rule>"
    )
    parsed = check_alone(page.page("Samples", body))
    assert "2 of 50 held-out prompts, by <rule>." in parsed.text
    assert parsed.text.index("item-7 (+0.90, largest gain)") < parsed.text.index("item-3 (drawn)")


# --- The report -----------------------------------------------------------------------------------

# The cells of notebook 09 that show what is in the folder, and those that they need.
SHOWING = (
    "suite", "suite-2", "check", "show-tables", "claims", "claims-figure", "head-to-head", "notes",
    "show-figures", "show-measures", "show-samples", "show-provenance", "show-provenance-2", "told",
)  # fmt: skip
OUTCOMES = {1: [Outcome("t1/ANR > t1/MLE", "fails", -0.123, -0.2, -0.1, "a note", 0.035)]}

Report = Callable[..., str]


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Report]:
    """The report on a folder, by the cells of notebook 09 and its text."""
    shell = InteractiveShell.instance()
    select_figure_formats(shell, {"png"})
    monkeypatch.setattr(claims, "judge_claims", lambda suite: OUTCOMES)

    def make(profile: Profile, overrides: Sequence[str] = ()) -> str:
        suite = SimpleNamespace(profile=profile, output=tmp_path)
        monkeypatch.setattr(Suite, "open", lambda *_: suite)
        shell.reset(new_session=False)
        parameters = {"profile": "trial", "overrides": list(overrides), "output": ""}
        shell.push(parameters | {"profile_rows": profile.trained_rows})
        notebook = nbformat.read(ROOT / "notebooks" / "09_report.ipynb", as_version=4)
        for cell in notebook.cells:
            if cell.id in SHOWING:
                with capture_output() as captured:
                    shell.run_cell(cell.source).raise_error()
                if captured.stdout:
                    cell.outputs.append(new_output("stream", text=captured.stdout))
                for shown in captured.outputs:
                    one = new_output("display_data", data=shown.data, metadata=shown.metadata)
                    cell.outputs.append(one)
        page.write_report(notebook, tmp_path / "report.html")
        return (tmp_path / "report.html").read_text(encoding="utf-8")

    yield make
    InteractiveShell.clear_instance()


def test_report_is_one_self_contained_page(
    report: Report, suite: FakeSuite, profile: Profile, examples: list[Example], tmp_path: Path
) -> None:
    frame = tables.table(suite, "t1")
    tables.write_table(frame, tmp_path, "table1", profile)
    tables.write_table(tables.measures_frame(suite, ["t1/MLE"]), tmp_path, "measures", profile)
    plots.save(plots.alpha_figure(frame), tmp_path / "figure_alpha", f"Win rate. {NASTY}")
    samples = page.samples(examples, {"MLE": ["text"] * 50}, "Own.", count=2)
    (tmp_path / "samples.html").write_text(page.page("Samples", samples), encoding="utf-8")
    run = {"seconds": 12.5, "note": NASTY, "packages": {"torch": "2.13.0"}}
    (tmp_path / "run.json").write_text(json.dumps(run), encoding="utf-8")

    source = report(profile, [f"judge.kind={NASTY}"])
    parsed = check_alone(source)
    texts = [str(image["alt"]) for image in parsed.images]
    assert texts[0].startswith("Every comparison behind the claims")
    assert texts[1:] == [f"Win rate. {NASTY}"]
    order = [
        "1 training seed", "0.778", "CPO beats MLE continued for the same steps",
        "What each claim was judged on", "after Holm's", "-0.123", "0.035",
        "Nobody judged head to head", "Settings changed for this run", "Win rate.",
        "Automatic measures", "truth 25", "torch: 2.13.0", "instructions:",
        "Whether the contrast is learnt was not measured",
    ]  # fmt: skip
    assert len(parsed.links) == 9  # the contents
    places = [parsed.text.index(what) for what in order]
    assert places == sorted(places)
    assert "prompt 0 " + NASTY in parsed.text and "0.471" in parsed.text
    # For whoever runs the notebook, not for whoever reads the report.
    for hidden in ("What it needs", "Exercise", "import ", "made by notebook"):
        assert hidden not in parsed.text
    assert "<math" in source and "\\text" not in parsed.text  # drawn by the browser itself


def test_report_tells_where_its_numbers_come_from(
    report: Report, profile: Profile, tmp_path: Path
) -> None:
    made = {"stage": "model", "made": "2026-01-01T00:00:00Z", "machine": "one"}
    first = {"name": "model t1/ANR", "recipe": "aa11", "seed": 0, "sha256": "ab" * 32} | made
    second = {"name": f"model {NASTY}", "recipe": "bb22", "seed": 1, "sha256": None} | made
    run = {
        "git": {"revision": "c0ffee", "clean": False}, "requirements_lock_sha256": "12" * 32,
        "seeds": [0, 1], "gpu_hours": 4.5, "settings": {"instructions": {"path": "${CPO_DATA}"}},
        "artifacts": [
            first | {"seconds": 1800.0, "gpus": 8, "gpu_hours": 4.0},
            second | {"seconds": 1800.0, "gpus": 1, "gpu_hours": 0.5},
        ],
    }  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps(run), encoding="utf-8")
    # The settings of the record rather than this machine's.
    instructions = profile.instructions.model_copy(update={"path": "/home/somebody/data"})
    local = profile.model_copy(update={"instructions": instructions})
    text = Page(report(local)).text
    assert "${CPO_DATA}" in text and "/home/somebody" not in text
    assert "revision c0ffee, with changes that are not in it" in text
    assert "requirements.lock 121212121212." in text
    assert "2 artifacts, made in 1.00 hours of work, each counted once; 4.5 GPU-hours." in text
    for cell in ("model t1/ANR", "aa11", "abababababab", f"model {NASTY}", "bb22"):
        assert cell in text
    assert "ab" * 7 not in text
    run["git"]["clean"] = True  # type: ignore[index]
    (tmp_path / "run.json").write_text(json.dumps(run), encoding="utf-8")
    assert "revision c0ffee." in Page(report(profile)).text


def test_report_of_an_empty_folder_says_so(report: Report, profile: Profile) -> None:
    parsed = check_alone(report(profile))
    assert "This run made no table." in parsed.text
    assert "Missing from this report: " in parsed.text and "table1.csv" in parsed.text


def test_report_tables_can_be_read_by_ear_and_on_a_phone(
    report: Report, suite: FakeSuite, profile: Profile, tmp_path: Path
) -> None:
    tables.write_table(tables.table(suite, "t1"), tmp_path, "table1", profile)
    source = report(profile)
    # Wide tables scroll by themselves, with the keyboard too; each has a name and a caption.
    region = '<div aria-label="Table 1: GPT-2" class="scroll" role="region" tabindex="0">'
    assert source.count(region) == 1
    table = source[source.index(region) :].partition("</table>")[0]
    head, _, body = table.partition("<tbody>")
    # What all rows share is said in heading and caption: model, judge, prompts, seeds.
    assert re.findall(r"<th>(.*?)</th>", head) == [
        "row", "alpha", "paper", "ours", "95 % interval", "invalid", "ties",
    ]  # fmt: skip
    assert "judge: oracle; 10 prompts; 1 training seed" in head
    # Every row has a header, in the paper's order.
    assert re.findall(r"<th>(.*?)</th>", body) == [row_name(row.id) for row in rows_of("t1")]
