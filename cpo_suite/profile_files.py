"""The files of profiles: YAML, what one adds to another, overrides, and the paths they name.

A relative path is resolved beside the profile's file, then in the folder CPO_DATA, then in
`profiles/`, so that a copied profile keeps its models; in an override, in the current folder.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from cpo.models.packages import is_packaged, packaged_model
from cpo.registry import unknown

ROOT = Path(__file__).resolve().parent.parent


class ProfileError(ValueError):
    """An invalid profile; the message names the key and what is valid."""


def profile_names() -> list[str]:
    """Names of the profiles in `profiles/`."""
    return sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml"))


class _Loader(yaml.SafeLoader):
    """Reads YAML 1.2 floats: YAML 1.1 takes `1e-5` for a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?((\d+(\.\d*)?|\.\d+)[eE][-+]?\d+|\.\d+)$"),
    list("-+0123456789."),
)


def parse_value(text: str | bytes, name: str = "") -> Any:
    """Parse a value as in a profile: `1e-5` is a float, `true` a bool, `[a]` a list.

    The result has JSON types, with dates as strings. YAML aliases become copies, so that an
    override changes a single place.

    Raises:
        ProfileError: the text is not valid YAML; the message contains `name`.
    """
    try:
        return json.loads(json.dumps(yaml.load(text, Loader=_Loader), default=str))
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise ProfileError(f"{name or repr(text)} is not valid YAML: {problem}") from None


def with_absolute_paths(override: str) -> str:
    """The override with absolute paths, independent of the current folder."""
    key, _ = _key_and_value(override)
    return map_override(override, lambda value: _absolute(value, [Path.cwd()], {}, key))


def map_override(override: str, change: Callable[[Any], Any]) -> str:
    """The override with its value changed, or verbatim if the change has no effect."""
    key, value = _key_and_value(override)
    changed = change(value)
    # As JSON, which is also YAML: a path may contain special characters.
    return override if changed == value else f"{key}={json.dumps(changed, ensure_ascii=False)}"


def _key_and_value(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ProfileError(f"an override is dotted.key=value, not '{override}'")
    return key.strip(), parse_value(text)


def read_profile(
    name: str | Path, overrides: Sequence[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """A profile's raw values, with overrides and absolute paths; and the missing paths."""
    path, raw = _file(name)
    if base := raw.pop("extends", None):
        extended, settings = _file(path.parent / base if Path(base).suffix else base)
        if "extends" in settings:
            raise ProfileError(f"{path} extends {extended}, which extends another: name that one")
        raw = _merged(settings, raw)
    for override in overrides:
        key, value = _key_and_value(with_absolute_paths(override))
        *groups, last = key.split(".")
        group = raw
        for outer in groups:
            # Create a group that the file omits; validation rejects unknown ones.
            if group.get(outer) is None:
                group[outer] = {}
            group = group[outer]
            if not isinstance(group, dict):
                raise ProfileError(
                    f"unknown key '{key}': '{outer}' is a single value, not a group of keys"
                )
        group[last] = value
    data = Path(os.environ.get("CPO_DATA") or UNSET).expanduser()
    data = data if str(data) == UNSET else data.absolute()
    folders = [path.parent.resolve(), data, ROOT / "profiles"]
    missing: dict[str, str] = {}
    return _absolute(raw, folders, missing), missing


def _file(name: str | Path) -> tuple[Path, dict[str, Any]]:
    """The file of a profile, by name or path, and its keys and values."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = ROOT / "profiles" / f"{name}.yaml"
        if not path.is_file():
            raise ProfileError(unknown("profile", str(name), profile_names()))
    elif not path.is_file():
        raise ProfileError(f"no profile file {path}")
    raw = parse_value(path.read_bytes(), str(path))
    if not isinstance(raw, dict):
        raise ProfileError(f"{path} must hold keys and values, not a {type(raw).__name__}")
    return path, raw


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The base with groups of settings merged key by key, and any other value replaced."""
    merged = base | changes
    for key in base.keys() & changes.keys():
        if isinstance(base[key], dict) and isinstance(changes[key], dict):
            merged[key] = _merged(base[key], changes[key])
    return merged


# --- Paths ----------------------------------------------------------------------------------------

UNSET = "$CPO_DATA"
_PATH_KEY = re.compile(r"(instructions|articles)\.path|judge\.model|models\.\w+\.pretrained")
_PATH = re.compile(r"^(\.{0,2}/|~)|\.gguf$")  # a model that is a path, not a hub name


def _absolute(value: Any, folders: Sequence[Path], missing: dict[str, str], key: str = "") -> Any:
    """The value of a key, with its paths resolved in the first folder that contains them.

    Paths that no folder contains are added to `missing`, with the places searched.
    """
    if isinstance(value, dict):
        prefix = f"{key}." if key else ""
        return {
            name: _absolute(item, folders, missing, f"{prefix}{name}")
            for name, item in value.items()
        }
    if not isinstance(value, str) or not _PATH_KEY.fullmatch(key):
        return value
    if is_packaged(value):
        try:
            return str(packaged_model(value))
        except FileNotFoundError as error:
            missing[key] = str(error)
            return value
    text = os.path.expanduser(value)
    joined = dict.fromkeys(folder / text for folder in folders)
    # Only places under the placeholder of an unset CPO_DATA are relative: nothing is there.
    places = [os.path.normpath(place) if place.is_absolute() else str(place) for place in joined]
    if there := [place for place in places if os.path.isabs(place) and os.path.exists(place)]:
        return there[0]
    places = list(dict.fromkeys(places))
    if not key.endswith(".path") and not _PATH.search(text):
        return value  # a hub name
    missing[key] = ", nor does ".join([f"{places[0]} does not exist", *places[1:]])
    return places[0]
