#!/usr/bin/env bash
# tests/ becomes the house's tree: tests/cpo/..., tests/cpo_suite/...; helpers stay in tests/.
# Run once, in the root of a clean checkout, after all branches are merged:
#   bash move_tests.sh && ruff check --select I --fix tests && git add -u && ruff check tests
#   python -m pytest --collect-only -q | tail -3
# It only stages and edits; look at `git diff --cached -M` and commit. A test that is gone (merged
# into another, or renamed) is named and passed over; one that is new must be put into the table.
set -euo pipefail
cd "$(git rev-parse --show-toplevel)"

moves() {
  cat <<'TABLE'
test_losses.py                    cpo/test_losses.py
test_logprobs.py                  cpo/test_scoring.py
test_scoring.py                   cpo/test_scoring.py
test_public_names.py              cpo/test_public_names.py
test_registry.py                  cpo/test_registry.py
test_negatives.py                 cpo/test_negatives.py
test_generation.py                cpo/test_generation.py
test_ranking_and_ensembling.py    cpo/test_ranking_and_ensembling.py
test_scheduled_sampling.py        cpo/test_scheduled_sampling.py
test_training.py                  cpo/test_training.py
test_own_code.py                  cpo/test_own_code.py
test_verification.py              cpo/test_verification.py
test_forward_pass.py              cpo/engine/test_forward_pass.py
test_vocabulary_head.py           cpo/engine/test_vocabulary_head.py
test_precision.py                 cpo/engine/test_precision.py
test_processes.py                 cpo/engine/test_processes.py
test_data.py                      cpo/data/test_data.py
test_gguf_files.py                cpo/models/test_gguf_files.py
test_model_folders.py             cpo/models/test_model_folders.py
test_weights.py                   cpo/models/test_weights.py
test_chat.py                      cpo/evaluation/test_chat.py
test_comparing.py                 cpo/evaluation/test_comparing.py
test_intervals.py                 cpo/evaluation/test_intervals.py
test_judge_prompts.py             cpo/evaluation/test_judge_prompts.py
test_judging.py                   cpo/evaluation/test_judging.py
test_metrics.py                   cpo/evaluation/test_metrics.py
test_model_judges.py              cpo/evaluation/test_model_judges.py
test_replies.py                   cpo/evaluation/test_replies.py
test_unhelpful.py                 cpo/evaluation/test_unhelpful.py
test_reply_store.py               cpo/evaluation/test_reply_store.py
test_verdict_store.py             cpo/evaluation/test_verdict_store.py
test_profiles.py                  cpo_suite/test_profile.py
test_paper_profile.py             cpo_suite/test_paper_profile.py
test_store.py                     cpo_suite/test_store.py
test_costs.py                     cpo_suite/test_costs.py
test_experiments.py               cpo_suite/test_suite.py
test_own_rows.py                  cpo_suite/test_own_rows.py
test_command_line.py              cpo_suite/test_command_line.py
test_world.py                     cpo_suite/world/test_world.py
test_claims.py                    cpo_suite/report/test_claims.py
test_figures.py                   cpo_suite/report/test_figures.py
test_page.py                      cpo_suite/report/test_page.py
test_plots.py                     cpo_suite/report/test_plots.py
test_tables.py                    cpo_suite/report/test_tables.py
test_site.py                      cpo_suite/report/test_site.py
test_verdict_tables.py            cpo_suite/report/test_verdict_tables.py
test_doctor.py                    cpo_suite/run/test_doctor.py
test_runner.py                    cpo_suite/run/test_runner.py
test_run_diff.py                  cpo_suite/run/test_run_diff.py
test_killed_run.py                cpo_suite/run/test_killed_run.py
test_several_processes.py         cpo_suite/run/test_several_processes.py
test_smoke.py                     cpo_suite/run/test_smoke.py
test_widgets.py                   cpo_suite/teaching/test_widgets.py
test_exercises.py                 cpo_suite/teaching/test_exercises.py
test_browser.py                   test_browser.py
test_environment.py               test_environment.py
test_house.py                     test_house.py
TABLE
}

