"""The house in numbers, and its rule: which room may import which.

`--check` fails on an import that breaks the rule, and names its line.

python scripts/structure.py [--check] [ROOT]        ROOT: another checkout, to compare with
"""

import argparse
import ast
import json
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

PACKAGE = "frl_dgt_nb"
# room -> rooms it may import, beside itself; what is not listed is a file at the top, such as `files`
MAY_IMPORT = {
    "files": set(),
    "data": {"files"},
    "model": {"files"},
    "training": {"files", "data", "model"},
    "simulate": {"files", "data", "model"},
    "pictures": {"files", "data", "model", "training"},
    "study": {"files", "data", "model", "training", "pictures"},
    "widgets": {"files", "data", "model", "training", "pictures", "study"},
    "command": {"files", "data", "model", "training", "simulate", "pictures", "study", "widgets"},
}
CLOSED = {
    "training": {"data.spotting"}
}  # modules that a room may not import although it may import their room
ONLY_IN = {"ipywidgets": "widgets", "plotly": "widgets", "anywidget": "widgets"}
WIDTH, LIMIT, LONG_FUNCTION, LONG_MODULE = 88, 120, 25, 400


class Arrow(NamedTuple):
    "One import: who, of what, in which line."

    source: str  # dotted, without the package
    target: str
    line: int


def modules(root: Path) -> dict[str, Path]:
    "Dotted name -> file, of everything but `__init__.py` and nbdev's index."
    home = root / PACKAGE
    paths = sorted(path for path in home.rglob("*.py") if not path.name.startswith("_"))
    return {".".join(path.relative_to(home).with_suffix("").parts): path for path in paths}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported_names(name: str, node: ast.AST) -> list[str]:
    "Absolute dotted names that an import statement of a module asks for."
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = [PACKAGE, *name.split(".")][: -node.level] if node.level else []
    module = ".".join([*base, *([node.module] if node.module else [])])
    return [f"{module}.{alias.name}" for alias in node.names]


def arrows(files: dict[str, Path]) -> list[Arrow]:
    "Imports between modules of the package, those inside of functions too."
    found = []
    for name, path in files.items():
        for node in ast.walk(tree(path)):
            for wanted in imported_names(name, node):
                inner = wanted.removeprefix(PACKAGE + ".")
                target = next(
                    (each for each in (inner, inner.rpartition(".")[0]) if each in files), None
                )
                if wanted.startswith(PACKAGE) and target and target != name:
                    found.append(Arrow(name, target, node.lineno))
    return sorted(set(found))


def room(name: str) -> str:
    "The room of a module: its sub-package, or the module itself at the top."
    return name.split(".")[0]


def longest_chain(graph: dict[str, set[str]]) -> int:
    "Number of nodes on the longest path; 0 if there is a circle."
    depth: dict[str, int] = {}
    try:
        for name in TopologicalSorter(graph).static_order():
            depth[name] = 1 + max((depth[target] for target in graph.get(name, ())), default=0)
    except CycleError:
        return 0
    return max(depth.values(), default=0)


def graph_of(found: list[Arrow], by=lambda name: name) -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {}
    for arrow in found:
        source, target = by(arrow.source), by(arrow.target)
        if source != target:
            graph.setdefault(source, set()).add(target)
    return graph


def broken_rules(files: dict[str, Path], found: list[Arrow]) -> list[str]:
    "Every import that goes where it may not, as file:line and why; circles last."
    faults = []
    for arrow in found:
        here, there = room(arrow.source), room(arrow.target)
        allowed = MAY_IMPORT.get(here, set()) | {here}
        if there not in allowed or arrow.target in CLOSED.get(here, ()):
            why = f"{here} may import {', '.join(sorted(allowed - {here})) or 'nothing'}"
            if there in allowed:
                why = f"{here} may not import {arrow.target}"
            faults.append(f"{files[arrow.source]}:{arrow.line}: imports {arrow.target}; {why}")
    for name, path in files.items():
        for node in ast.walk(tree(path)):
            for wanted in imported_names(name, node):
                only = ONLY_IN.get(wanted.split(".")[0])
                if only and room(name) != only:
                    faults.append(f"{path}:{node.lineno}: imports {wanted}; only {only} may")
    try:
        TopologicalSorter(graph_of(found)).prepare()
    except CycleError as error:
        faults.append("a circle of imports: " + " -> ".join(error.args[1]))
    return faults


def function_lengths(path: Path) -> list[int]:
    "Lines of body of every function."
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [
        node.body[-1].end_lineno - node.body[0].lineno + 1
        for node in ast.walk(tree(path))
        if isinstance(node, kinds)
    ]


def export_cells(root: Path) -> list[int]:
    "Lines of every exported cell that is not only imports."
    lengths = []
    for path in sorted((root / "nbs").rglob("[!.]*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "code" and source.startswith("#| export"):
                body = ast.parse(source).body
                if not all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in body):
                    lengths.append(len(source.strip().splitlines()) - 1)
    return lengths


def measure(root: Path) -> dict[str, str | int | float]:
    "What there is to count."
    files = modules(root)
    found = arrows(files)
    lines = [
        line
        for path in files.values()
        for line in path.read_text("utf-8").splitlines()
        if not line.startswith("__all__")  # nbdev's, as wide as it likes
    ]
    lengths = [length for path in files.values() for length in function_lengths(path)]
    pairs = {(arrow.source, arrow.target) for arrow in found}
    rooms = {room(name) for name in files}
    up = [fault for fault in broken_rules(files, found) if "imports" in fault]
    cells = export_cells(root)
    return {
        "notebooks": len(list((root / "nbs").rglob("[!.]*.ipynb"))),
        "rooms": len(rooms),
        "modules": len(files),
        "lines": len(lines),
        "import arrows between modules": len(pairs),
        "floors, by module (longest chain)": longest_chain(graph_of(found)),
        "floors, by room": longest_chain(graph_of(found, room)),
        "arrows against the rule": len(up),
        f"lines over {WIDTH}, %": round(
            100 * sum(len(line) > WIDTH for line in lines) / len(lines), 1
        ),
        f"lines over {LIMIT}": sum(len(line) > LIMIT for line in lines),
        "functions": len(lengths),
        f"functions over {LONG_FUNCTION} lines": sum(length > LONG_FUNCTION for length in lengths),
        f"modules over {LONG_MODULE} lines": sum(
            len(path.read_text("utf-8").splitlines()) > LONG_MODULE for path in files.values()
        ),
        "exported cells": len(cells),
        "lines of an exported cell, median": median(cells),
        "lines of an exported cell, 90th percentile": round(quantiles(cells, n=10)[-1]),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "root", nargs="?", type=Path, default=Path(__file__).resolve().parent.parent
    )
    parser.add_argument("--check", action="store_true", help="say nothing but what breaks the rule")
    arguments = parser.parse_args()
    if not arguments.check:
        for name, value in measure(arguments.root).items():
            print(f"{name:45}{value}")
        return 0
    files = modules(arguments.root)
    faults = broken_rules(files, arrows(files))
    print("\n".join(faults) or f"{len(files)} modules import what they may")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
