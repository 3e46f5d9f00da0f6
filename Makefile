# make demo | make test | make check — each sets up .venv by itself; Python >= 3.11, pip and make are enough.
PYTHON ?= python3
BIN := .venv/bin
# pytest ends with 5 when no test has the mark: that is said, and is not a failure
NONE_YET = { test $$? -eq 5 && echo "make $@: no test has this mark yet"; }

.PHONY: demo test check slow mount harness browser faults gpu fuzz docs format clean
.DEFAULT_GOAL := test

.venv/.runtime: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

.venv/.dev: pyproject.toml .venv/.runtime
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

demo: .venv/.runtime        ## train on the built-in customer-support rows and compare: about two minutes
	$(BIN)/inlay demo

test: .venv/.dev            ## the suite, in under five minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

check: .venv/.dev           ## style, types, import order
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

slow: .venv/.dev            ## the long forms
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m slow || $(NONE_YET)

mount: .venv/.dev           ## a full disk; needs root
	$(BIN)/python -m pytest -m mount || $(NONE_YET)

browser: .venv/.dev         ## the pages in a real Chromium; INLAY_SCREENS=folder keeps the screenshots
	$(BIN)/python -m pytest -m browser tests/browser

harness: .venv/.dev         ## tasks of lm-evaluation-harness, which stays installed in .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[harness]"
	$(BIN)/python -m pytest -m harness

faults: .venv/.dev          ## runs killed and damaged thousands of times: half an hour or more; root also mounts disks
	$(BIN)/python tests/faults/run.py --full --jobs 2 --page docs/numbers/faults.md

gpu: .venv/.dev             ## needs a CUDA device
	$(BIN)/python -m pytest -m gpu || $(NONE_YET)

fuzz: .venv/.dev            ## the readers and the check on generated files, for half an hour or more
	OMP_NUM_THREADS=1 $(BIN)/python tests/data/fuzz.py --examples 20000 --page docs/numbers/fuzz.md

docs: .venv/.dev            ## write the generated pages
	$(BIN)/python tools/write_docs.py

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache .hypothesis
