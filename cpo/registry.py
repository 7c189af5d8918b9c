"""Functions known by name: samplers of negatives, objectives and judges.

Users may register their own. A recipe identifies a project function by name, a user's also by a
hash of its source, so that a changed function defines a new artifact.
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
    """An unknown or taken name, or a function that no recipe can identify."""


class Registry(dict[str, Function]):
    """Functions of one kind by name; an unknown name raises `error` and suggests the nearest.

    Args:
        kind: what messages call the functions, such as "judge".
        functions: the initial ones.
        reserved: project names without a function.
        error: the exception that `registry[name]` and `register` raise.
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
        """Raise this registry's `error`, suggesting the nearest name, if the name is unknown."""
        known = (*self.reserved, *self)
        if name not in known:
            raise self.error(unknown(self.kind, name, known))

    def register(self, name: str) -> Callable[[Function], Function]:
        """Decorator that registers a function as `name`.

        A user's name may be registered again, as when its cell is re-run; the new function replaces
        the old one.

        Raises:
            RegistryError, or this registry's `error`: the name is the project's, is empty or
                contains a colon.
        """
        if not name or ":" in name:
            raise self.error(f"a {self.kind}'s name must be non-empty, without a colon: '{name}'")
        if name in self.reserved or (name in self and is_ours(self[name])):
            raise self.error(f"the project already has a {self.kind} '{name}'; choose another name")

        def add(function: Function) -> Function:
            self[name] = function
            return function

        return add

    def identity(self, name: str) -> str:
        """The function's identifier in a recipe, as by `registry.identity`.

        Raises:
            RegistryError: as `registry.identity`; for an unknown name, this registry's `error`.
        """
        return name if name in self.reserved else identity(name, self[name])


def nearest(word: str, choices: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the closest choice, or an empty string."""
    match = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" Did you mean '{match[0]}'?" if match else ""


def unknown(kind: str, name: str, known: Collection[str]) -> str:
    """The message for a name not in `known`, suggesting the nearest."""
    return f"unknown {kind} '{name}'.{nearest(name, known)} Known: {', '.join(known)}."


def is_ours(function: Callable[..., Any]) -> bool:
    """Whether a registered function belongs to this project."""
    return function.__module__.split(".")[0] in ("cpo", "cpo_suite")


def identity(name: str, function: Callable[..., Any]) -> str:
    """The identifier of a registered function in a recipe.

    A project function is identified by its name alone: the stages have versions. A user's adds a
    hash of its source, of the functions it uses from its own notebook or file, and of values
    defined there, such as a number set in a cell above. Imports are not hashed.

    Raises:
        RegistryError: the source cannot be read, or it uses an object that is not a plain value.
    """
    if is_ours(function):
        return name
    parts = json.dumps(list(_parts(name, function, set())))
    return f"{name}:{hashlib.sha256(parts.encode()).hexdigest()[:16]}"


def _parts(name: str, function: Any, seen: set[Any]) -> Iterator[str]:
    """The source of a function and of what it uses from its own module, each once."""
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
                "no recipe can detect when it changes: create it inside the function, pass it as "
                "an argument, or use plain values (numbers, texts, lists)"
            ) from None


def _used(function: Any) -> dict[str, Any]:
    """What a function uses from outside itself, by name: globals, enclosing variables, defaults."""
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
    """Serializable forms of values that JSON lacks."""
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    if isinstance(value, re.Pattern):
        return [value.pattern, value.flags]
    raise TypeError
