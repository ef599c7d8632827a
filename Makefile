# `make` or `make help` lists what can be done. Every target makes and keeps .venv itself, so each one
# works as the very first command in a fresh clone; the only requirement is Python 3.11.

PYTHON     ?= python3.11## the interpreter that makes .venv
PROFILE    ?= embedded## embedded: no network needed; paper: the published data sets and settings
DATA_DIR   ?= data## where data sets lie, or are downloaded to
OUTPUT_DIR ?= outputs## where run records are written
DATASET    ?= all## what `make data` downloads
DATA_FLAGS ?=## for `make data`: --dry-run, --allow-unverified
X          ?=## figure-1, figure-6: what the x-axis shows: time, cpu; figure-6 also steps, nfe
SEEDS      ?= 0,1,2## seeds of every curve
BUDGET     ?= small## of `make protocol`: small or full
JOBS       ?= 1## runs at a time; more than one disturbs the clock that the figures show
DEVICE_FLAGS ?=## for `make device-check`: --seconds 480, --small, --device cpu
WORKERS    ?= 2## parallel workers of the tests

# `make help` prints these rows. There is no space before ## because make would keep it in the value.

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
PINS   = $(shell grep -E '^(torch|torchvision)==' constraints.txt)

# A value as one word of the shell, whatever is in it.
quote = '$(subst ','\'',$(1))'
PLACES = --data-dir $(call quote,$(DATA_DIR)) --output-dir $(call quote,$(OUTPUT_DIR))

.DEFAULT_GOAL := help
.PHONY: help venv lint format test test-slow data report benchmark device-check device-packages scaling \
	protocol wandb-sweep search sync pre-commit clean

help: ## Show the targets and the variables
	@echo "Targets:"
	@grep -E '^[a-z][a-z0-9-]*:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' \
		| awk -F '\t' '{printf "  %-20s %s\n", $$1, $$2}'
	@echo "  reproduce-NAME       Run what is missing, then draw results/NAME/ (python scripts/reproduce.py --help lists the names)"
	@echo "Variables (make TARGET NAME=value):"
	@grep -E '^[A-Z_]+ *\?=.*## ' $(MAKEFILE_LIST) | sed -E 's/ *\?= */\t/; s/ *## /\t/' \
		| awk -F '\t' '{printf "  %-20s %s (default: %s)\n", $$1, $$3, $$2}'

venv: $(STAMP) ## Make .venv with the pinned versions, or bring it up to date

# torch and torchvision come first and alone: whichever build of the pinned version pip finds (CPU or
# CUDA) is then kept, and nothing that depends on them can pull in another.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || { \
		echo "error: '$(PYTHON)' is not Python 3.11; install it, or name it: make PYTHON=/path/to/python3.11" >&2; \
		exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt $(PINS)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[experiments,dev]'
	@touch $@

lint: $(STAMP) ## Style, types and floors: ruff check, ruff format --check, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## Let ruff format the code and fix what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(STAMP) ## The tests without the slow ones, one thread a worker
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) -m "not slow"

test-slow: $(STAMP) ## The slow tests only
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) -m slow

# One rule for all figures and tables: scripts/reproduce.py knows their names.
reproduce-%: $(STAMP)
	$(BIN)/python scripts/reproduce.py $* --profile $(PROFILE) --seeds $(SEEDS) \
		$(PLACES) --jobs $(JOBS) $(if $(X),--x $(X))

data: $(STAMP) ## Download DATASET (or all) into DATA_DIR; DATA_FLAGS=--dry-run says what it would need
	$(BIN)/python scripts/data.py $(DATASET) --data-dir $(call quote,$(DATA_DIR)) $(DATA_FLAGS)

report: $(STAMP) ## Every figure and table: results/index.html (one page), results/README.md
	$(BIN)/python scripts/report.py

benchmark: $(STAMP) ## Time and memory of the library, write results/benchmarks/
	$(BIN)/python scripts/benchmark.py all

# Nothing is installed for it: it is to run on a machine that is lent for minutes.
device-check: ## Tests and numbers of a GPU: results/device/ (DEVICE_FLAGS=--small --device cpu tries it)
	$(or $(wildcard $(BIN)/python),python3) scripts/device.py --data-dir $(call quote,$(DATA_DIR)) $(DEVICE_FLAGS)

device-packages: $(STAMP) ## build/device: the small packages that such a machine may lack
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps --target build/device \
		torchdiffeq hydra-core omegaconf antlr4-python3-runtime pooch platformdirs rich pygments \
		markdown-it-py mdurl pytest pluggy iniconfig packaging

scaling: $(STAMP) ## One process against two: results/benchmarks/scaling.json (wants two idle cores)
	$(BIN)/python scripts/benchmark.py scaling

# The comparison is one of equals on one thread each, so two at a time are fair where there are two cores.
protocol: $(STAMP) ## The comparison of BUDGET: what is missing is run (JOBS=2 unless given), then results/protocol/
	$(BIN)/python scripts/compare.py run --budget $(BUDGET) $(PLACES) \
		--jobs $(if $(filter file,$(origin JOBS)),2,$(JOBS))

wandb-sweep: $(STAMP) ## The search spaces as W&B sweep files: OUTPUT_DIR/wandb-sweeps/
	$(BIN)/python scripts/sweep.py export $(call quote,$(OUTPUT_DIR)/wandb-sweeps)

search: $(STAMP) ## Redo the small equal search behind figure 1, write results/search/ and configs/tuned/
	$(BIN)/python scripts/search.py figure-1 $(PLACES) --jobs $(JOBS)

sync: $(STAMP) ## Mirror the runs under OUTPUT_DIR to W&B, from their records (after `wandb login`)
	$(BIN)/python scripts/sync.py $(call quote,$(OUTPUT_DIR))

pre-commit: $(STAMP) ## Install the git hook and run it on all files
	$(BIN)/pre-commit install
	$(BIN)/pre-commit run --all-files

clean: ## Remove .venv and caches; run records and results stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find snopt experiments scripts tests -type d -name __pycache__ -prune -exec rm -rf {} +
