"""README.md from nbs/index.ipynb; with --check, say whether it is up to date and change nothing."""

import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
NOTICE = "<!-- Made from nbs/index.ipynb by `make readme`; edit that. -->\n\n"


def render() -> str:
    "The index notebook as Markdown; its links, relative to nbs/, become relative to the root."
    notebook = nbformat.read(ROOT / "nbs/index.ipynb", as_version=4)
    # nbdev-clean takes language_info away, and without it code fences have no language
    notebook.metadata["language_info"] = {"name": "python", "file_extension": ".py"}
    notebook.cells = [cell for cell in notebook.cells if not cell.source.startswith("#| hide")]
    body, resources = MarkdownExporter().from_notebook_node(notebook)
    if resources.get("outputs"):
        raise SystemExit(
            "nbs/index.ipynb stores pictures as outputs; link files under nbs/images/ instead, to keep README.md light"
        )
    body = (
        body.replace("](../", "](@root/")
        .replace("](images/", "](nbs/images/")
        .replace("](@root/", "](")
    )
    for path in sorted((ROOT / "nbs").rglob("[!.]*.ipynb")):
        name = path.relative_to(ROOT / "nbs").as_posix()
        body = body.replace(f"]({name})", f"](nbs/{name})")
    return NOTICE + body.strip() + "\n"


def main() -> int:
    readme, text = ROOT / "README.md", render()
    if "--check" not in sys.argv[1:]:
        readme.write_text(text, encoding="utf-8")
    elif not readme.exists() or readme.read_text(encoding="utf-8") != text:
        print("README.md is not what nbs/index.ipynb gives; run `make readme` and commit it")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
