"""The command line: `python -m cpo_suite run`, `site`, `doctor`, `profiles`, `verdicts`, `diff`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from cpo.evaluation.judge_prompts import INVALID_KINDS
from cpo.own_code import nearest
from cpo_suite.profile import ROOT, ProfileError, load_profile, profile_names

BAD_INPUT, INTERRUPTED = 2, 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"{message}\nSee `./run_all.sh help`.", file=sys.stderr)
        raise SystemExit(BAD_INPUT)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m cpo_suite", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run the notebooks", allow_abbrev=False)
    run.add_argument("--profile", default="tiny", help="a name, or the path of a YAML file")
    run.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="key=value",
        dest="settings",
        help="change a setting of the profile or a notebook's parameter",
    )
    run.add_argument(
        "--dry-run",
        action="store_true",
        help="say what would be made, with time, memory, disk and money",
    )
    run.add_argument("--from", metavar="NN", dest="start_from", help="begin at this notebook")
    run.add_argument(
        "--only",
        metavar="NN",
        action="append",
        default=[],
        help="run this notebook alone; may be repeated",
    )
    site = commands.add_parser("site", help="build the book of the notebooks", allow_abbrev=False)
    site.add_argument("--profile", default="tiny", help="whose results it shows")
    doctor = commands.add_parser("doctor", help="say what is missing here", allow_abbrev=False)
    doctor.add_argument("--profile", default="tiny")
    doctor.add_argument("--set", action="append", default=[], metavar="key=value", dest="settings")
    commands.add_parser("profiles", help="list the profiles", allow_abbrev=False)
    verdicts = commands.add_parser(
        "verdicts", help="list, price and export verdicts that were paid for", allow_abbrev=False
    )
    verdicts.add_argument("--export", metavar="FILE.csv", help="write every verdict to a file")
    verdicts.add_argument("--model", help="only those of this judging model")
    verdicts.add_argument(
        "--forget",
        choices=INVALID_KINDS,
        help="ask again, in the next run, for invalid verdicts of this kind",
    )
    diff = commands.add_parser("diff", help="say what differed between two runs")
    diff.add_argument("one", help="a folder of results, such as figures/tiny, or its run.json")
    diff.add_argument("other")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 (failed), 2 (bad input) or 130 (stopped)."""
    try:
        options, unknown = _parser().parse_known_args(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    if unknown:
        hint = nearest(unknown[0], ("--profile", "--set", "--dry-run", "--from", "--only"))
        print(f"unknown argument '{unknown[0]}'.{hint} See `./run_all.sh help`.", file=sys.stderr)
        return BAD_INPUT
    try:
        if options.command == "profiles":
            return _profiles()
        if options.command == "verdicts":
            from cpo_suite.report.verdict_report import report

            return report(options.model, options.export, options.forget)
        if options.command == "diff":
            from cpo_suite.run import run_diff

            return run_diff.report(options.one, options.other)
        if options.command == "site":
            return _site(options.profile)
        if options.command == "doctor":
            from cpo_suite.run import doctor

            findings = doctor.diagnose(options.profile, options.settings)
            print(doctor.report(findings))
            return int(any(not item.ok for item in findings))
        return _run(options)
    except ProfileError as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(
            "\nStopped. What was finished is kept; the same command goes on from there.",
            file=sys.stderr,
        )
        return INTERRUPTED


def _run(options: argparse.Namespace) -> int:
    from cpo.data import DataError
    from cpo_suite.run.runner import BadInput, run_suite

    try:
        return run_suite(
            options.profile, options.settings, options.only, options.start_from, options.dry_run
        )
    except (BadInput, DataError) as error:
        print(error, file=sys.stderr)
        return BAD_INPUT


def _site(profile: str) -> int:
    from cpo_suite.report import site
    from cpo_suite.run import run_record

    folders = [ROOT / "figures", run_record.artifacts_folder() / "figures"]
    results = site.results_of(profile, folders)
    if not results.is_dir():
        load_profile(profile, substitute=False)  # refuses a name that there is not
        print(f"Profile {profile} has not been run here: the notebooks are shown without outputs.")
    code = site.build(results, ROOT / "site")
    if code == 0:
        print(f"The site is built, and opens offline: {ROOT / 'site' / 'index.html'}")
    return code


def _profiles() -> int:
    for name in profile_names():
        profile = load_profile(name, substitute=False)
        print(
            f"{name:8} {profile.description}\n{'':8} {profile.hardware}; "
            f"about {profile.minutes:g} minutes, {profile.memory_gb:g} GB of memory"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
