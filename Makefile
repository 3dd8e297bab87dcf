# Every target runs the set-up first, which does nothing until pyproject.toml or constraints.txt change.
# ARGS is passed to the command: make test ARGS='-k ledger', make quickstart ARGS='name=mine'.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

# CUDA builds on a machine with a working NVIDIA driver, CPU builds elsewhere.
EXTRA := $(shell if nvidia-smi -L >/dev/null 2>&1; then echo gpu; else echo cpu; fi)
PINS := $(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
STAMP := $(VENV)/.consomme-$(EXTRA)-$(PINS)

# `===` matches the exact version without a suffix, so pip does not take a CPU build.
TORCH := $(if $(filter gpu,$(EXTRA)),torch===2.13.0,torch==2.13.0)

# Many containers disable Python's bytecode cache. Ray starts many processes, and each would compile
# its imports again. So the cache is enabled, and set-up compiles the modules that all processes
# import; compiling every installed module would take three times as long.
export PYTHONDONTWRITEBYTECODE :=
IMPORTED := consomme.engines.scoring.transformers, consomme.engines.generation.vllm, \
            vllm.v1.engine.async_llm, ray.data, ray.train.torch, ray.tune, \
            torch.distributed.fsdp, deepspeed
# vLLM and transformers need this before they are imported beside a CPU build of torch.
PREPARE := from consomme.engines.vllm_environment import prepare_environment; \
           from consomme.models.imports import import_transformers; \
           prepare_environment(); import_transformers();

# Without this, DeepSpeed looks for a compiler; its operators are built on first use, if ever.
PIP := DS_BUILD_OPS=0 $(BIN)/python -m pip --disable-pip-version-check
# uv takes a quarter of pip's time but ignores pip's settings; if they name a package index that is
# needed, uv fails and pip installs.
UV := DS_BUILD_OPS=0 $(BIN)/uv pip install --quiet --python $(BIN)/python
HERE := '.[$(EXTRA),dev]'
install = $(UV) $(1) || $(PIP) install --quiet --no-compile $(1)
PYTHON_IS_FIT := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))

.PHONY: help setup quickstart test test-quick lint format bench chaos clean

help:
	@echo 'make setup        create $(VENV) and install everything, pinned ($(EXTRA))'
	@echo 'make quickstart   run the whole loop on real images; prints a table and the path of a report'
	@echo 'make test         run all tests; skips what this machine cannot run'
	@echo 'make test-quick   run the tests that start neither Ray nor vLLM and are not slow'
	@echo 'make lint         check format, lint, types and import contracts'
	@echo 'make format       format, and apply automatic fixes'
	@echo 'make bench        run the benchmarks; writes tests/benchmarks/results/ and the tables'
	@echo 'make chaos        kill processes at random moments for some hours; ARGS=seed=2'
	@echo 'make clean        remove $(VENV) and caches, but no runs'

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@if ! $(BIN)/python -c '$(PYTHON_IS_FIT)' 2>/dev/null; then \
	  for name in python3.11 python3.12 python3; do \
	    if $$name -c '$(PYTHON_IS_FIT)' 2>/dev/null; then found=$$name; break; fi; \
	  done; \
	  if [ -z "$${found:-}" ]; then \
	    echo 'consomme needs Python 3.11 or 3.12: found neither python3.11, python3.12 nor a' \
	      'fitting python3. On Debian: apt-get install python3.11 python3.11-venv' >&2; \
	    exit 2; \
	  fi; \
	  echo "Creating $(VENV) with $$found"; \
	  rm -rf $(VENV); \
	  if ! $$found -m venv $(VENV); then \
	    rm -rf $(VENV); \
	    echo "$$found cannot make virtual environments." \
	      "On Debian: apt-get install $$found-venv" >&2; \
	    exit 2; \
	  fi; \
	fi
	@echo 'Installing pinned dependencies ($(EXTRA)); this happens once and takes some minutes'
	$(PIP) install --quiet --no-compile -c constraints.txt '$(TORCH)' uv
	$(call install,-c constraints.txt -e $(HERE))
ifeq ($(EXTRA),cpu)
	@# torchvision has no CPU build here, and its dependencies would install a CUDA torch.
	$(call install,--no-deps torchvision==0.28.0)
endif
	@said=$$($(BIN)/python -c '$(PREPARE) import $(IMPORTED)' 2>&1) || { echo "$$said" >&2; exit 1; }
	@rm -f $(VENV)/.consomme-*
	@touch $@

quickstart: setup
	$(BIN)/consomme loop recipes/quickstart.yaml $(ARGS)

# Three parts run in parallel, because tests on Ray often wait; the output of the second and third is
# shown when they are done. What kills parts of Ray runs in a process of its own, with other tests on
# Ray that start one of their own. Exit code 5 of pytest: ARGS selects no test of that part.
PYTEST := $(BIN)/python -m pytest --durations=25
MODELS := tests/train tests/engines
LOSSES := tests/chaos tests/execution tests/pipelines/test_job_submit.py \
          tests/pipelines/test_planted_secrets.py tests/test_strangers.py

test: setup
	@mkdir -p build
	@$(PYTEST) tests $(MODELS:%=--ignore=%) -m 'not ray and not long' $(ARGS) \
	  > build/second.log 2>&1 & second=$$!; \
	( models=0; losses=0; \
	  $(PYTEST) $(MODELS) -m 'not ray and not long' $(ARGS) || models=$$?; \
	  $(PYTEST) $(LOSSES) -m 'ray and not long' $(ARGS) || losses=$$?; \
	  echo $$models $$losses > build/third.codes ) > build/third.log 2>&1 & third=$$!; \
	codes=0; $(PYTEST) tests $(LOSSES:%=--ignore=%) -m 'ray and not long' $(ARGS) || codes=$$?; \
	there=0; wait $$second || there=$$?; wait $$third || { echo 1 > build/third.codes; }; \
	cat build/second.log build/third.log; \
	codes="$$codes $$there $$(cat build/third.codes)"; \
	for code in $$codes; do case "$$code" in 0 | 5) ;; *) exit 1 ;; esac; done; \
	case "$$codes" in *0*) ;; *) echo 'ARGS selects no test' >&2; exit 1 ;; esac

# loadfile: the tests of a file share models and servers.
test-quick: setup
	$(BIN)/python -m pytest tests -n logical --maxprocesses 8 --dist loadfile \
	  -m 'not ray and not vllm and not slow and not long' $(ARGS)

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy platform/consomme
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup
	$(BIN)/python -m tests.benchmarks.run $(ARGS)

chaos: setup
	$(BIN)/python -m pytest tests -m long
	$(BIN)/python -m tests.chaos.engines
	$(BIN)/python -m tests.chaos.training
	$(BIN)/python -m tests.chaos.training ranks=2
	$(BIN)/python -m tests.chaos.matrix $(ARGS)
	$(BIN)/python -m tests.chaos.verbs $(ARGS)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
