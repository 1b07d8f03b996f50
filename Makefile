# `make` lists the targets. Any POSIX sh and GNU make will do; every Python package lives in .venv.

.DEFAULT_GOAL := help
.PHONY: help setup test test-fast lint mqar figures dashboard illustrations sweep bench prepare-text pretrain evaluate finetune clean check-scale check-source
# The prerequisites of a target are steps in an order; parallel runs are the launcher's business (JOBS).
.NOTPARALLEL:

VENV = .venv
# make TARGET PY=python uses an environment of your own (conda, say) and skips set-up.
PY = $(VENV)/bin/python
STAMP = $(VENV)/.setup-done
PYTHON ?=
PYTHONS = $(or $(PYTHON),python3.11 python3.12 python3)

# One word of the shell, whatever spaces and quotes a path has.
quoted = '$(subst ','\'',$(1))'

# Asked at most once, and only by the targets that want to know.
GPUS = $(eval GPUS := $(shell nvidia-smi -L 2>/dev/null | grep -c '^GPU '))$(GPUS)
GPU = $(filter-out 0,$(GPUS))
CORES = $(eval CORES := $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1))$(CORES)

SCALES = laptop h200 paper
ifeq ($(origin SCALE),undefined)
SCALE = $(if $(GPU),h200,laptop)
SCALE_ARG =
SCALE_WHY = $(if $(GPU),nvidia-smi lists a GPU,nvidia-smi lists no GPU); override with SCALE=
else
SCALE_ARG = --scale $(SCALE)
SCALE_WHY = as you asked
endif
# One run a GPU, or one a core at laptop scale; more than there are GPUs packs several on each.
JOBS ?= $(if $(filter laptop,$(SCALE)),$(CORES),$(GPUS))
SWEEP ?=
ARGS ?=
TEST_JOBS ?= 2
TRAINER = $(if $(filter laptop,$(SCALE)),cpu,gpu)
# A launcher of your own in ARGS, Slurm's say, decides for itself how many runs there are at a time, and where.
OWN_LAUNCHER = $(findstring hydra/launcher=,$(ARGS))
LAUNCHER = $(if $(OWN_LAUNCHER),,$(if $(filter-out 1,$(JOBS)),hydra/launcher=joblib hydra.launcher.n_jobs=$(JOBS)))
AT_A_TIME = $(if $(OWN_LAUNCHER),as ARGS says,JOBS=$(JOBS) at a time)

# Nothing leaves the machine unless you say so: WANDB_MODE=online make mqar
WANDB_MODE ?= offline
export WANDB_MODE

help: ## List the targets
	@echo "usage: make TARGET [NAME=value ...]"
	@echo
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  SCALE     $(SCALES): the size of an experiment (default: h200 with a GPU, else laptop)"
	@echo "  JOBS      runs at a time (default: one a core at laptop scale, else one a GPU; more packs them)"
	@echo "  SWEEP     a file of configs/sweep (default: learning_rate for make sweep, mqar_figure2 for make mqar)"
	@echo "  MODEL     of make pretrain: a file of configs/model/lm"
	@echo "  DATA      of make pretrain and make finetune: a folder that make prepare-text has made; of make evaluate: a folder"
	@echo "            of the tasks' records"
	@echo "  TASK      of make finetune without DATA: a file of configs/task (default: of a run its own, else the novel's text)"
	@echo "  SOURCE    of make finetune: a run's directory, a folder of scripts/convert.py, or a Mamba-2 to be converted"
	@echo "  CHECKPOINT, LIMIT  of make evaluate: a run's directory or a Hugging Face folder; items a task"
	@echo "  WATCH     of make dashboard: 1 to follow a running sweep until Ctrl-C"
	@echo "  ARGS      more Hydra overrides for what trains, makes or times something, more pytest arguments for what tests"
	@echo "  PYTHON    the interpreter that set-up uses (default: python3.11, else python3.12, else python3)"
	@echo "  PY        an environment of your own, PY=python, to be used as it is instead of .venv"

