# The two commands: `make demo` and `make test`. All that they need goes into .venv, and nothing outside of this folder.
# Every target is a path without this folder's own, which may have spaces in it.

PYTHON ?= python3
UV := --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header
PIP := .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input

.PHONY: help demo test check fix lock autobahn clean
.DELETE_ON_ERROR:
.SUFFIXES:

help:
	@echo 'make demo   run the demo at http://127.0.0.1:8000/'
	@echo 'make test   run every check and every test'
	@echo 'make check  run only the checks that need no test run'
	@echo 'make fix    format, and mend what the linter can mend'
	@echo 'make lock   resolve the locks anew after a change of dependencies'
	@echo 'make autobahn PYTHON27=…   run the Autobahn test suite, which needs a Python 2.7; about an hour'
	@echo 'make clean  remove what these made'
	@echo 'PYTHON=…    the interpreter to make .venv with (3.11 or newer)'

# `exec`: no shell stands between a Ctrl-C and the program.
demo: .venv/run.stamp
	@exec .venv/bin/python -m trio_wskit.demo

test: .venv/test.stamp tests/peers/node_modules/.stamp
	@exec .venv/bin/python tools/check.py

check: .venv/test.stamp
	@exec .venv/bin/python tools/check.py --static

fix: .venv/test.stamp
	.venv/bin/python -m ruff check --fix
	.venv/bin/python -m ruff format

# The stamps are younger than what they were made from: a second call does nothing.
.venv/made.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'Python 3.11 or newer is needed, and "$(PYTHON)" is not: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12' >&2; exit 1; }
	@$(PYTHON) -m venv .venv || \
	  { echo 'No virtual environment could be made (Debian and Ubuntu have it in the package python3-venv)' >&2; exit 1; }
	@touch $@

.venv/run.stamp: .venv/made.stamp requirements/run.txt pyproject.toml
	@echo 'Installing into .venv'
	@$(PIP) --require-hashes -r requirements/run.txt
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

.venv/test.stamp: .venv/run.stamp requirements/test.txt
	@echo 'Installing what the tests need into .venv'
	@$(PIP) --require-hashes -r requirements/test.txt
	@touch $@

# Without its peers the interop tests are skipped, or fail where CI is set; the rest can run all the same.
tests/peers/node_modules/.stamp: .venv/test.stamp tests/peers/package-lock.json
	@echo 'Installing the peers of the interop tests'
	@PATH="$$PWD/.venv/bin:$$PATH"; cd tests/peers && npm ci --loglevel=error && touch node_modules/.stamp || \
	  echo 'npm could not install them: the tests that need them will be skipped' >&2

autobahn: .venv/test.stamp
	@exec .venv/bin/python -m tests.autobahn --python27 "$(PYTHON27)"

lock: .venv/made.stamp
	$(PIP) 'uv>=0.9'
	.venv/bin/uv pip compile $(UV) --all-extras --group build --group test -o requirements/test.txt pyproject.toml
	.venv/bin/uv pip compile $(UV) --group build -c requirements/test.txt -o requirements/run.txt pyproject.toml

clean:
	rm -rf .venv tests/peers/node_modules build dist
