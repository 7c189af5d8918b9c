#!/usr/bin/env bash
# One command for the whole suite: makes its environment on the first start, then runs.
set -euo pipefail

help() {
  cat <<'TEXT'
./run_all.sh [--profile NAME|FILE.yaml] [--set key=value]... [--dry-run] [--from NN] [--only NN]
    Run the notebooks at the size of a profile (default: tiny). --dry-run says what would be made and
    what it takes; --set changes a setting of the profile, such as seeds=3, or a notebook's parameter;
    --from and --only choose notebooks by number. Output: figures/<profile>/ for a full, unchanged
    run, artifacts/figures/ otherwise.
./run_all.sh lab [arguments of jupyter lab]     JupyterLab in the same environment
./run_all.sh site [--profile P]                 a book of the notebooks and their results, into site/
./run_all.sh test [arguments of pytest]         ruff, mypy and pytest
./run_all.sh doctor [--profile P]               what is missing here, each with what to do
./run_all.sh profiles                           the profiles, what they are for and what they need
./run_all.sh verdicts [--model M] [--export FILE.csv]   what judging has cost, and every verdict;
    --forget refused (or: unclear, cut, empty, "too long") has the next run ask for these again
./run_all.sh diff RUN RUN                       what differed between two runs, such as figures/tiny
./run_all.sh help

An active conda or virtual environment is used; otherwise .venv is made beside this file.
CPO_DATA names the folder of local data, CPO_ARTIFACTS the folder for artifacts (default: artifacts/),
CPO_BROWSER a Chromium for the browser tests (default: one that is found; without one they skip).
TEXT
}

# What is wrong with the arguments is said before anything is installed.
refuse() {
  echo "$1" >&2
  echo "See ./run_all.sh help." >&2
  exit 2
}
command=run
case "${1:-}" in
  help | -h | --help) help; exit 0 ;;
  lab | site | test | doctor | profiles | verdicts | diff | run) command=$1; shift ;;
  "" | -*) ;;
  *) refuse "unknown command '$1': lab, site, test, doctor, profiles, verdicts, diff or help" ;;
esac
if [[ $command == run || $command == site || $command == doctor || $command == profiles ]]; then
  previous=""
  for argument in "$@"; do
    case "$previous" in --profile | --set | --from | --only) previous=""; continue ;; esac
    case "$argument" in
      -h | --help) help; exit 0 ;;
      --profile=* | --set=* | --from=* | --only=* | --dry-run) ;;
      --profile | --set | --from | --only) previous=$argument ;;
      *) refuse "unknown argument '$argument': --profile, --set, --dry-run, --from or --only" ;;
    esac
  done
  [[ -z $previous ]] || refuse "$previous needs a value"
fi

root="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# Relative to where the command was typed; notebooks run elsewhere.
if [[ -d ${CPO_DATA:-} ]]; then
  CPO_DATA="$(cd "$CPO_DATA" && pwd)"
  export CPO_DATA
fi
if [[ -n ${CPO_ARTIFACTS:-} && $CPO_ARTIFACTS != /* ]]; then
  export CPO_ARTIFACTS="$PWD/$CPO_ARTIFACTS"
fi

suitable() { # is this a Python that the suite runs on?
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null
}

prefix=${VIRTUAL_ENV:-${CONDA_PREFIX:-}}
[[ ${CONDA_DEFAULT_ENV:-} == base && -z ${VIRTUAL_ENV:-} ]] && prefix="" # not into conda's own
if [[ -n $prefix ]]; then
  python="$prefix/bin/python"
else
  prefix="$root/.venv"
  python="$prefix/bin/python"
fi

# The stamp is written last: an interrupted installation leaves none and is done again.
stamp="$prefix/.cpo-installed"
wanted="$(cat "$root/requirements.lock" "$root/pyproject.toml" | cksum) $root"
if [[ ! -f $stamp || "$(<"$stamp")" != "$wanted" || ! -x $python ]]; then
  if [[ $prefix == "$root/.venv" && ! -x $python ]]; then
    base=""
    for candidate in python3 python3.11 python3.12 python3.13 python; do
      if suitable "$candidate"; then base=$candidate; break; fi
    done
    if [[ -z $base ]]; then
      echo "Python 3.11, 3.12 or 3.13 is needed and none was found. Install one, or use conda:" >&2
      echo "  conda env create -f environment.yml && conda activate cpo && ./run_all.sh" >&2
      exit 2
    fi
    "$base" -m venv "$prefix"
  fi
  if ! suitable "$python"; then
    echo "The active environment, $prefix, has no Python 3.11, 3.12 or 3.13." >&2
    echo "Deactivate it (then .venv is made), or activate another." >&2
    exit 2
  fi
  echo "Installing the pinned packages into $prefix: once, 3 to 10 minutes and about 2.5 GB of disk"
  rm -f "$stamp"
  # PyTorch's build without CUDA, gigabytes smaller, is on an index of its own.
  if [[ "$(uname -sm)" =~ ^Linux\ (x86_64|aarch64)$ ]] && ! command -v nvidia-smi >/dev/null &&
    ! "$python" -c 'import torch' 2>/dev/null; then
    torch="$(grep -E '^torch==' "$root/requirements.lock")"
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --timeout 10 \
      --retries 1 --index-url https://download.pytorch.org/whl/cpu "$torch" 2>/dev/null ||
      echo "PyTorch's CPU build is not to be had here: pip may take the CUDA build, some GB more"
  fi
  "$python" -m pip install --quiet --disable-pip-version-check -r "$root/requirements.lock"
  "$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
    -e "$root"
  # Notebooks name the kernel `cpo`; this one lies inside the environment and belongs to it alone.
  "$python" -m ipykernel install --sys-prefix --name cpo --display-name CPO >/dev/null
  echo "$wanted" >"$stamp"
  echo "Installed."
fi
# A kernelspec of the same name in the user's home does not win over the environment's.
export JUPYTER_PREFER_ENV_PATH=1

case "$command" in
  lab)
    # Without JupyterLab's news and its catalogue of extensions: this lab calls nobody.
    export JUPYTER_CONFIG_PATH="$root/jupyter${JUPYTER_CONFIG_PATH:+:$JUPYTER_CONFIG_PATH}"
    exec "$python" -m jupyter lab --notebook-dir="$root/notebooks" "$@"
    ;;
  test)
    cd "$root"
    "$python" -m ruff check cpo cpo_suite exercises notebooks tests benchmarks docs
    "$python" -m mypy
    # Side by side, each on one thread: threads of several would wait for each other.
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    exec "$python" -m pytest -n auto --maxprocesses 4 --dist loadfile "$@"
    ;;
  *)
    exec "$python" -m cpo_suite "$command" "$@"
    ;;
esac
