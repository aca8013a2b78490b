# The commands of this project; `make` alone lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-long dev clean lint format test-live test-python test-dagster test-art test-vllm container faults load-test fuzz scale-test fourteen-days docs evidence lock audit wheel env-example
RUN := scripts/with_state.sh .venv/bin/

help: ## List these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile
	@echo "Variables: PYTHON=python3.11 (set-up), PYTHON312=python3.12 (test-art), PYTEST_ARGS='-k name' (tests), BABYLON_RL_HOME (state directory); all others: .env.example"

setup: ## Make .venv from the lock and fetch the weights of the CPU model; the others do it first
	@scripts/setup.sh

demo: setup ## Play the market, train a model on it, print what got better (about 5 minutes on 2 cores)
	@$(RUN)babylon-rl demo

test: setup ## The checks and all tests but the long ones (about 7 minutes on 2 cores); with PYTEST_ARGS what these choose
	@scripts/test.sh $(or $(PYTEST_ARGS),-m "not live and not long")

test-fast: setup ## The checks and the short tests: no training, no browser, no killed processes (less than 2 minutes)
	@scripts/test.sh -m "not live and not slow and not long" $(PYTEST_ARGS)

test-long: setup ## The long tests: the whole graph, killed programs, trainings, browsers (about 13 minutes on 2 cores)
	@scripts/test.sh -m "long and not live" $(PYTEST_ARGS)

dev: setup ## The Dagster UI on this project
	@$(RUN)babylon-rl dev

clean: ## Stop what still runs and remove everything that was made: .venv, the state directory, caches
	@scripts/clean.sh

lint: setup ## Only the checks: ruff, mypy, vulture, the import contract
	@scripts/lint.sh

format: setup ## Rewrite the code in the project's format
	@.venv/bin/ruff check --fix-only --quiet . && .venv/bin/ruff format .

test-live: setup ## Tests against real services; each is skipped with its reason when its key is absent
	@$(RUN)python -m pytest -m live -rs $(PYTEST_ARGS)

test-python: ## The tests on another Python, PYTHON=python3.13, with an environment and a state directory of its own
	@scripts/test_python.sh $(PYTEST_ARGS)

test-dagster: ## The tests of what meets Dagster with another release of it, DAGSTER=1.13.20, in an environment of its own
	@scripts/test_dagster.sh $(PYTEST_ARGS)

test-art: ## The client's side of serverless training with openpipe-art 0.5.23; skipped without a Python 3.12
	@scripts/test_art.sh $(PYTEST_ARGS)

test-vllm: setup ## Our base and adapters served by a real vLLM on the CPU, in an environment of its own (4 GB)
	@scripts/test_vllm.sh $(PYTEST_ARGS)

fuzz: setup ## Fresh inputs for the readers of other programs' bytes, SECONDS=3600 for each of READERS='decode judge'
	@mkdir -p build; scripts/fuzz.sh $(or $(SECONDS),3600) $(READERS)

container: setup ## The image of docs/howto/deploy by buildah, and what compose.yaml starts in a container of it (root; 5 minutes)
	@scripts/container.sh $(PYTEST_ARGS)

faults: setup ## 1,000 schedules of the whole loop under crashes and faults (resumable, some hours); SEED=7 tells one again
	@scripts/faults.sh $(if $(SEED),--seed $(SEED),--schedules $(or $(SCHEDULES),1000))

scale-test: setup ## Workers by Celery on this machine: speed, faults, a version from training to gateway; HOURS=48 for a short one
	@$(RUN)python -m benchmarks.scale_test --hours $(or $(HOURS),720)

load-test: setup ## Recorder and gateway at RATE times twice their rated load for MINUTES=10, each dependency away in turn
	@$(RUN)python -m benchmarks.load --minutes $(or $(MINUTES),10) --rate $(or $(RATE),1)

fourteen-days: setup ## Fourteen days of a game that runs by itself, with what goes wrong in them, in some minutes
	@mkdir -p build; $(RUN)python -m benchmarks.fourteen_days 2> build/fourteen-days.log || { tail -n 40 build/fourteen-days.log; exit 1; }

docs: setup ## The docs with their generated reference as a site: build/docs/index.html
	@NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(RUN)mkdocs build --strict --quiet
	@echo "docs: build/docs/index.html"

evidence: setup ## Make the runs behind docs/evidence again: ten seeds, five generations, two games (resumable; about 2 hours of processor time a seed and game, 20 hours on 2 cores with AVX512-BF16)
	@$(RUN)python -m benchmarks.evidence --game posts
	@$(RUN)python -m benchmarks.evidence --game amounts --begin posts:2

lock: ## Make each requirements*.lock from its .in file again; UPGRADE=1 takes the newest versions
	@scripts/lock.sh

audit: setup ## Known advisories, licences and hashes of the locked packages; AUDIT=--print-advisories fails for the last two alone
	@$(RUN)python scripts/supply_chain.py audit $(AUDIT)

wheel: setup ## The wheel, its bill of materials (CycloneDX) and their digests: build/wheel
	@$(RUN)python scripts/supply_chain.py wheel

env-example: setup ## Make .env.example from the settings again
	@.venv/bin/python scripts/env_example.py > .env.example.new && mv .env.example.new .env.example
