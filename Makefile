# `make demo` and `make test` each set up .venv (pinned by constraints.txt) and then need no network.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test lab book readme data bench clean

$(READY): settings.ini setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[lab,sim,dev]'
	touch $@

demo: $(READY)  ## leave-one-subject-out on data_samples/; the report is runs/demo/report.html
	$(BIN)/frl-dgt loso --data data_samples --database folder --preset best --workers 2 --out runs/demo --resume

test: $(READY)  ## every check
	PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/check.sh

lab: $(READY)  ## JupyterLab on the whole repository, the book's contents first
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/nbs/index.ipynb

book: $(READY)  ## after a change to a notebook: formatted, exported, cleaned, linked, README made
	$(BIN)/ruff format --quiet . && $(BIN)/ruff check --quiet --fix .
	PATH="$(CURDIR)/$(BIN):$$PATH" nbdev-export && PATH="$(CURDIR)/$(BIN):$$PATH" nbdev-clean
	$(BIN)/python scripts/book.py
	$(BIN)/python scripts/readme.py

readme: $(READY)  ## README.md from nbs/index.ipynb
	$(BIN)/python scripts/readme.py

data: $(READY)  ## data_samples/ anew, from its fixed seed
	$(BIN)/python -m frl_dgt_nb.simulate.samples data_samples

bench: $(READY)
	for f in benchmarks/*.py; do $(BIN)/python $$f; done

clean:
	rm -rf .venv build dist runs *.egg-info
