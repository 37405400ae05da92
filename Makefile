# Needs Python 3.10 or newer and make; everything else is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all lint clean

demo: .venv/demo            ## train, convert, verify and time the pure MLP on handwritten digits
	$(BIN)/repmlp demo

test: .venv/dev             ## the test suite, without what takes long
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow"

test-all: .venv/dev         ## only what takes long: every network, every timm family, long searches
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m slow

lint: .venv/dev             ## style and types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

.venv/demo: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -e '.[demo]'
	touch $@

.venv/dev: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -e '.[dev,demo,faces,segmentation,onnx,openvino,hub]'
	touch $@ .venv/demo

clean:
	rm -rf .venv
