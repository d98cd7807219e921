# Everything a newcomer needs: `make quickstart`, `make test`. Both set up what is missing.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: quickstart test test-slow lint types format clean

quickstart: $(BIN)/.installed
	$(BIN)/understudy quickstart

test: $(BIN)/.installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/pytest -m "not slow"

test-slow: $(BIN)/.installed
	$(BIN)/pytest -m slow

lint format: $(BIN)/.installed
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

types: $(BIN)/.installed
	$(BIN)/pyright --pythonpath $(BIN)/python

# Versions come from constraints.txt. Bytecode is compiled once, so that commands start fast wherever they run.
$(BIN)/.installed: pyproject.toml constraints.txt
	@command -v uv >/dev/null || $(PYTHON) -m pip install --quiet uv
	uv venv --quiet --allow-existing --python 3.11 $(VENV) || uv venv --quiet --allow-existing $(VENV)
	VIRTUAL_ENV=$(VENV) uv pip install --quiet --compile-bytecode --constraints constraints.txt --group dev -e ".[all,detect]"
	$(BIN)/python -m compileall -q src || true
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache dist
