# Needs Python 3.11 or newer and make. Everything else is installed.
NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
# The first interpreter that runs and is new enough. Its name alone may be a shim without an interpreter.
PYTHON ?= $(firstword $(foreach p,python3 python3.14 python3.13 python3.12 python3.11 python,$(shell $(p) $(NEW_ENOUGH) 2>/dev/null && echo $(p))))
BIN := .venv/bin
READY := .make/ready
# Parallel workers, because most tests wait. Each worker runs a contiguous share of the tests, for fixtures of a module.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal
# Runs a long command and prints the elapsed time every few seconds.
PROGRESS := $(BIN)/python -m stack.progress

.PHONY: bench bench-compare bench-peers bench-profile help demo test servers lint types layers unit e2e wheel test-large soak test-versions test-extras flaky stack-build stack-up stack-show stack-look stack-picture stack-down format docs lock clean

# Targets run in sequence, also with -j: later targets need the installed programs of earlier ones.
.NOTPARALLEL:

help:  ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: $(READY)  ## run a real workflow and show its trace as received over OTLP
	@$(BIN)/python examples/demo.py

test: servers lint types layers unit e2e wheel  ## install missing programs, run lint, types and all tests

servers: $(READY)  ## install the programs for the tests with apt-get, as root; build the Collector, Jaeger and Mochi
	@$(BIN)/python -m stack.prepare servers

lint: $(READY)  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## mypy --strict and pyright on sources, tests and examples
	$(PROGRESS) mypy $(BIN)/mypy
	PYRIGHT_PYTHON_GLOBAL_NODE=off $(PROGRESS) pyright $(BIN)/pyright --project pyproject.toml

layers: $(READY)  ## check that packages import lower layers only
	$(BIN)/lint-imports

unit: $(READY)  ## unit tests
	$(PYTEST) --ignore=tests/e2e

e2e: $(READY)  ## whole runs over receivers in the process, and over the real servers if they are built
	$(PYTEST) tests/e2e

wheel: $(READY)  ## test the built wheel without this checkout
	$(PROGRESS) wheel $(BIN)/python tests/lab/check_wheel.py

test-large: servers  ## a map of a million items, runs of 100,000 tasks, and faults of a real Collector
	$(PYTEST) -m large

soak: servers  ## ten minutes of runs while the Collector is unreachable, full, restarted and killed
	CASCADE_SOAK_SECONDS=600 $(BIN)/python -m pytest -m large -o log_cli=true --log-cli-level=INFO tests/e2e/test_soak.py

test-versions: servers  ## all tests on Python 3.11 to 3.14, on the installed versions
	@$(BIN)/python -m tests.lab.environments versions $(ARGS)

test-extras: servers  ## all tests without extras, with each extra, with the lowest and the newest versions
	@$(BIN)/python -m tests.lab.environments extras $(ARGS)

flaky: servers  ## all tests three times under load on all cores
	@$(BIN)/python -m tests.lab.busy_loops $(ARGS)

stack-build: $(READY)  ## build the Collector and Jaeger from source, once per machine
	@$(BIN)/python -m stack build

stack-up: $(READY)  ## start Jaeger, the Collector, Mosquitto and Prometheus, without Docker
	@$(BIN)/python -m stack up

stack-show: $(READY)  ## draw the trace of the latest run in Jaeger, of any service; TRACE=id selects another
	@$(BIN)/python -m stack show $(TRACE)

stack-look: $(READY)  ## open the pages of this run, and save screenshots with Chromium; OUT=folder
	@$(BIN)/python -m stack look $(TRACE) $(if $(OUT),--out "$(OUT)")

stack-picture: $(READY)  ## write docs/trace.svg, the picture of this trace in the README
	@$(BIN)/python -m stack picture $(TRACE) > docs/trace.svg

stack-down: $(READY)  ## stop these servers
	@$(BIN)/python -m stack down

bench: $(READY)  ## compare with bare asyncio, the bare SDK and others; about fifteen minutes
	$(BIN)/python -m benchmarks $(ARGS)

bench-compare: $(READY)  ## measure this tree and a git revision in turn, and print the ratios; REV=revision
	$(BIN)/python -m benchmarks --revision "$(REV)" $(ARGS)

bench-profile: $(READY)  ## print the functions of a run by CPU time and calls per task; ARGS="chain --connector http"
	$(BIN)/python -m benchmarks.profile $(ARGS)

bench-peers: $(READY)  ## compare with other engines, which are installed into an environment of their own
	@$(BIN)/python -m stack.prepare peers
	.make/peers/bin/python -m benchmarks other_engines $(ARGS)

format: $(READY)  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)  ## regenerate JSON Schemas, AsyncAPI, tables and dashboards
	$(BIN)/python -m docs.schemas
	$(BIN)/python -m docs.generate
	$(BIN)/python -m stack.grafana.generate

lock: $(READY)  ## pin the Python packages of CI
	$(BIN)/python -m pip freeze --exclude-editable | grep -v '^pip==' > .ci/constraints.txt

clean:
	rm -rf .venv .make build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(READY): pyproject.toml .ci/constraints.txt
	@$(if $(PYTHON),$(PYTHON) $(NEW_ENOUGH),false) || { echo "Cascade needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m stack.prepare environment
	@mkdir -p .make && touch $(READY)
