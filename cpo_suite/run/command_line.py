"""./run_all.sh [--profile NAME|FILE.yaml] [--set key=value]... [--dry-run] [--from NN] [--only NN]
               [--alone]
    Run the notebooks at the size of a profile (default: tiny). --dry-run lists what would be
    built, and its cost; --set changes a setting of the profile, such as seeds=3; --from and --only
    choose notebooks by number, and --only may be repeated. Output: figures/<profile>/ for a full
    run of an unchanged profile, artifacts/figures/ otherwise. A long run of all notebooks is shared
    by two processes, on a CPU with several cores and memory for both; --alone: by one.
accelerate launch [...] -m cpo_suite make [--profile P] [--set key=value]... [--only NAME]...
    Build every artifact that several processes share, in the processes launched: see
    docs/several_gpus.md. --only builds what rows need, by id or prefix of ids (t1, t2/ANR), or the
    artifacts of a stage: `python -m cpo_suite make --only unhelpful`, without GPUs
./run_all.sh rehearse [--profile P] [--set key=value]...
    Build all artifacts of a profile (default: paper-smoke) in one start of its processes, then
    show seconds and memory, estimated and taken
./run_all.sh lab [arguments of jupyter lab]   JupyterLab in the same environment
./run_all.sh site [--profile P]               a website of the notebooks and their results, in site/
./run_all.sh test [arguments of pytest]       ruff, mypy and pytest
./run_all.sh doctor [--profile P] [--set ...] what is missing here, each with its remedy
./run_all.sh convert FOLDER_OR_HUB_NAME TARGET_FOLDER
    A model's pytorch_model.bin into safetensors; no code is executed from it
./run_all.sh profiles                         the profiles: purpose and requirements
./run_all.sh verdicts [--model M] [--export FILE.csv]   the cost of judging, and every verdict;
    --forget refused (or: unclear, cut, empty, "too long") makes the next run ask these again
./run_all.sh judge-quality [--profile P] [--judge KIND] [--judge-model M] [--pairs FILE.jsonl]
    a judge's agreement with people, on labelled pairs (default: PandaLM's, in CPO_DATA), beside the
    longer response, a coin and one person. KIND: longest, random, local, openai, recorded:gpt-3.5
./run_all.sh diff RUN RUN                     compare two runs, such as figures/tiny
./run_all.sh help

An active conda or virtual environment is used; otherwise .venv is created beside run_all.sh.
CPO_DATA: the folder of local data. CPO_ARTIFACTS: the folder of artifacts (default: artifacts/).
CPO_BROWSER: a Chromium for the browser tests (default: any installed; without one they skip).
"""

# `run_all.sh` runs this file before the environment exists, to refuse wrong arguments: it imports
# only the standard library. `python -m cpo_suite` parses with the same function.
from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

FORGETTABLE = ("unclear", "cut", "empty", "refused", "too long")
Options = Mapping[str, Mapping[str, Any]]  # keyword arguments of `add_argument`, by option
PROFILE: Options = {"--profile": {"default": "tiny"}}
SETTINGS: Options = {"--set": {"action": "append", "default": [], "dest": "settings"}}
SELECTION: Options = {
    "--dry-run": {"action": "store_true"},
    "--alone": {"action": "store_true"},
    "--from": {"dest": "start_from"},
    "--only": {"action": "append", "default": []},
}
COMMANDS: Mapping[str, Options] = {
    "run": {**PROFILE, **SETTINGS, **SELECTION},
    "make": {**PROFILE, **SETTINGS, "--only": SELECTION["--only"]},
    "rehearse": {"--profile": {"default": "paper-smoke"}, **SETTINGS},
    "convert": {"source": {}, "target": {}},
    "lab": {},
    "site": PROFILE,
    "test": {},
    "doctor": {**PROFILE, **SETTINGS},
    "profiles": {},
    "verdicts": {"--model": {}, "--export": {}, "--forget": {"choices": FORGETTABLE}},
    "judge-quality": {
        **PROFILE,
        **SETTINGS,
        "--judge": {},
        "--judge-model": {"dest": "model"},
        "--pairs": {},
    },  # fmt: skip
    "diff": {"before": {}, "after": {}},
}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command line; without a command, those of `run`.

    Raises:
        SystemExit: 0 after printing help, 2 after an error message.
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
        for option, keywords in options.items():
            command.add_argument(option, **keywords)
    parsed, unknown = parser.parse_known_args(words)
    if unknown:
        near = difflib.get_close_matches(unknown[0], COMMANDS[parsed.command], n=1, cutoff=0.5)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        parser.error(f"unknown argument '{unknown[0]}'.{hint}")
    return parsed


if __name__ == "__main__":
    parse(sys.argv[1:])
    sys.exit(100)  # to `run_all.sh`: the arguments are valid
