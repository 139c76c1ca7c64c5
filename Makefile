# The front door. `make` prints the targets. RUNTIME=local runs them in .venv, RUNTIME=docker in containers.
SHELL := bash
.DEFAULT_GOAL := help
.PHONY: always help setup demo test lint format lock doctor pull-data pack pretrain convert finetune eval speed report

RUNTIME ?= local
METHOD ?= triplet
RUN ?= $(METHOD)
FORCE ?=
ARGS ?=
PRETRAIN ?= configs/pretrain/triplet_resnet50_8x196x4-larscos-1000e_imagenet.yaml
DETECTION ?= configs/detection/coco_r50_c4_2x_authors.yaml
IMAGES ?= imagenet/train
COCO ?= coco
NAME ?= packed
PULL ?= coco
SEED ?= 0

on = $(filter-out 0 no false,$(1))
force = $(if $(call on,$(FORCE)),--force)
ifeq ($(RUNTIME),local)
  # $(call triplet,stage,service)
  triplet = .venv/bin/triplet $(1)
  environment = .venv/complete
else ifeq ($(RUNTIME),docker)
  triplet = docker compose run --rm $(or $(2),$(1))
  environment = compose.yaml
else
  $(error RUNTIME is local or docker: found '$(RUNTIME)')
endif

# One process a GPU. With several, torchrun (in triplet.launch) starts them; every node runs the same command.
GPUS ?= 1
NODES ?= 1
RDZV ?= localhost:0
processes = $(shell echo $$(($(GPUS) * $(NODES))))
ifeq ($(processes),1)
  launch = $(call triplet,pretrain)
else ifeq ($(RUNTIME),local)
  launch = TRIPLET_PROCESSES=$(processes) .venv/bin/python -m triplet.launch --nnodes $(NODES) --nproc-per-node $(GPUS) \
    --rdzv-backend c10d --rdzv-endpoint $(RDZV) --no-python -- .venv/bin/triplet pretrain
else
  launch = docker compose run --rm -e GPUS=$(GPUS) -e NODES=$(NODES) -e RDZV=$(RDZV) pretrain
endif

help: ## print this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | \
	  while IFS='|' read -r name text; do printf '  make %-10s %s\n' "$$name" "$$text"; done

# Asking for another Python or Detectron2 makes the environment anew.
.venv/complete: docker/requirements.lock docker/versions.env scripts/setup.sh pyproject.toml \
  $(if $(PYTHON)$(DETECTRON2),always)
	@PYTHON="$(PYTHON)" DETECTRON2="$(DETECTRON2)" scripts/setup.sh

compose.yaml:
	@echo "RUNTIME=docker needs compose.yaml, which this checkout lacks; use RUNTIME=local" >&2; exit 2

always:

setup: .venv/complete ## make .venv with every package at its pinned version

demo: $(environment) ## the whole pipeline in small (DATA=folder in COCO's layout, IMAGES=folder, SEEDS="0 1 2")
	@$(call triplet,demo) $(force) $(if $(DATA),--data "$(DATA)") \
	  $(if $(filter command environment,$(origin IMAGES)),--images "$(IMAGES)") $(if $(SEEDS),--seeds $(SEEDS)) $(ARGS)

test: .venv/complete ## the fast tests
	@.venv/bin/pytest $(ARGS)

lint: .venv/complete ## ruff and mypy
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy

format: .venv/complete ## let ruff format and mend the code
	@.venv/bin/ruff check --fix . ; .venv/bin/ruff format .

lock: .venv/complete ## derive docker/requirements.lock anew from docker/versions.env and pyproject.toml
	@scripts/lock.sh $(ARGS)

doctor: ## what this machine has, and what to run for what is missing
	@if [ -x .venv/bin/triplet ]; then .venv/bin/triplet doctor; \
	 else echo "doctor: no environment yet ($$(python3 --version 2>&1)); run: make setup" >&2; exit 1; fi

pull-data: $(environment) ## fetch and verify data sets and weights (PULL="coco weights", METHOD=row, FROM=path, CHECK=1, PLAN=1)
	@$(call triplet,pull,download) $(PULL) $(if $(filter command environment,$(origin METHOD)),--method $(METHOD)) \
	  $(if $(FROM),--from "$(FROM)") $(if $(call on,$(CHECK)),--check) $(if $(call on,$(PLAN)),--plan) $(force) $(ARGS)

pack: $(environment) ## put IMAGES into tar shards below datasets/ (NAME=folder), for shared file systems
	@$(call triplet,pack) "$(IMAGES)" --name "$(NAME)" $(force) $(ARGS)

pretrain: $(environment) ## pretrain with the truncated triplet loss (GPUS=n, NODES=n RDZV=host:port, IMAGES=folder)
	@$(launch) --run "$(RUN)" --config "$(PRETRAIN)" --data "$(IMAGES)" $(if $(WEIGHTS),--weights "$(WEIGHTS)" )$(force) $(ARGS)

convert: $(environment) ## turn the pretraining, or WEIGHTS=file, into Detectron2's weights, with proof
	@$(call triplet,convert) --run "$(RUN)" --config "$(DETECTION)" $(if $(WEIGHTS),--weights "$(WEIGHTS)") $(force) $(ARGS)

finetune: $(environment) ## train Mask R-CNN on COCO (DETECTION=config, COCO=folder, METHOD=row, SEED=n)
	@$(call triplet,finetune) --run "$(RUN)" --config "$(DETECTION)" --data "$(COCO)" --seed "$(SEED)" $(force) $(ARGS)

eval: $(environment) ## evaluate the finetuned model on val2017
	@$(call triplet,eval) --run "$(RUN)" $(force) $(ARGS)

speed: .venv/complete ## measure the kit's speed beside the released code's (OUTPUT=file.json)
	@.venv/bin/python -m benchmarks.speed.run $(if $(OUTPUT),--output "$(OUTPUT)") $(ARGS)

report: $(environment) ## put every number beside the paper's: reports/index.html
	@$(call triplet,report)
