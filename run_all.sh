#!/usr/bin/env bash
# One command for the whole suite: creates its environment on the first start, then runs
# `python -m cpo_suite` in it. `./run_all.sh help` lists the commands.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# Make paths absolute: notebooks run in another folder.
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
[[ ${CONDA_DEFAULT_ENV:-} == base && -z ${VIRTUAL_ENV:-} ]] && prefix="" # never install into conda's base
prefix=${prefix:-$root/.venv}
python="$prefix/bin/python"
starter="" # any Python that can parse the arguments and create .venv
for candidate in "$python" python3 python3.11 python3.12 python3.13 python; do
  if suitable "$candidate"; then starter=$candidate; break; fi
done
if [[ -z $starter ]]; then
  echo "Python 3.11, 3.12 or 3.13 is needed and none was found. Install one, or use conda:" >&2
  echo "  conda env create -f environment.yml && conda activate cpo && ./run_all.sh" >&2
  exit 2
fi

# Wrong arguments are reported before anything is installed.
case "${1:-}" in
  lab | test) ;; # their arguments are those of JupyterLab and pytest
  *)
    code=0
    "$starter" -I "$root/cpo_suite/run/command_line.py" "$@" || code=$?
    [[ $code == 100 ]] || exit "$code" # 0 after help, 2 after a message
    ;;
esac

# The stamp is written last: an interrupted installation leaves none and is repeated.
stamp="$prefix/.cpo-installed"
wanted="$(cat "$root/requirements.lock" "$root/pyproject.toml" | cksum) $root"
if [[ ! -f $stamp || "$(<"$stamp")" != "$wanted" || ! -x $python ]]; then
  [[ $prefix != "$root/.venv" || -x $python ]] || "$starter" -m venv "$prefix"
  if ! suitable "$python"; then
    echo "The active environment, $prefix, has no Python 3.11, 3.12 or 3.13." >&2
    echo "Deactivate it (then .venv is made), or activate another." >&2
    exit 2
  fi
  echo "Installing the pinned packages into $prefix: once, 3 to 10 minutes and about 2.5 GB of disk"
  rm -f "$stamp"
  pip=("$python" -m pip install --quiet --disable-pip-version-check)
  # PyTorch's build without CUDA, gigabytes smaller, is on an index of its own.
  if [[ "$(uname -sm)" =~ ^Linux\ (x86_64|aarch64)$ ]] && ! command -v nvidia-smi >/dev/null &&
    ! "$python" -c 'import torch' 2>/dev/null; then
    torch="$(grep -E '^torch==' "$root/requirements.lock")"
    "${pip[@]}" --no-deps --timeout 10 --retries 1 \
      --index-url https://download.pytorch.org/whl/cpu "$torch" 2>/dev/null ||
      echo "PyTorch's CPU build is not available here: pip may install the CUDA build, some GB larger"
  fi
  "${pip[@]}" -r "$root/requirements.lock"
  "${pip[@]}" --no-deps --no-build-isolation -e "$root"
  # Notebooks name the kernel `cpo`; this one lies inside the environment and belongs to it alone.
  "$python" -m ipykernel install --sys-prefix --name cpo --display-name CPO >/dev/null
  echo "$wanted" >"$stamp"
  echo "Installed."
fi
# A kernelspec of the same name in the user's home does not win over the environment's.
export JUPYTER_PREFER_ENV_PATH=1

case "${1:-}" in
  lab)
    # Without JupyterLab's news and its catalogue of extensions: this lab calls nobody.
    export JUPYTER_CONFIG_PATH="$root/jupyter${JUPYTER_CONFIG_PATH:+:$JUPYTER_CONFIG_PATH}"
    exec "$python" -m jupyter lab --notebook-dir="$root/notebooks" "${@:2}"
    ;;
  test)
    cd "$root"
    "$python" -m ruff check cpo cpo_suite exercises notebooks tests benchmarks docs
    "$python" -m mypy
    # In parallel with one thread each: more threads would contend.
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    # Files in the order that tests/conftest.py gives them, the longest first.
    exec "$python" -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder "${@:2}"
    ;;
  *)
    exec "$python" -m cpo_suite "$@"
    ;;
esac
