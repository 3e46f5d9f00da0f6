# make demo | make test | make check — each sets up .venv by itself; Python >= 3.11, pip and make are enough.
PYTHON ?= python3
BIN := .venv/bin
# pytest ends with 5 when no test has the mark: that is said, and is not a failure
NONE_YET = { test $$? -eq 5 && echo "make $@: no test has this mark yet"; }

PIP := -m pip install --quiet --disable-pip-version-check
SUITE := -m pytest -n 2 --dist worksteal
VERSIONS := tools/versions.py

.PHONY: demo test check slow mount harness browser faults gpu fuzz docs figures format clean lock newest newest-demo oldest
.DEFAULT_GOAL := test

.venv/.runtime: pyproject.toml requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python $(PIP) -c requirements.lock -e .
	touch $@

.venv/.dev: .venv/.runtime
	$(BIN)/python $(PIP) -c requirements.lock -e ".[dev]"
	touch $@

lock: .venv/.dev            ## renew requirements.lock; torch and what only torch asks for stay free, so that a CPU wheel fits
	$(BIN)/python $(PIP) uv
	$(BIN)/python tools/lock.py

newest: .venv-newest/.dev   ## the suite on the newest versions that pyproject.toml allows
	.venv-newest/bin/python $(VERSIONS)
	OMP_NUM_THREADS=1 .venv-newest/bin/python $(SUITE)

newest-demo: .venv-newest/.runtime
	.venv-newest/bin/python $(VERSIONS)
	cd .venv-newest && bin/inlay demo

oldest: .venv-oldest/.dev   ## the suite on the oldest versions that pyproject.toml allows
	.venv-oldest/bin/python $(VERSIONS)
	OMP_NUM_THREADS=1 .venv-oldest/bin/python $(SUITE)

.PHONY: .venv-newest/.runtime .venv-newest/.dev
.venv-newest/.runtime:
	test -x .venv-newest/bin/python || $(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python $(PIP) --upgrade --upgrade-strategy eager -e .

.venv-newest/.dev: .venv-newest/.runtime
	.venv-newest/bin/python $(PIP) --upgrade --upgrade-strategy eager -e ".[dev]"

.venv-oldest/.dev: pyproject.toml
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python $(PIP) uv
	.venv-oldest/bin/python tools/lock.py --oldest > .venv-oldest/requirements.txt
	.venv-oldest/bin/python $(PIP) -c .venv-oldest/requirements.txt -e ".[dev]"
	touch $@

demo: .venv/.runtime        ## train on the built-in customer-support rows and compare: about two minutes
	$(BIN)/inlay demo

test: .venv/.dev            ## the suite, in under five minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/python $(SUITE)

check: .venv/.dev           ## style, types, import order
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

slow: .venv/.dev            ## the long forms
	OMP_NUM_THREADS=1 $(BIN)/python $(SUITE) -m slow || $(NONE_YET)

mount: .venv/.dev           ## a full disk; needs root
	$(BIN)/python -m pytest -m mount || $(NONE_YET)

browser: .venv/.dev         ## the pages in a real Chromium; INLAY_SCREENS=folder keeps the screenshots
	$(BIN)/python -m pytest -m browser tests/browser

harness: .venv/.dev         ## tasks of lm-evaluation-harness, which stays installed in .venv
	$(BIN)/python $(PIP) -c requirements.lock -e ".[harness]"
	$(BIN)/python -m pytest -m harness

faults: .venv/.dev          ## runs killed and damaged thousands of times: half an hour or more; root also mounts disks
	$(BIN)/python tests/faults/run.py --full --jobs 2 --page docs/numbers/faults.md

gpu: .venv/.dev             ## needs a CUDA device
	$(BIN)/python -m pytest -m gpu || $(NONE_YET)

fuzz: .venv/.dev            ## the readers and the check on generated files, for half an hour or more
	OMP_NUM_THREADS=1 $(BIN)/python tests/data/fuzz.py --examples 20000 --page docs/numbers/fuzz.md

figures: .venv/.dev         ## sizes, import cycles, loose types, docstrings and walks of the code, beside their goals
	OMP_NUM_THREADS=1 $(BIN)/python tools/figures.py

docs: .venv/.dev            ## write the generated pages and the drawing of the rooms
	$(BIN)/python tools/write_docs.py
	$(BIN)/python tools/draw_rooms.py

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-newest .venv-oldest build .pytest_cache .mypy_cache .ruff_cache .hypothesis
