# Everything runs in .venv, which the first target builds from the hash-locked requirements.
# A developer needs Python 3.11 or 3.12 and make, nothing else.
PYTHON ?= python3
BIN := .venv/bin
# Tests on Ray wait more than they compute: one process has them, the other the rest (conftest.py).
SHARED := --numprocesses 2
UV_VERSION := 0.13.9

.PHONY: demo test check docs lock clean

demo: .venv/installed  ## protect and audit a digit classifier and a set of photographs
	$(BIN)/ringfence demo

test: .venv/installed  ## every test
	$(BIN)/python -m pytest $(SHARED)

check: .venv/installed  ## format, lint and types, then every test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy protection storage tune_spaces ray_jobs
	$(BIN)/python -m pytest $(SHARED)

docs: .venv/installed  ## the documentation as a site, build/site; a broken link fails
	$(BIN)/python -m docs.scripts.reference
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

lock: .venv/uv  ## pin what pyproject.toml asks for
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --quiet --custom-compile-command "make lock" \
		--output-file requirements.lock.txt

clean:
	rm -rf .venv build *.egg-info

.venv/uv:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v[:2] not in ((3, 11), (3, 12)) and \
		f"{sys.executable} is Python {v[0]}.{v[1]}; expected 3.11 or 3.12 (make PYTHON=python3.12 ...)")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@touch $@

# Compiling bytecode once saves every worker process that Ray starts from parsing torch.
.venv/installed: .venv/uv requirements.lock.txt pyproject.toml
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --compile-bytecode \
		-r requirements.lock.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@