setup: ## Create .venv with the pinned packages (skipped when that is done)
	@set -eu; \
	if [ "$(PY)" != $(VENV)/bin/python ]; then echo "setup: skipped, using $(PY) as it is"; exit 0; fi; \
	want="$$(cat requirements.lock pyproject.toml | cksum) $(CURDIR)"; \
	if [ "$$(cat $(STAMP) 2>/dev/null || true)" = "$$want" ] && $(PY) -c 'import pip' 2>/dev/null; then \
	  echo "setup: $(VENV) is up to date"; exit 0; \
	fi; \
	rm -f $(STAMP); \
	if ! $(PY) -c 'import pip' >/dev/null 2>&1; then \
	  if [ -e $(VENV) ] || [ -L $(VENV) ]; then \
	    if [ ! -f $(VENV)/pyvenv.cfg ]; then \
	      echo "setup: $(VENV) exists and is not a virtual environment: move it away" >&2; exit 1; \
	    fi; \
	    echo "setup: the Python of $(VENV) is gone or incomplete: building it anew"; \
	    rm -rf $(VENV); \
	  fi; \
	  python=; \
	  for candidate in $(PYTHONS); do \
	    if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' \
	        >/dev/null 2>&1; then python="$$candidate"; break; fi; \
	  done; \
	  if [ -z "$$python" ]; then \
	    echo "setup: no Python 3.11 or 3.12 with its venv module found (tried: $(PYTHONS))." >&2; \
	    echo "setup: install one (Debian: python3.11 python3.11-venv) or name it: make setup PYTHON=/path/to/python3.11" >&2; \
	    exit 1; \
	  fi; \
	  echo "setup: creating $(VENV) with $$python ($$("$$python" --version 2>&1))"; \
	  "$$python" -m venv $(VENV); \
	fi; \
	quiet=--quiet; if [ -t 1 ]; then quiet=; fi; \
	torch="$$(grep '^torch==' requirements.lock)"; \
	echo "setup: 1/3 installing $$torch (as downloaded by default this can be several GB)"; \
	$(if $(GPU),,echo "setup:     no GPU here? CONTRIBUTING.md says how to get the small CPU build (PIP_EXTRA_INDEX_URL)";) \
	$(PY) -m pip install $$quiet "$$torch"; \
	echo "setup: 2/3 installing the other pinned packages of requirements.lock (a few minutes)"; \
	$(PY) -m pip install $$quiet -r requirements.lock; \
	echo "setup: 3/3 installing palimpsa itself, editable"; \
	$(PY) -m pip install $$quiet --no-deps --no-build-isolation -e .; \
	echo "$$want" > $(STAMP).tmp; \
	mv $(STAMP).tmp $(STAMP); \
	echo "setup: done"

test: setup ## Lint, then run the tests (ARGS="-k name" for some of them)
	@echo "test: ruff, then pytest on $(TEST_JOBS) processes, offline"
	$(PY) -m ruff check .
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(PY) -m pytest -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-fast: setup ## Run the tests that take a minute together (what is left out: tests/conftest.py)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(PY) -m pytest -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder -m "not slow and not gpu" --durations 10 $(ARGS)

lint: setup ## Check style, formatting and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright

# Where runs and figures go is for the composed config to say, which reproduce.py asks. It ends with 0; with 1 where a run
# is not finished, whose figures are drawn all the same; with 2 for a wrong command line, with 130 for an interrupt.
mqar: SWEEP_NAME = $(or $(SWEEP),mqar_figure2)
mqar: check-scale setup ## Reproduce Figures 2 and 3 (MQAR): train, collect, plot; SWEEP=mqar_figure2_grid for every run
	@echo "mqar: $(SWEEP_NAME) at scale $(SCALE) ($(SCALE_WHY)), $(AT_A_TIME)"
	$(PY) scripts/reproduce.py -m +sweep=$(SWEEP_NAME) scale=$(SCALE) trainer=$(TRAINER) $(LAUNCHER) $(ARGS)

