# `make demo` and `make test` need nothing but Python >= 3.11 and a network or a package cache.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: setup demo test test-fast check docs clean

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $(INSTALLED)

demo: setup
	$(BIN)/dsonas run --config digits --out runs/demo

test: check
	$(BIN)/python -m pytest -n 2 --dist worksteal --durations 10

# Without real runs, kills, several processes and browsers.
test-fast: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

check: setup
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

clean:
	rm -rf .venv runs build site src/*.egg-info
