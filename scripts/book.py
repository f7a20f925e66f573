"""What a book has and a folder of notebooks hasn't.

Links from each lesson to the next, one target for every reference, a text for every picture. Without `--check`, writes
the links and carries the texts of pictures to where readers' programs look.

    python scripts/book.py [--check]
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

NBS = Path(__file__).resolve().parent.parent / "nbs"
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")
# a reference to a notebook that is no link: "notebook 21", "notebook 2.3", `44_tables`
LOOSE = re.compile(r"\b[Nn]otebooks? \d[\d.]*\b|(?<![/\w.])\d\d_[a-z]{3,}\w*")
ALT = re.compile(r"(?m)^#\| fig-alt: ?(.*)$")


def notebooks() -> list[Path]:
    "The lessons, in the order of reading."
    return sorted(NBS.glob("[0-9]_*/[0-9]*.ipynb"))


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def source(cell: dict) -> str:
    return "".join(cell["source"])


def name_of(path: Path) -> str:
    "Part, place and name: `2.3 losses`."
    place, _, name = path.stem.partition("_")
    return f"{path.parent.name[0]}.{int(place)} {name.replace('_', ' ')}"


def link_to(path: Path, here: Path) -> str:
    target = path.name if path.parent == here.parent else f"../{path.parent.name}/{path.name}"
    return f"[{name_of(path)}]({target})"


def navigation(paths: list[Path], at: int) -> str:
    "One line: the lesson before, the contents, the lesson after."
    here = paths[at]
    before = f"← {link_to(paths[at - 1], here)}" if at else ""
    after = f"{link_to(paths[at + 1], here)} →" if at + 1 < len(paths) else ""
    return " · ".join(part for part in (before, "[contents](../index.ipynb)", after) if part)


def navigation_cell(text: str, place: str) -> dict:
    return {"cell_type": "markdown", "id": f"navigation-{place}", "metadata": {}, "source": [text]}


def is_plumbing(cell: dict) -> bool:
    return cell["cell_type"] == "code" and source(cell).startswith("#| default_exp")


def with_navigation(cells: list[dict], text: str) -> list[dict]:
    "Links below the title and at the end; the name of the module, which no reader needs, just before those at the end."
    plumbing = [cell for cell in cells if is_plumbing(cell)]
    rest = [
        cell
        for cell in cells
        if not is_plumbing(cell) and not cell.get("id", "").startswith("navigation-")
    ]
    top, bottom = (navigation_cell(text, place) for place in ("top", "bottom"))
    return [rest[0], top, *rest[1:], *plumbing, bottom]


def pictures(cell: dict) -> Iterator[tuple[dict, str]]:
    "Outputs with a picture, and the picture's kind."
    for output in cell.get("outputs", []):
        for kind in output.get("data", {}):
            if kind.startswith("image/"):
                yield output, kind


def with_texts(cell: dict) -> dict:
    "A cell whose pictures carry the text of its lines `#| fig-alt: ...`."
    text = " ".join(part.strip() for part in ALT.findall(source(cell)))
    for output, kind in pictures(cell):
        if text:
            output["metadata"] = {kind: {"alt": text}}
        else:
            output.get("metadata", {}).pop(kind, None)
    return cell


def finished(path: Path, text: str) -> str:
    "A notebook as it should be."
    notebook = read(path)
    notebook["cells"] = [with_texts(cell) for cell in with_navigation(notebook["cells"], text)]
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def faults_of(path: Path) -> Iterator[str]:
    "Dead links, references that are no links, pictures without a text, links whose words name another notebook."
    for number, cell in enumerate(read(path)["cells"]):
        text = source(cell)
        if cell["cell_type"] == "code":
            if any(True for _ in pictures(cell)) and not ALT.search(text):
                yield f"cell {number}: a picture without a line `#| fig-alt: what it shows`"
        else:
            for words, target in LINK.findall(text):
                yield from link_faults(number, words, target, path)
        for found in LOOSE.findall(LINK.sub("", text)):
            yield f"cell {number}: {found!r} is no link to one notebook"


def link_faults(number: int, words: str, target: str, path: Path) -> Iterator[str]:
    file = target.partition("#")[0]
    if "://" in target or not file:
        return
    if (path.parent / file).resolve() == path:
        yield f"cell {number}: a link to the notebook that it stands in"
    elif not (path.parent / file).exists():
        yield f"cell {number}: nothing is at {target}"
    elif re.match(r"\d\.\d", words) and (path.parent / file).suffix == ".ipynb":
        if words != name_of((path.parent / file).resolve()):
            yield f"cell {number}: [{words}] leads to {name_of((path.parent / file).resolve())}"


def contents_faults(paths: list[Path]) -> Iterator[str]:
    "Lessons that the index doesn't lead to."
    text = "".join(source(cell) for cell in read(NBS / "index.ipynb")["cells"])
    for path in paths:
        if f"]({path.relative_to(NBS).as_posix()})" not in text:
            yield f"index.ipynb: no link to {path.relative_to(NBS)}"


def main() -> int:
    paths, check = notebooks(), "--check" in sys.argv[1:]
    faults = list(contents_faults(paths))
    for at, path in enumerate(paths):
        wanted = finished(path, navigation(paths, at))
        if path.read_text(encoding="utf-8") != wanted:
            if check:
                faults.append(
                    f"{path.relative_to(NBS)}: run `make book` and commit what it changes"
                )
            else:
                path.write_text(wanted, encoding="utf-8")
    for path in [NBS / "index.ipynb", *paths]:
        faults += [f"{path.relative_to(NBS)}: {fault}" for fault in faults_of(path)]
    print(
        "\n".join(faults)
        or f"{len(paths)} lessons, every reference a link, every picture with a text"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
