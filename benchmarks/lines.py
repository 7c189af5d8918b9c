"""Size of the code and direction of its imports: `python -m benchmarks.lines`, from the root.

Prints lines of code by file and by budget, and imports that violate `FLOORS`. Blank lines, comments
and docstrings do not count. `tests/test_house.py` enforces both.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]

METHOD = (
    "losses", "scoring", "negatives", "ranking", "generation", "training", "scheduled_sampling",
    "ensembling", "plan",
)  # fmt: skip

# Upper limits in lines of code. The world is mostly vocabulary: no budget counts it.
BUDGETS = {
    "the method": 1000,  # the files of `METHOD`
    "cpo": 2500,
    "cpo_suite": 3000,  # without its world
    "a file": 450,
    "a function": 50,
}

# From the ground up: a module imports from its own floor and lower ones. A package stands for all
# its modules that are not listed themselves; `cpo` and `cpo_suite` stand for themselves alone, so
# that every new module must be put on a floor.
FLOORS = [
    line.split()
    for line in """\
cpo.losses cpo.neighbours cpo.objectives cpo.plan cpo.registry
cpo.engine cpo.data cpo.models
cpo.scoring
cpo.sentence_encoder
cpo.generation cpo.negatives cpo.ranking cpo.scheduled_sampling cpo.ensembling
cpo.training cpo.evaluation
cpo.held_out
cpo
cpo_suite.paper cpo_suite.profile_files
cpo_suite.profile cpo_suite.provenance cpo_suite.store cpo_suite.world
cpo_suite.corpora cpo_suite.estimate cpo_suite.precision cpo_suite.judges cpo_suite.training_memory
cpo_suite.calibration cpo_suite.artifacts cpo_suite.draws cpo_suite.iterations
cpo_suite.suite cpo_suite.launching
cpo_suite.report
cpo_suite.run cpo_suite.teaching
cpo_suite cpo_suite.__main__
""".splitlines()
]

_LAYOUT = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENDMARKER,
}  # fmt: skip


# --- Size -----------------------------------------------------------------------------------------


def code_lines(source: str) -> set[int]:
    """Line numbers, from 1, that hold code rather than blanks, comments or docstrings."""
    numbers: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _LAYOUT:
            numbers.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            match node.body:
                case [ast.Expr(ast.Constant(str())) as docstring, *_]:
                    numbers.difference_update(
                        range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1)
                    )
    return numbers


def function_lengths(source: str) -> dict[str, int]:
    """Lines of code of each function, by name and line, including nested functions."""
    code = code_lines(source)
    return {
        f"{node.name}:{node.lineno}": len(
            code.intersection(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        )
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def sources(root: Path = ROOT) -> dict[str, str]:
    """The source of every module of both packages, by path from the root."""
    paths = [path for package in ("cpo", "cpo_suite") for path in (root / package).rglob("*.py")]
    return {path.relative_to(root).as_posix(): path.read_text("utf-8") for path in sorted(paths)}


def sizes(texts: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """Lines of code by file or function for each of `BUDGETS`; for a total, its files.

    Args:
        texts: sources of modules by path, as from `sources`.
    """
    counted = {path: text for path, text in texts.items() if "cpo_suite/world/" not in path}
    files = {path: len(code_lines(text)) for path, text in counted.items()}
    functions = {
        f"{path}:{name}": length
        for path, text in counted.items()
        for name, length in function_lengths(text).items()
    }
    method = {f"cpo/{name}.py" for name in METHOD}
    return {
        "the method": {path: length for path, length in files.items() if path in method},
        "cpo": {path: length for path, length in files.items() if path.startswith("cpo/")},
        "cpo_suite": {p: length for p, length in files.items() if p.startswith("cpo_suite/")},
        "a file": files,
        "a function": functions,
    }


def over_budget(name: str, lengths: Mapping[str, int]) -> list[str]:
    """Parts larger than `BUDGETS[name]` with size and limit, the largest first."""
    if not name.startswith("a "):
        lengths = {name: sum(lengths.values())}
    return [
        f"{part}: {length}, at most {BUDGETS[name]}"
        for part, length in sorted(lengths.items(), key=lambda item: -item[1])
        if length > BUDGETS[name]
    ]


# --- Imports --------------------------------------------------------------------------------------


def imports(texts: Mapping[str, str]) -> dict[str, set[str]]:
    """The modules of both packages that each module imports, at any place in it.

    `from package import module` imports the module. The implicit import of a package's `__init__`
    does not count.

    Args:
        texts: sources of modules by path, as from `sources`.
    """
    modules = {_module(path): path for path in texts}
    return {
        module: {name for name in _imported(module, path, texts[path], modules) if name != module}
        for module, path in modules.items()
    }


def _module(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _imported(module: str, path: str, text: str, modules: Mapping[str, str]) -> Iterator[str]:
    package = module if path.endswith("__init__.py") else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            around = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(around if node.level else ()), *filter(None, [node.module])])
            names = [
                f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules else base
                for alias in node.names
            ]
        else:
            continue
        yield from (name for name in names if name in modules)


def floor_of(module: str) -> int:
    """The index of a module's floor in `FLOORS`; ValueError if it has none."""
    parts = module.split(".")
    packages = [".".join(parts[:end]) for end in range(len(parts) - 1, 1, -1)]
    for name in (module, *packages):
        for floor, names in enumerate(FLOORS):
            if name in names:
                return floor
    raise ValueError(f"{module} is on no floor: name it in FLOORS of benchmarks/lines.py")


def upward(graph: Mapping[str, set[str]]) -> list[str]:
    """Imports from a higher floor, which include any import of `cpo_suite` in `cpo`."""
    return [
        f"{module} imports {imported}, which is above it"
        for module, below in sorted(graph.items())
        for imported in sorted(below)
        if floor_of(imported) > floor_of(module)
    ]


def circles(graph: Mapping[str, set[str]]) -> list[str]:
    """A cycle of imports as `a -> b -> a`; [] without any."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [" -> ".join(reversed(error.args[1]))]
    return []


# --- The table ------------------------------------------------------------------------------------


def main() -> None:
    """Print lines by file and budget, then violations of budgets and floors."""
    texts = sources()
    measured, graph = sizes(texts), imports(texts)
    for path, text in texts.items():
        longest = max(function_lengths(text).values(), default=0)
        print(f"{len(code_lines(text)):6}  {path}, longest function {longest}")
    for name, most in BUDGETS.items():
        lengths = measured[name].values()
        size = max(lengths) if name.startswith("a ") else sum(lengths)
        print(f"{size:6}  {name}, at most {most}")
    for name in BUDGETS:
        print(*over_budget(name, measured[name]), sep="\n")
    print(*upward(graph), *circles(graph), sep="\n")


if __name__ == "__main__":
    main()
