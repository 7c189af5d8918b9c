"""Functions known by name: samplers of negatives, objectives and judges.

A user may add functions to those of the project. A recipe names one of the project by its name, and
one of a user by the hash of its source too, so that a changed function makes another artifact.
"""

from __future__ import annotations

import difflib
import dis
import hashlib
import inspect
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from types import CodeType, ModuleType
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


class RegistryError(ValueError):
    """A name that is unknown or taken, or a function that no recipe can name; the message says
    which."""


class Registry(dict[str, Function]):
    """Functions of one kind by name; an unknown name raises `error`, naming the nearest.

    Args:
        kind: what the functions are, for messages, such as "judge".
        functions: those that it begins with.
        reserved: names of the project that stand for no function.
        error: what `registry[name]` and `register` raise.
    """

    def __init__(
        self,
        kind: str,
        functions: Mapping[str, Function] | None = None,
        reserved: Collection[str] = (),
        error: type[Exception] = RegistryError,
    ) -> None:
        super().__init__(functions or {})
        self.kind, self.reserved, self.error = kind, reserved, error

    def __missing__(self, name: str) -> Function:
        self.check(name)
        raise KeyError(name)  # a reserved name

    def check(self, name: str) -> None:
        """Raises this registry's `error`, with the nearest name, where the name is unknown."""
        known = (*self.reserved, *self)
        if name not in known:
            raise self.error(unknown(self.kind, name, known))

    def register(self, name: str) -> Callable[[Function], Function]:
        """Decorator that makes a function known by `name`.

        A name of one's own may be registered again, as when its cell runs again, and stands for the
        new function then.

        Raises:
            RegistryError, or this registry's `error`: the name is one of the project's, is empty
                or holds a colon.
        """
        if not name or ":" in name:
            raise self.error(f"a {self.kind}'s name is not empty and holds no colon: '{name}'")
        if name in self.reserved or (name in self and is_ours(self[name])):
            raise self.error(
                f"there is a {self.kind} '{name}' already, the project's own; choose another name"
            )

        def add(function: Function) -> Function:
            self[name] = function
            return function

        return add

    def identity(self, name: str) -> str:
        """What names the function in a recipe, as `identity` has it.

        Raises:
            RegistryError: the name is unknown (this registry's `error`), or as `identity`.
        """
        return name if name in self.reserved else identity(name, self[name])


def nearest(word: str, choices: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the closest choice, or an empty string."""
    match = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" Did you mean '{match[0]}'?" if match else ""


def unknown(kind: str, name: str, known: Collection[str]) -> str:
    """What is wrong with a name that is not among those `known`, with the nearest of them."""
    return f"unknown {kind} '{name}'.{nearest(name, known)} Known: {', '.join(known)}."


def is_ours(function: Callable[..., Any]) -> bool:
    """Whether a registered function came with this project."""
    return function.__module__.split(".")[0] in ("cpo", "cpo_suite")


def identity(name: str, function: Callable[..., Any]) -> str:
    """What names a registered function in a recipe.

    Its name where it came with the project, whose stages have versions of their own; else the name
    and a hash: of its source, of the functions of its notebook or file that it uses, and of the
    values there, such as a number set in a cell above. What it imports has no part in it.

    Raises:
        RegistryError: the source cannot be read, or it uses an object that is no plain value.
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
        raise RegistryError(
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
            raise RegistryError(
                f"'{name}' uses `{used}` ({type(value).__name__}) from outside the function, and "
                "no recipe can tell when its content changes: make it inside the function, take it "
                "from the function's arguments, or use plain values (numbers, texts, lists)"
            ) from None


def _used(function: Any) -> dict[str, Any]:
    """What a function finds outside of itself, by name: globals, enclosing variables, defaults."""
    names = sorted(_global_names(function.__code__))
    used = {name: function.__globals__[name] for name in names if name in function.__globals__}
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    used |= {name: cell.cell_contents for name, cell in cells}
    return used | {"its defaults": [function.__defaults__, function.__kwdefaults__]}


def _global_names(code: CodeType) -> set[str]:
    instructions = dis.get_instructions(code)
    names = {step.argval for step in instructions if step.opname == "LOAD_GLOBAL"}
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return names.union(*map(_global_names, inner))


def _plain(value: Any) -> Any:
    """What JSON lacks and has a text of its own all the same."""
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    if isinstance(value, re.Pattern):
        return [value.pattern, value.flags]
    raise TypeError
