"""States of a piece: one is chosen, each is there, and nothing depends on a script."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import matplotlib
import pytest
from markupsafe import Markup
from matplotlib.figure import Figure

from cpo_suite.teaching.states import states_page

matplotlib.use("agg")

EVIL = "<script>alert('x')</script> & \"quoted\""


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the texts outside of style sheets."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.all: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(str(page))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.all.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.all and self.all[-1][0] != "style" and data.strip():
            self.texts.append(data.strip())

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.all if name == tag]


def three() -> Markup:
    bodies = (Markup("<p>the <i>first</i></p>"), Markup("<p>the second</p>"), Markup("<p>x</p>"))
    return states_page("Which?", zip(("one", "two", "three"), bodies, strict=True))


def test_one_radio_button_is_checked_and_every_state_is_there():
    page = Elements(three())
    buttons, labels = page.of("input"), page.of("label")
    assert [one["type"] for one in buttons] == ["radio"] * 3
    assert ["checked" in one for one in buttons] == [True, False, False]
    assert len({one["name"] for one in buttons}) == 1  # one group: the arrow keys go through it
    assert [one["for"] for one in labels] == [one["id"] for one in buttons]
    states = [one for one in page.of("div") if one.get("class") == "state"]
    assert [one["aria-label"] for one in states] == ["one", "two", "three"]
    for text in ("Which?", "first", "the second", "x"):
        assert text in page.texts
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.all}
    handlers = [name for _, attributes in page.all for name in attributes if name[:2] == "on"]
    assert handlers == []


def test_the_style_sheet_names_a_button_and_its_state_and_nothing_outside():
    text = three()
    page = Elements(text)
    [rules] = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    shown = re.findall(r"#([\w-]+):checked ~ #([\w-]+) \{ display: block \}", rules)
    states = [one["id"] for one in page.of("div") if one.get("class") == "state"]
    assert shown == list(zip([one["id"] for one in page.of("input")], states, strict=True))
    outer = page.of("div")[0]["id"]
    rules = rules.replace("@media (max-width: 600px) {", "")
    for selector in re.findall(r"(?:^|\})\s*([^{}]+?)\s*\{", rules):
        assert all(one.strip().startswith(f"#{outer}") for one in selector.split(",")), selector


def test_two_pieces_in_one_page_share_no_id_and_no_group():
    page = Elements(three() + three())  # even of one content
    ids = [attributes["id"] for _, attributes in page.all if "id" in attributes]
    assert len(ids) == len(set(ids)) == 2 * (1 + 3 + 3)
    assert len({one["name"] for one in page.of("input")}) == 2
    assert sum("checked" in one for one in page.of("input")) == 2


def test_without_style_sheets_and_inputs_each_state_stands_under_its_label():
    # What GitHub takes away: style sheets with what is in them, inputs, ids, classes and styles.
    left = re.sub(r"<style>.*?</style>|<input[^>]*>", "", three(), flags=re.DOTALL)
    left = re.sub(r" (id|class|style|for)='[^']*'", "", left)
    texts = " ".join(Elements(left).texts)
    assert texts == "Which? one ; two ; three ; one the first two the second three x"


def test_a_figure_is_a_picture_described_by_its_label_and_labels_are_data():
    page = Elements(states_page(EVIL, [(EVIL, Figure(figsize=(1, 1)))]))
    [picture] = page.of("img")
    assert picture["alt"] == EVIL and str(picture["src"]).startswith("data:image/png;base64,")
    assert "max-width:100%" in str(picture["style"])  # of a phone
    assert not page.of("script") and EVIL in page.texts


def test_labels_that_cannot_be_told_apart_are_refused():
    with pytest.raises(ValueError, match="labels that differ"):
        states_page("Which?", [])
    with pytest.raises(ValueError, match="labels that differ"):
        states_page("Which?", [("one", Markup("a")), ("one", Markup("b"))])
