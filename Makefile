# Needs Python 3.10 or newer and make; everything else is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all test-browser lint docs clean

demo: .venv/demo            ## train, convert, verify and time the pure MLP on handwritten digits
	$(BIN)/repmlp demo

test: .venv/dev             ## the test suite, without what takes long
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow"

test-all: .venv/dev         ## only what takes long: every network, every timm family, long searches
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m slow

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

clean:
	rm -rf .venv
