# Every target makes .venv and installs what it needs; Python 3.11 to 3.13 is all that has to be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
AUDIO ?= demo/speech
SPEAKER ?=
BASE ?=
CLIPS ?= 50
ROUNDS ?= 40

.DEFAULT_GOAL := help
.PHONY: help install demo cluster cluster-demo test long lint format starter bench screenshots clean

help:
	@echo "make install   the command .venv/bin/voxloop"
	@echo "make demo      the whole loop on the demo's speech; AUDIO=FOLDER SPEAKER=NAME BASE=MODEL for your own"
	@echo "make cluster   PostgreSQL, S3, NATS, three workers and the server on this machine; make cluster-demo shows them at work"
	@echo "make test      the tests, in minutes; make long    kills and chances, in hours (ROUNDS=40)"
	@echo "make lint      style, types and import order"
	@echo "make starter   build the shipped model anew (needs espeak-ng)"
	@echo "make bench     measurements, side by side with peers"
	@echo "make screenshots   pictures of the pages for docs/ (needs chromium)"

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(f"Python 3.11 to 3.13 is needed, this is {v[0]}.{v[1]}: make PYTHON=python3.11 ..." if not (3, 11) <= v <= (3, 13) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[serve,listen]'
	@touch $@

$(VENV)/tested: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,lint]'
	@touch $@

install: $(VENV)/installed
	@echo "installed: $(BIN)/voxloop --help"

demo: $(VENV)/installed
	$(BIN)/voxloop demo $(if $(filter demo/speech,$(AUDIO)),demo/speech,"$(AUDIO)") $(if $(SPEAKER),--speaker "$(SPEAKER)") $(if $(BASE),--base "$(BASE)") --clips $(CLIPS) --out build/demo

cluster: $(VENV)/tested
	@$(BIN)/python deploy/cluster.py

cluster-demo: $(VENV)/tested
	@$(BIN)/python deploy/cluster.py --demo

test: $(VENV)/tested
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --durations=15

long: $(VENV)/tested
	.ci/long $(ROUNDS)

lint: $(VENV)/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/tested
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

starter: $(VENV)/installed
	$(BIN)/python -m voxloop.starter.build --data ../shared/data --leave-out theo

bench: $(VENV)/tested
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks $(if $(NAME),$(NAME))

screenshots: $(VENV)/tested
	$(BIN)/python docs/make_screenshots.py

clean:
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache
