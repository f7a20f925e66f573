#!/usr/bin/env bash
# Every check, in the order of what fails fastest. `make test` calls this with .venv/bin on the PATH; it needs no network and no GPU.
# The last line counts the steps: `N passed, N failed`.
set -uo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} MPLBACKEND=agg # two notebooks run side by side: one thread each
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
copy=$scratch/copy passed=0 failed=0 began=$SECONDS

step() { # step NAME COMMAND...: run it, say how long it took, count it
    local name=$1 start=$SECONDS; shift
    printf '\n== %s\n' "$name"
    if "$@"; then passed=$((passed + 1)) outcome=ok; else failed=$((failed + 1)) outcome=FAILED; fi
    printf -- '-- %s: %s, %d s\n' "$name" "$outcome" $((SECONDS - start))
}

# What follows works on a copy of the tree (committed or not, but nothing ignored), so that no check changes what it checks.
copy_tree() { mkdir -p "$copy" && git ls-files -z -co --exclude-standard | tar --null -T - -cf - | tar -xf - -C "$copy"; }

clean_notebooks() { # nbdev-clean changes nothing
    (cd "$copy" && nbdev-clean) && diff -rq nbs "$copy/nbs" -x runs -x .ipynb_checkpoints -x __pycache__ ||
        { echo "run nbdev-clean and commit what it changes"; return 1; }
}

same_export() { # nbdev-export, into the copy, gives the modules that are here
    find "$copy/frl_dgt_nb" -name "*.py" ! -path "$copy/frl_dgt_nb/__init__.py" ! -name _export.py -delete
    (cd "$copy" && nbdev-export) && diff -r -x __pycache__ frl_dgt_nb "$copy/frl_dgt_nb" ||
        { echo "run nbdev-export and commit what it changes; never edit a module by hand"; return 1; }
}

# A wheel and an sdist, each installed into an environment of its own. Offline, so the environment borrows the *dependencies* of .venv through a .pth
# file and installs nothing but the package. This shows that the archives are whole: modules, version, requirements, the command; and that the
# package runs from there and not from this folder. That the requirements are complete is shown by tidy.py, which compares them with the imports.
archives() {
    rm -rf "$copy/dist" && python -m build --no-isolation --outdir "$copy/dist" "$copy" >"$scratch/build.log" 2>&1 || { tail -20 "$scratch/build.log"; return 1; }
    local libraries archive home
    libraries=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    for archive in "$copy"/dist/*.whl "$copy"/dist/*.tar.gz; do
        home=$scratch/env-${archive##*.}
        python -m venv --without-pip "$home" || return 1
        echo "$libraries" >"$("$home/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/dependencies.pth"
        python -m pip --disable-pip-version-check --python "$home/bin/python" install --quiet --no-index --no-deps --no-build-isolation "$archive" || return 1
        (cd "$scratch" && "$home/bin/frl-dgt" --help >/dev/null && "$home/bin/frl-dgt" --version && "$home/bin/python" - "$home" <<'PYTHON'
import importlib, pkgutil, sys
from pathlib import Path
import frl_dgt_nb
assert Path(frl_dgt_nb.__file__).is_relative_to(sys.argv[1]), frl_dgt_nb.__file__
names = [module.name for module in pkgutil.walk_packages(frl_dgt_nb.__path__, "frl_dgt_nb.")]
for name in names: importlib.import_module(name)
for name in frl_dgt_nb.__all__: getattr(frl_dgt_nb, name)
print(f"{len(names)} modules import")
PYTHON
        ) || { echo "${archive##*/} does not work once installed"; return 1; }
    done
}

lines() { # the modules, too: in a notebook, a lesson may use what its module doesn't
    ruff format --check . && ruff check . && ruff check --isolated --select F --exclude _modidx.py frl_dgt_nb
}

step "a copy of the tree" copy_tree
step "nbdev-clean makes no difference" clean_notebooks
step "nbdev-export makes no difference" same_export
step "README.md is up to date" python scripts/readme.py --check
step "lines: ruff format and lint" lines
step "who imports what" python scripts/structure.py --check
step "links, references, texts of pictures" python scripts/book.py --check
step "sizes, paths, requirements" python scripts/tidy.py
step "wheel and sdist, each in a clean environment" archives
# Where there is a Chromium, pytest has run every notebook in JupyterLab, the same cells; once is enough.
notebooks() { if python -c 'import sys; sys.path.insert(0, "tests"); import jupyter_page; sys.exit(not jupyter_page.READY)'; then echo "pytest ran them in JupyterLab"; else nbdev-test --n-workers 2 --timing; fi; }

step "pytest" python -m pytest -n 2 --dist loadgroup # groups: tests/conftest.py
step "notebooks" notebooks
printf '\n%d seconds in all\n%d passed, %d failed\n' $((SECONDS - began)) "$passed" "$failed"
[ "$failed" -eq 0 ]
