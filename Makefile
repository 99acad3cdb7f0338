# The only thing assumed is Python 3.11 or newer and make; everything else is installed.
NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
# The first that runs and is new enough; a name alone may be a shim with nothing behind it.
PYTHON ?= $(firstword $(foreach p,python3 python3.14 python3.13 python3.12 python3.11 python,$(shell $(p) $(NEW_ENOUGH) 2>/dev/null && echo $(p))))
BIN := .venv/bin
READY := .make/ready
# Workers, since most tests wait for something; each has a share of the tests in their order, for fixtures of a module.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal
# Runs a command that prints nothing for long; it shows the time every few seconds.
SHOWN := $(BIN)/python -m stack.progress

.PHONY: bench help demo test servers lint types layers unit e2e wheel test-large soak test-versions test-extras flaky stack-build stack-up stack-show stack-look stack-picture stack-down format docs lock clean

# With -j too, nothing starts before what it needs is installed.
.NOTPARALLEL:

help:  ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: $(READY)  ## run a real workflow and show its trace as received over OTLP
	@$(BIN)/python examples/demo.py

test: servers lint types layers unit e2e wheel  ## install what is missing, run lint, types and all tests

servers: $(READY)  ## install the programs that tests need, with apt-get as root; build the Collector, Jaeger and Mochi
	@$(BIN)/python -m stack.prepare servers

lint: $(READY)  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## mypy --strict and pyright on sources, tests and examples
	$(SHOWN) mypy $(BIN)/mypy
	PYRIGHT_PYTHON_GLOBAL_NODE=off $(SHOWN) pyright $(BIN)/pyright --project pyproject.toml

layers: $(READY)  ## imports go down only
	$(BIN)/lint-imports

unit: $(READY)  ## tests of the package
	$(PYTEST) --ignore=tests/e2e

e2e: $(READY)  ## whole runs, read back from our receivers, and from the real servers if they are built
	$(PYTEST) tests/e2e

wheel: $(READY)  ## the built wheel works without this checkout
	$(SHOWN) wheel $(BIN)/python tests/lab/check_wheel.py

test-large: servers  ## the map of a million items, runs of 100,000 tasks, and a Collector that is disturbed
	$(PYTEST) -m large

soak: servers  ## ten minutes of runs while the Collector is refused, full, restarted and killed
	CASCADE_SOAK_SECONDS=600 $(BIN)/python -m pytest -m large -o log_cli=true --log-cli-level=INFO tests/e2e/test_soak.py

test-versions: servers  ## all tests on each version of Python that pyproject.toml names and the machine has
	@$(BIN)/python -m tests.lab.environments versions $(ARGS)

test-extras: servers  ## all tests with no extra, with each alone, with the lowest and the newest versions
	@$(BIN)/python -m tests.lab.environments extras $(ARGS)

flaky: servers  ## all tests three times, while other programs occupy all cores
	@$(BIN)/python -m tests.lab.busy $(ARGS)

stack-build: $(READY)  ## build the Collector and Jaeger from source, once for this machine
	@$(BIN)/python -m stack build

stack-up: $(READY)  ## start Jaeger, the Collector, Mosquitto and Prometheus, without Docker
	@$(BIN)/python -m stack up

stack-show: $(READY)  ## draw the trace of the latest run that Jaeger has, of any service; TRACE=id draws another
	@$(BIN)/python -m stack show $(TRACE)

stack-look: $(READY)  ## open the pages that show this run, and save screenshots of them with Chromium; OUT=folder
	@$(BIN)/python -m stack look $(TRACE) $(if $(OUT),--out "$(OUT)")

stack-picture: $(READY)  ## docs/trace.svg, the picture of that trace in the README
	@$(BIN)/python -m stack picture $(TRACE) > docs/trace.svg

stack-down: $(READY)  ## end these servers
	@$(BIN)/python -m stack down

bench: $(READY)  ## measure against bare asyncio, the bare SDK and others; some minutes
	$(BIN)/python -m benchmarks $(ARGS)

format: $(READY)  ## lay out the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)  ## regenerate what is generated: JSON Schemas, AsyncAPI, tables, dashboards
	$(BIN)/python -m docs.schemas
	$(BIN)/python -m docs.generate
	$(BIN)/python -m stack.grafana.generate

lock: $(READY)  ## pin what CI installs
	$(BIN)/python -m pip freeze --exclude-editable | grep -v '^pip==' > .ci/constraints.txt

clean:
	rm -rf .venv .make build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(READY): pyproject.toml .ci/constraints.txt
	@$(if $(PYTHON),$(PYTHON) $(NEW_ENOUGH),false) || { echo "Cascade needs Python 3.11 or newer; say which: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m stack.prepare environment
	@mkdir -p .make && touch $(READY)
