"""What a diff doesn't show: sizes, paths of this machine in stored outputs, requirements that match the imports."""

import ast
import json
import re
import sys
import tempfile
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK_BYTES, MODULE_LINES, SAMPLE_BYTES = 300_000, 400, 12_000_000
HERE = {
    str(ROOT),
    str(ROOT.parent) + "/",
    str(Path.home()) + "/",
    tempfile.gettempdir() + "/",
    sys.prefix,
} - {"/", "//"}
UNLISTED = {"dlib": "dlib-bin"}  # whose metadata names no top-level package
DISTRIBUTIONS = packages_distributions()
PATHS = re.compile(
    "|".join(map(re.escape, sorted(HERE)))
    + r"|/(?:home|root|Users|tmp|mnt|opt)/\w|[A-Z]:\\\\+Users"
)


def notebook_faults(path: Path) -> list[str]:
    "Too large, a path of a machine, a widget's state, a traceback that no cell asked for."
    text, notebook = path.read_text(encoding="utf-8"), json.loads(path.read_text(encoding="utf-8"))
    faults = (
        [f"{path.stat().st_size:,} bytes, {NOTEBOOK_BYTES:,} allowed"]
        if path.stat().st_size > NOTEBOOK_BYTES
        else []
    )
    for number, cell in enumerate(notebook["cells"]):
        outputs = [
            {
                **output,
                "data": {
                    kind: data
                    for kind, data in output.get("data", {}).items()
                    if not kind.startswith("image/")
                },
            }
            for output in cell.get("outputs", [])
        ]
        if found := PATHS.search(json.dumps([cell["source"], outputs], ensure_ascii=False)):
            faults.append(f"cell {number} holds the path {found[0]!r}")
        if any(output["output_type"] == "error" for output in outputs):
            faults.append(f"cell {number} stores a traceback")
    return faults + (
        ["stores the state of widgets"]
        if "jupyter.widget" in text or "widgets" in notebook["metadata"]
        else []
    )


def imports(path: Path) -> set[str]:
    "Top-level names of what a file imports from elsewhere, the lazy imports included."
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    return {name.partition(".")[0] for name in names} - {"frl_dgt_nb"} - sys.stdlib_module_names


def module_faults(path: Path, allowed: set[str]) -> list[str]:
    "Too long, or using a package that settings.ini doesn't require."
    lines, faults = len(path.read_text(encoding="utf-8").splitlines()), []
    if lines > MODULE_LINES:
        faults.append(f"{lines} lines, at most {MODULE_LINES} wanted")
    for top in sorted(imports(path)):
        distributions = DISTRIBUTIONS.get(top, [UNLISTED.get(top, top)])
        if not {plain(name) for name in distributions} & allowed:
            faults.append(f"imports {top}, which settings.ini doesn't require")
    return faults


def required() -> set[str]:
    "Names of the packages in settings.ini, the extras for users included."
    config = ConfigParser(delimiters=["="], interpolation=None)
    config.read(ROOT / "settings.ini", encoding="utf-8")
    lines = [
        line
        for key in ("requirements", "extras_lab", "extras_sim", "extras_cluster")
        for line in config["DEFAULT"].get(key, "").split()
    ]
    return {plain(re.match(r"[\w.-]+", line)[0]) for line in lines}


def plain(name: str) -> str:
    "A package's name as indexes compare it."
    return re.sub("[-_.]+", "-", name).lower()


def main() -> int:
    notebooks = sorted((ROOT / "nbs").rglob("[!.]*.ipynb"))
    modules = sorted((ROOT / "frl_dgt_nb").rglob("[!_]*.py"))
    faults = [
        f"{path.relative_to(ROOT)}: {fault}"
        for path in notebooks
        for fault in notebook_faults(path)
    ]
    allowed = required()
    faults += [
        f"{path.relative_to(ROOT)}: {fault}"
        for path in modules
        for fault in module_faults(path, allowed)
    ]
    samples = sum(
        path.stat().st_size for path in (ROOT / "data_samples").rglob("*") if path.is_file()
    )
    if samples > SAMPLE_BYTES:
        faults.append(f"data_samples: {samples:,} bytes, {SAMPLE_BYTES:,} allowed")
    print(
        "\n".join(faults)
        or f"{len(notebooks)} notebooks, {len(modules)} modules, {samples / 1e6:.1f} MB of samples"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
