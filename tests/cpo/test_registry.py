"""Functions by name, and what names a user's own in a recipe: its source and what it uses."""

from __future__ import annotations

import importlib.util
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeNotebook

from cpo.registry import Registry, RegistryError, identity, nearest
from cpo_suite.run.runner import run_suite

SOURCE = """
    import math
    import re
    from json import dumps

    SHARE = 0.3
    NOT_USED = 1
    WORDS = {"a", "b"}
    PATTERN = re.compile("x+")

    def helper(value):
        return value + 1

    def function(value, scale=SHARE):
        return [helper(one) + math.pi + len(WORDS) for one in value if PATTERN or dumps]
"""


@pytest.fixture
def function_of(tmp_path: Path) -> Callable[..., Any]:
    """The `function` of a file with `SOURCE`, in which pieces of text were replaced."""

    def load(*changes: tuple[str, str], source: str = SOURCE) -> Any:
        for before, after in changes:
            assert before in source
            source = source.replace(before, after)
        # Each in a file of its own: what Python has read of one it keeps.
        name = f"own_{len(list(tmp_path.iterdir()))}"
        path = tmp_path / f"{name}.py"
        path.write_text(textwrap.dedent(source))
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.function

    return load


def test_the_same_source_has_the_same_name_wherever_it_lies(function_of):
    first, again = function_of(), function_of()
    assert identity("mine", first) == identity("mine", again)
    name, digest = identity("mine", first).split(":")
    assert name == "mine" and len(digest) == 16
    assert identity("other", first) == f"other:{digest}"
    assert identity("judge", nearest) == "judge"  # the project's own: no hash


@pytest.mark.parametrize(
    "change",
    [
        ("math.pi", "math.e"),
        ("SHARE = 0.3", "SHARE = 0.5"),
        ("value + 1", "value + 2"),
        ('{"a", "b"}', '{"a", "c"}'),
        ('"x+"', '"x*"'),
    ],
)
def test_a_change_of_it_or_of_what_it_uses_makes_another(function_of, change):
    assert identity("mine", function_of(change)) != identity("mine", function_of())


@pytest.mark.parametrize(
    "change", [("NOT_USED = 1", "NOT_USED = 2"), ("import math", "import math ")]
)
def test_what_it_does_not_use_has_no_part(function_of, change):
    assert identity("mine", function_of(change)) == identity("mine", function_of())


def test_what_encloses_it_has_a_part(function_of):
    source = """
        def make(count):
            def function():
                return function if count else None
            return function

        function = make(3)
    """
    three, four = function_of(source=source), function_of(("make(3)", "make(4)"), source=source)
    assert identity("mine", three) != identity("mine", four)
    assert identity("mine", three) == identity("mine", function_of(source=source))


def test_what_no_recipe_can_tell_is_refused(function_of):
    holding = function_of(
        ("SHARE = 0.3", "SHARE = 0.3\n    THING = object()"), ("math.pi", "(THING and 1)")
    )
    with pytest.raises(RegistryError, match=r"'mine' uses `THING` \(object\) from outside"):
        identity("mine", holding)
    made: dict[str, Any] = {}
    exec("def function(): pass", made)
    made["function"].__module__ = "somewhere"
    unread = "source of 'mine' cannot be read: define it with `def`"
    with pytest.raises(RegistryError, match=unread):
        identity("mine", made["function"])


def test_names_of_the_project_are_not_taken(function_of):
    registry: Registry[Any] = Registry("judge", {"ours": nearest}, reserved=("kept",))
    for _ in range(2):  # one's own: its cell runs again
        function = function_of()
        assert registry.register("mine")(function) is registry["mine"] is function
    assert registry.identity("mine") == identity("mine", function)
    for name in ("ours", "kept"):
        with pytest.raises(RegistryError, match=f"already has a judge '{name}'"):
            registry.register(name)
        assert registry.identity(name) == name
    for name in ("", "a:b"):
        with pytest.raises(RegistryError, match="without a colon"):
            registry.register(name)


def test_an_unknown_name_is_refused_with_the_nearest():
    registry: Registry[Any] = Registry("judge", {"longest": nearest}, ("random",), KeyError)
    for refused in (registry.__getitem__, registry.check, registry.identity):
        with pytest.raises(KeyError, match="unknown judge 'longes'. Did you mean 'longest'"):
            refused("longes")
    registry.check("random")
    assert "random" not in registry and registry.get("longes") is None


def test_a_function_of_a_notebook_has_a_source(make_notebook: MakeNotebook, tmp_path, artifacts):
    cell = """
        @register_judge("mine")
        def mine(example, a, b):
            return "A" if len(a) < LIMIT else "B"
    """
    make_notebook(
        "00_own",
        "from cpo.evaluation.judging import register_judge, rule_identity\nLIMIT = 10",
        textwrap.dedent(cell),
        "first = rule_identity('mine')",
        textwrap.dedent(cell),
        "assert rule_identity('mine') == first\nLIMIT = 20",
        "assert rule_identity('mine') != first\nLIMIT = 10",
        textwrap.dedent(cell).replace("<", ">"),
        "assert rule_identity('mine') != first",
    )
    assert run_suite("smoke", plan=lambda *arguments: [], root=tmp_path) == 0
