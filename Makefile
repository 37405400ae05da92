# Needs Python 3.10 or newer and make; everything else is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-deploy test-all test-oldest test-browser lint docs clean

demo: .venv/demo            ## train, convert, verify and time the pure MLP on handwritten digits
	$(BIN)/repmlp demo

test: .venv/dev             ## the test suite, without exported files and what takes long
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow" --ignore=tests/deploy

test-deploy: .venv/dev      ## exports, int8 and benchmarks, on every engine
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow" tests/deploy

test-all: .venv/dev         ## only what takes long: every network, every timm family, long searches
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m slow

test-oldest: .venv-oldest   ## the core of the test suite, with the oldest versions that pyproject.toml allows
	.venv-oldest/bin/python -m pytest -q -n 2 --dist worksteal -m "not slow" tests/functional tests/layers \
		tests/conversion tests/models tests/training tests/data tests/cli

test-browser: .venv/dev     ## the page of `repmlp explore`, in Chromium; skipped without one
	$(BIN)/python -m pytest -q -rs tests/app/test_page.py

lint: .venv/dev             ## style and types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

docs: .venv/dev             ## the documentation site, in build/docs; a warning or a broken link is an error
	$(BIN)/python -m sphinx -q -W --keep-going docs build/docs
	@echo "open build/docs/index.html"

.venv/demo: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -e '.[demo]'
	touch $@

.venv/dev: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -e '.[dev,demo,faces,segmentation,onnx,openvino,hub,docs,app,browser]'
	touch $@ .venv/demo

.venv-oldest: pyproject.toml tests/oldest.txt
	$(PYTHON) -m venv $@
	$@/bin/python -m pip install --quiet -e '.[demo]' pytest pytest-xdist hypothesis -c tests/oldest.txt
	touch $@

clean:
	rm -rf .venv .venv-oldest
