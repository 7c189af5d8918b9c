"""Entry point of `python -m cpo_suite`, which `./run_all.sh` calls."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from cpo_suite.profile import ROOT, ProfileError, load_profile
from cpo_suite.profile_files import profile_names
from cpo_suite.run.command_line import parse
from cpo_suite.store import artifacts_folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code: 0, 1 (failed), 2 (bad input) or 130 (stopped)."""
    try:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
        return _dispatch(options)
    except SystemExit as stop:
        return int(stop.code or 0)
    except ProfileError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        message = "\nStopped. Finished work is kept; the same command resumes."
        print(message, file=sys.stderr)
        return 130


def _dispatch(options: argparse.Namespace) -> int:
    """Import a command only when it is called: listing profiles needs no papermill."""
    match options.command:
        case "run":
            from cpo_suite.run import runner

            return runner.run_suite(
                options.profile,
                options.settings,
                options.only,
                options.start_from,
                options.dry_run,
                options.alone,
            )
        case "make":
            from cpo_suite.run import make

            return make.build_profile(options.profile, options.settings, options.only)
        case "rehearse":
            from cpo_suite.run import rehearsal

            return rehearsal.rehearse(options.profile, options.settings)
        case "convert":
            return _convert(options.source, options.target)
        case "site":
            return _site(options.profile)
        case "doctor":
            from cpo_suite.run import doctor

            return doctor.print_findings(options.profile, options.settings)
        case "verdicts":
            from cpo_suite.report import verdict_tables

            return verdict_tables.print_verdicts(options.model, options.export, options.forget)
        case "judge-quality":
            from cpo_suite.run import judge_quality

            return judge_quality.print_quality(
                options.profile, options.settings, options.judge, options.model, options.pairs
            )
        case "diff":
            from cpo_suite.run import run_diff

            return run_diff.print_difference(options.before, options.after)
        case "profiles":
            return _profiles()
        case command:
            raise ProfileError(f"start it with `./run_all.sh {command}`")


def _convert(source: str, target: str) -> int:
    from cpo.models import pickles, weights

    try:
        pickles.convert(source, Path(target).expanduser().absolute())
    except (FileNotFoundError, weights.ModelFolderError) as error:
        raise ProfileError(str(error)) from None
    return 0


def _site(profile: str) -> int:
    from cpo_suite.report import site

    results = site.results_of(profile, [ROOT / "figures", artifacts_folder() / "figures"])
    if not results.is_dir():
        load_profile(profile)  # refuses an unknown name
        print(f"Profile {profile} has not been run here: the notebooks are shown without outputs.")
    code = site.build(results, ROOT / "site")
    if code == 0:
        print(f"Built the site, which opens offline: {ROOT / 'site' / 'index.html'}")
    return code


def _profiles() -> int:
    for name in profile_names():
        profile = load_profile(name)
        print(
            f"{name:8} {profile.description}\n{'':8} {profile.hardware}; "
            f"about {profile.minutes:g} minutes, {profile.memory_gb:g} GB of memory"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