figures: setup ## Draw the figures, count the models, write the numbers of README again (no GPU, no network)
	$(PY) scripts/plot_figures.py --results results/mqar $(SCALE_ARG)
	$(if $(wildcard results/recipe/runs.csv),$(PY) scripts/plot_figures.py --results results/recipe)
	$(PY) scripts/illustrate.py --results results/illustrations
	$(PY) scripts/describe_models.py --out docs/models.md
	$(if $(wildcard results/kernels/operators_*.csv results/kernels/throughput_*.csv),$(PY) scripts/plot_benchmark.py --results results/kernels)
	$(if $(wildcard results/training/steps_*.csv),$(PY) scripts/plot_benchmark.py --results results/training)
	$(if $(wildcard results/commonsense/evaluation.csv),$(PY) scripts/plot_evaluation.py --results results/commonsense)
	$(if $(wildcard results/finetuning/*.csv),$(PY) scripts/plot_finetuning.py --results results/finetuning)
	$(if $(wildcard results/calibration/calibration.csv),$(PY) scripts/plot_calibration.py --results results/calibration)
	$(PY) scripts/write_numbers.py

# It ends with the address of the page, also where nothing has been trained yet.
WATCH ?=
dashboard: setup ## Build pages of all results, to be opened in a browser: WATCH=1 follows a running sweep
	$(PY) scripts/dashboard.py --results results $(if $(WATCH),--watch) $(ARGS)

illustrations: setup ## Compute what Figure 4 and capacity.png show, where it is out of date (minutes)
	$(PY) scripts/illustrate.py --results results/illustrations --compute

bench: setup ## Time the operators, or training (ARGS="benchmark=training"): on the GPU, or small on a CPU
	$(PY) scripts/benchmark.py $(ARGS)

# Alone: what two CPU cores train in minutes, on a GPU machine too; and so on data of one's own where there is no GPU.
DATA ?=
MODEL ?= $(if $(filter laptop,$(SCALE)),palimpsa_d_tiny,palimpsa_d_170m)
pretrain: SCALE = $(if $(DATA),$(if $(GPU),h200,laptop),laptop)
pretrain: check-scale setup ## Pretrain a language model: MODEL=palimpsa_d_170m DATA=dir (alone: a tiny one, on a novel)
	$(if $(DATA),,$(PY) scripts/prepare_text.py source=sample tokenizer=bytes validation_every=8 directory=data/sample)
	$(PY) scripts/pretrain.py task=commonsense model=lm/$(MODEL) task.data=$(or $(DATA),data/sample) scale=$(SCALE) trainer=$(TRAINER) $(ARGS)

# Without DATA and TASK a run goes on with its own task, and what is no run reads the novel.
SOURCE ?=
TASK ?=
finetune: SCALE = $(if $(GPU),h200,laptop)
finetune: check-source check-scale setup ## Fine-tune a trained model as a metaplastic one: SOURCE=model DATA=dir, or TASK=name
	$(if $(DATA)$(TASK),,$(PY) scripts/prepare_text.py source=sample tokenizer=bytes validation_every=8 directory=data/sample)
	$(PY) scripts/finetune.py $(call quoted,$(SOURCE)) $(if $(DATA),task=commonsense $(call quoted,task.data=$(DATA)),$(if $(TASK),task=$(TASK))) scale=$(SCALE) trainer=$(TRAINER) $(ARGS)

# Without CHECKPOINT the run of make pretrain, without DATA the hub's data.
CHECKPOINT ?=
LIMIT ?=
evaluate: setup ## Evaluate a trained model: CHECKPOINT=run-or-folder DATA=dir-of-tasks LIMIT=items (alone: make pretrain's)
	$(PY) scripts/evaluate.py $(if $(CHECKPOINT),checkpoint=$(CHECKPOINT)) $(if $(DATA),evaluation.data_dir=$(DATA)) $(if $(LIMIT),evaluation.limit=$(LIMIT)) $(ARGS)

prepare-text: setup ## Make token shards for pretraining, of FineWeb-Edu (offline: ARGS="source=sample tokenizer=bytes")
	$(PY) scripts/prepare_text.py $(ARGS)

sweep: SWEEP_NAME = $(or $(SWEEP),learning_rate)
sweep: check-scale setup ## Run another sweep: make sweep SWEEP=learning_rate ARGS="model=gla"
	@echo "sweep: $(SWEEP_NAME) at scale $(SCALE) ($(SCALE_WHY)), $(AT_A_TIME)"
	$(PY) scripts/train.py -m +sweep=$(SWEEP_NAME) scale=$(SCALE) trainer=$(TRAINER) $(LAUNCHER) $(ARGS)

clean: ## Remove .venv and caches; results stay
	@if [ -e $(VENV) ] && [ ! -f $(VENV)/pyvenv.cfg ]; then \
	  echo "clean: $(VENV) is not a virtual environment: left alone" >&2; exit 1; \
	fi
	rm -rf $(VENV) build dist src/palimpsa.egg-info .pytest_cache .ruff_cache .hypothesis .coverage
	find kernels src scripts tests -type d -name __pycache__ -prune -exec rm -rf {} +

check-source:
	@if [ -z $(call quoted,$(SOURCE)) ]; then \
	  echo "SOURCE= is missing: make finetune SOURCE=model, a run's directory or a folder (docs/finetuning.md)" >&2; exit 2; \
	fi

check-scale:
	@known=; for scale in $(SCALES); do if [ "$$scale" = "$(SCALE)" ]; then known=yes; fi; done; \
	if [ -z "$$known" ]; then \
	  echo "SCALE=$(SCALE) is not a scale; choose one of: $(SCALES)" >&2; exit 2; \
	fi; \
	if [ "$(SCALE)" != laptop ] && [ -z "$(OWN_LAUNCHER)$(GPU)" ]; then \
	  echo "SCALE=$(SCALE) needs an NVIDIA GPU, and nvidia-smi -L lists none here. SCALE=laptop runs on a CPU." >&2; exit 2; \
	fi
