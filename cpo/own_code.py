"""Functions that a user registers by name: samplers, losses, judges.

What names one in a recipe, so that a changed function makes another artifact, and what may not be
replaced.
"""

from __future__ import annotations

import difflib
import dis
import hashlib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import CodeType, ModuleType
from typing import Any

Function = Callable[..., Any]


class OwnCodeError(ValueError):
    """A function that cannot be registered, or not be named in a recipe; the message says why."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the closest choice, or an empty string."""
    match = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" Did you mean '{match[0]}'?" if match else ""


def is_ours(function: Function) -> bool:
    """Whether a registered function came with this project."""
    return function.__module__.split(".")[0] in ("cpo", "cpo_suite")


def check_name(name: str, registered: Mapping[str, Function], what: str) -> None:
    """Refuse a name that is taken by the project or holds a colon; `what` is, say, "judge".

    One's own function may be replaced: running its cell again does that.

    Raises:
        OwnCodeError: as above.
    """
    if name in registered and is_ours(registered[name]):
        raise OwnCodeError(
            f"there is a {what} '{name}' already, the project's own; choose another name"
        )
    if not name or ":" in name:
        raise OwnCodeError(f"a {what}'s name is not empty and holds no colon: '{name}'")


def identity(name: str, function: Function) -> str:
    """What names a registered function in a recipe.

    Its name where it came with the project, whose stages have versions of their own; else the name
    and a hash: of its source, of the functions of its notebook or file that it uses, and of the
    values there, such as a number set in a cell above. What it imports has no part in it.

    Raises:
        OwnCodeError: the source cannot be read, or it uses an object that is no plain value.
    """
    if is_ours(function):
        return name
    parts = json.dumps(list(_parts(name, function, set())))
    return f"{name}:{hashlib.sha256(parts.encode()).hexdigest()[:16]}"


def _parts(name: str, function: Any, seen: set[Any]) -> Iterator[str]:
    """The source of a function and of what it uses of its own module, each once."""
    function = inspect.unwrap(function)
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        raise OwnCodeError(
            f"the source of '{name}' cannot be read: define it with `def` in a notebook's cell or "
            "in a file"
        ) from None
    yield source
    seen.add(function)
    for used, value in _used(function).items():
        defined_in = getattr(value, "__module__", None)
        is_code = inspect.isroutine(value) or inspect.isclass(value)
        if isinstance(value, ModuleType) or (is_code and defined_in != function.__module__):
            continue
        if inspect.isroutine(value):
            if inspect.unwrap(value) not in seen:
                yield from _parts(name, value, seen)
            continue
        try:
            yield f"{used} = {json.dumps(value, sort_keys=True, default=_plain)}"
        except (TypeError, ValueError):
            raise OwnCodeError(
                f"'{name}' uses `{used}` ({type(value).__name__}) from outside the function, and "
                "no recipe can tell when its content changes: make it inside the function, take it "
                "from the function's arguments, or use plain values (numbers, texts, lists)"
            ) from None


def _used(function: Any) -> dict[str, Any]:
    """What a function finds outside of itself, by name: globals, enclosing variables, defaults."""
    names = sorted(_global_names(function.__code__))
    found = {name: function.__globals__[name] for name in names if name in function.__globals__}
    cells = function.__closure__ or ()
    found |= {
        name: cell.cell_contents
        for name, cell in zip(function.__code__.co_freevars, cells, strict=True)
    }
    return found | {"its defaults": [function.__defaults__, function.__kwdefaults__]}


def _global_names(code: CodeType) -> set[str]:
    names = {one.argval for one in dis.get_instructions(code) if one.opname == "LOAD_GLOBAL"}
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return names.union(*map(_global_names, inner))


def _plain(value: Any) -> Any:
    """What JSON lacks and has a text of its own all the same."""
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    if isinstance(value, re.Pattern):
        return [value.pattern, value.flags]
    raise TypeError