for path in tests/test_*.py; do
  moves | grep -q "^${path#tests/} " || { echo "$path: put it into the table first" >&2; exit 1; }
done
while read -r from to; do
  if [[ ! -f tests/$from ]]; then
    echo "tests/$from is not there: passed over" >&2
  elif [[ $from != "$to" ]]; then
    mkdir -p "tests/$(dirname "$to")"
    git mv "tests/$from" "tests/$to"
  fi
done < <(moves)

moves | python3 -c '
import re
import subprocess
import sys
from pathlib import Path

moves = dict(line.split() for line in sys.stdin)
modules = {old[:-3]: Path(new).stem for old, new in moves.items() if old[:-3] != Path(new).stem}
moved = {new for old, new in moves.items() if old != new and Path("tests", new).is_file()}
tests = [path for path in Path("tests").rglob("*.py") if "__pycache__" not in path.parts]


def edit(path, *changes):
    text = new = path.read_text("utf-8")
    for pattern, replacement in changes:
        new = re.sub(pattern, replacement, new)
    if new != text:
        path.write_text(new, "utf-8")
        subprocess.run(["git", "add", str(path)], check=True)


# Tests that import from renamed ones.
for path in tests:
    edit(path, *((rf"\b(from|import) {old}\b", rf"\1 {new}") for old, new in modules.items()))

# Paths from a moved test to tests/ and to the root. A script that a test runs in another process
# needs the root as well: of `tests` and the root both have a folder `cpo`, and the package wins
# wherever it stands on the path, but it has to be on it.
for new in moved:
    deeper = len(Path(new).parts) - 1
    before = Path("tests", new).read_text("utf-8")
    edit(
        Path("tests", new),
        (r"Path\(__file__\)\.parents\[(\d)\]", lambda m: f"Path(__file__).parents[{int(m[1]) + deeper}]"),
        (r"str\(Path\(__file__\)\.parent\)", f"[str(Path(__file__).parents[{deeper + 1}] / name) for name in (\"\", \"tests\", \"tests/cpo\")]"),
        (r"\bsys\.path\.insert\(0, (\{\w+!r\})\)", r"sys.path[:0] = \1"),
    )
    if "__file__).parent)" in before or "sys.path" in before:
        print(f"tests/{new}: puts folders on sys.path for another process; look at the change")
    if re.search(r"Path\(__file__\)\.parent\b", Path("tests", new).read_text("utf-8")):
        print(f"tests/{new}: still has Path(__file__).parent; mend it by hand")

# Words that name a moved test.
names = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True).stdout
for name in names.splitlines():
    path = Path(name)
    if name.startswith("figures/") or path.suffix not in {".py", ".md", ".toml", ".sh", ".yml", ".ipynb", ""}:
        continue
    edit(path, *((rf"\btests/{re.escape(old)}\b", f"tests/{new}") for old, new in moves.items() if old != new))

# A line that its path makes too long.
killed = Path("tests/cpo_suite/run/test_killed_run.py")
if killed.is_file():
    edit(killed, (r"` for as many as one likes\. They fall\n", "` for\nas many as one likes. They fall\n"))

# Helpers, and tests from which others import, are found by their plain names, as before. The root
# comes along: without it `tests/cpo` would be taken for the package where the project is installed
# as editable.
shared = sorted({
    str(Path("tests", new).parent)
    for new in moved
    for path in Path("tests").rglob("test_*.py")
    if path.name != Path(new).name
    and re.search(rf"\b(from|import) {Path(new).stem}\b", path.read_text("utf-8"))
})
quoted = ", ".join(f"\"{folder}\"" for folder in [".", "tests", *shared])
edit(
    Path("pyproject.toml"),
    (r"(?m)^testpaths = \[\"tests\"\]\n", f"testpaths = [\"tests\"]\npythonpath = [{quoted}]\n"),
)
'
echo "Moved. No __init__.py anywhere below tests/: with one, tests/cpo would hide the package." >&2
