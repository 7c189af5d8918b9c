"""./run_all.sh [--profile NAME|FILE.yaml] [--set key=value]... [--dry-run] [--from NN] [--only NN]
    Run the notebooks at the size of a profile (default: tiny). --dry-run says what would be built
    and what it takes; --set changes a setting of the profile, such as seeds=3; --from and --only
    choose notebooks by number, and --only may be repeated. Output: figures/<profile>/ for a full,
    unchanged run, artifacts/figures/ otherwise.
accelerate launch [...] -m cpo_suite make [--profile P] [--set key=value]...
    Build, in the processes that it launches, what several processes share out: docs/several_gpus.md
./run_all.sh lab [arguments of jupyter lab]   JupyterLab in the same environment
./run_all.sh site [--profile P]               a book of the notebooks and their results, into site/
./run_all.sh test [arguments of pytest]       ruff, mypy and pytest
./run_all.sh doctor [--profile P] [--set ...] what is missing here, each with what to do
./run_all.sh profiles                         the profiles, what they are for and what they need
./run_all.sh verdicts [--model M] [--export FILE.csv]   what judging has cost, and every verdict;
    --forget refused (or: unclear, cut, empty, "too long") has the next run ask for these again
./run_all.sh diff RUN RUN                     what differed between two runs, such as figures/tiny
./run_all.sh help

An active conda or virtual environment is used; otherwise .venv is made beside this file.
CPO_DATA names the folder of local data, CPO_ARTIFACTS that of artifacts (default: artifacts/),
CPO_BROWSER a Chromium for the browser tests (default: one that is found; without one they skip).
"""

# `run_all.sh` runs this file, before there is an environment, to have wrong arguments refused:
# it imports the standard library alone. `python -m cpo_suite` parses by the same function.
from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

GO_ON = 100  # exit code of this file where there is something to run

FORGETTABLE = ("unclear", "cut", "empty", "refused", "too long")
Options = Mapping[str, Mapping[str, Any]]  # what `add_argument` takes, by an option's name
PROFILE: Options = {"--profile": {"default": "tiny"}}
SETTINGS: Options = {"--set": {"action": "append", "default": [], "dest": "settings"}}
SELECTION: Options = {
    "--dry-run": {"action": "store_true"},
    "--from": {"dest": "start_from"},
    "--only": {"action": "append", "default": []},
}
COMMANDS: Mapping[str, Options] = {
    "run": {**PROFILE, **SETTINGS, **SELECTION},
    "make": {**PROFILE, **SETTINGS},
    "lab": {},
    "site": PROFILE,
    "test": {},
    "doctor": {**PROFILE, **SETTINGS},
    "profiles": {},
    "verdicts": {"--model": {}, "--export": {}, "--forget": {"choices": FORGETTABLE}},
    "diff": {"before": {}, "after": {}},
}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command line; without a command's name it is that of `run`.

    Raises:
        SystemExit: with 0 after help, with 2 after saying what is wrong with the arguments.
    """
    words = list(arguments)
    if words[:1] == ["help"] or {"-h", "--help"} & set(words):
        print(__doc__)
        raise SystemExit(0)
    if not words or words[0].startswith("-"):
        words.insert(0, "run")
    plain: Any = {"usage": "see `./run_all.sh help`", "add_help": False, "allow_abbrev": False}
    parser = argparse.ArgumentParser(prog="./run_all.sh", **plain)
    commands = parser.add_subparsers(dest="command", prog="./run_all.sh")
    for name, options in COMMANDS.items():
        command = commands.add_parser(name, **plain)
        for option, how in options.items():
            command.add_argument(option, **how)
    parsed, unknown = parser.parse_known_args(words)
    if unknown:
        near = difflib.get_close_matches(unknown[0], COMMANDS[parsed.command], n=1, cutoff=0.5)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        parser.error(f"unknown argument '{unknown[0]}'.{hint}")
    return parsed


if __name__ == "__main__":
    parse(sys.argv[1:])
    sys.exit(GO_ON)
