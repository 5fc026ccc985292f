# Everything a person or CI does with this project. Each target works from a clean clone on its own.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TOOLS := $(VENV)/.installed-tools

.PHONY: setup tools radosgw demo test lint check bench fuzz model campaign images clean

setup: $(STAMP)  ## a virtual environment with everything that Windrow needs
tools: $(TOOLS)  ## and with what tests and checks need: Triton alone takes 1 GB

# A stamp is written last, so an interrupted install is repeated and a finished one costs nothing.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Windrow needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $(STAMP)

$(TOOLS): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(TOOLS)

demo: setup  ## a whole network on this machine, in the folder demo/; run it again to go on
	$(BIN)/windrow up --dir demo --miners 4 --validators 1 --cheats copycat,freerider --windows 14

radosgw:  ## the S3 server of the tests: Debian's packages, where this user may install them
	@scripts/install-radosgw || echo "without radosgw, tests that need a real S3 server are skipped"

test: tools radosgw  ## everything that must hold
	$(BIN)/python -m pytest

lint: tools  ## format, style, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint test  ## before each commit

bench: setup  ## what a window costs on this machine, and the codec against plain torch
	$(BIN)/python -m benchmarks.window
	$(BIN)/python -m benchmarks.codec --quick

fuzz: tools  ## look for bytes that confuse the decoder, for a minute
	$(BIN)/python tests/fuzz/decoder.py -max_total_time=60

model: tools  ## search everything that may happen to finality in small networks, some minutes
	$(BIN)/python -m tests.model

campaign: tools  ## kill and hamper whole networks of processes at random, ten minutes
	$(BIN)/python -m tests.campaign

images:  ## container images of the neurons (docker/README.md); PIP_ARGS goes to pip
	for target in windrow windrow-gpu; do \
		docker build --file docker/Dockerfile --target $$target --tag $$target --build-arg PIP_ARGS="$(PIP_ARGS)" . || exit; \
	done

clean:
	rm -rf $(VENV) demo
