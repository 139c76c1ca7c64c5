# The front door. `make` prints the targets. RUNTIME=local runs them in .venv, RUNTIME=docker in containers.
SHELL := bash
.DEFAULT_GOAL := help
.PHONY: $(shell sed -nE 's/^([a-z-]+):.*/\1/p' $(MAKEFILE_LIST))  # no target is a file but .venv/complete

# Options and their defaults are declared in triplet/cli/ alone: what is passed on here is what the user has set.
RUNTIME ?= local

on = $(filter-out 0 no false,$(1))
force = $(if $(call on,$(FORCE)),--force)
json = $(if $(call on,$(JSON)),--json)
ifeq ($(RUNTIME),local)
  # $(call triplet,command); with Docker each is a service of the same name
  triplet = .venv/bin/triplet $(1)
  environment = .venv/complete
else ifeq ($(RUNTIME),docker)
  # What is named by a path of this machine is mounted there, read-only; a path may hold blanks.
  paths = DATA IMAGES TRAIN TRAIN_IMAGES VAL VAL_IMAGES COCO VOC WEIGHTS MODEL FROM CLASSES LIST DETECTION LOG VERIFY
  mounts = $(strip $(foreach name,$(paths),$(if $(filter /%,$(firstword $($(name)))),-v "$($(name)):$($(name)):ro")))
  triplet = docker compose run --rm $(mounts) $(1)
  environment = ready
else
  $(error RUNTIME is local or docker: found '$(RUNTIME)')
endif

# $(call option,name,value): the option, where the user has set its value
option = $(if $(2),--$(1) "$(2)")
run = $(call option,run,$(or $(RUN),$(METHOD)))

# $(call launch,stage): one process a GPU. With several, torchrun (in triplet.launch) starts them; every node runs the
# same command.
GPUS ?= 1
NODES ?= 1
RDZV ?= localhost:0
ifneq ($(NODES),1)
  ifeq ($(RDZV)$(filter submit,$(MAKECMDGOALS)),localhost:0)
    $(error NODES=$(NODES) needs RDZV=host:port, of one of the nodes and the same on each)
  endif
endif
ifneq ($(shell [ "$(GPUS)" -gt 0 ] 2>/dev/null && [ "$(NODES)" -gt 0 ] 2>/dev/null && echo yes),yes)
  $(error GPUS and NODES are whole numbers from 1 on: found GPUS='$(GPUS)' NODES='$(NODES)')
endif
processes = $(shell echo $$(($(GPUS) * $(NODES))))
ifeq ($(processes),1)
  launch = $(call triplet,$(1))
else ifeq ($(RUNTIME),local)
  launch = TRIPLET_PROCESSES=$(processes) .venv/bin/python -m triplet.launch --nnodes $(NODES) --nproc-per-node $(GPUS) \
    --rdzv-backend c10d --rdzv-endpoint $(RDZV) --no-python -- .venv/bin/triplet $(1)
else
  launch = $(if $(filter-out 1,$(NODES)),LAUNCH_NETWORK=host) GPUS=$(GPUS) NODES=$(NODES) RDZV=$(RDZV) \
    $(call triplet,$(1))
endif

# What the user has told a stage, on this machine and in the jobs of `make submit`.
words-pull = $(PULL) $(call option,from,$(FROM))
words-pack = $(if $(IMAGES),"$(IMAGES)") $(call option,name,$(NAME))
words-pretrain = $(call option,engine,$(ENGINE)) $(call option,config,$(PRETRAIN)) $(call option,data,$(IMAGES)) \
  $(call option,weights,$(WEIGHTS))
words-convert = $(call option,config,$(DETECTION)) $(call option,weights,$(WEIGHTS))
words-finetune = $(call option,config,$(DETECTION)) $(annotated) $(call option,seed,$(SEED)) \
  $(call option,schedule,$(SCHEDULE))
words-eval = $(call option,data,$(or $(DATA),$(COCO))) $(call option,val,$(VAL)) $(call option,val-images,$(VAL_IMAGES)) \
  $(if $(MODEL),$(call option,model,$(MODEL)) $(call option,config,$(DETECTION)))  # without MODEL, the run's own config
on-imagenet = $(call option,data,$(IMAGES)) $(call option,val,$(VAL)) $(call option,weights,$(WEIGHTS)) \
  $(call option,classes,$(CLASSES))
words-linear = $(on-imagenet) $(call option,config,$(LINEAR))
words-knn = $(on-imagenet) $(call option,config,$(KNN))
words-semi = $(on-imagenet) $(call option,percent,$(PERCENT)) $(call option,list,$(LIST)) $(if $(call on,$(DRAW)),--draw)
words-demo = $(call option,data,$(DATA)) $(call option,images,$(IMAGES))
words-report = $(call option,export,$(EXPORT))
words-svm = $(call option,config,$(SVM)) $(call option,data,$(VOC)) $(call option,weights,$(WEIGHTS))

help: ## print this list
	@sed -nE 's/^([a-z-]+):.*## ([^(]*)( \((.*)\))?$$/\1|\2|\4/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text words; do \
	  printf '  make %-17s %s\n' "$$name" "$$text"; [ -z "$$words" ] || printf '%25s%s\n' '' "$$words"; done

# Asking for another Python or other packages makes the environment anew.
.venv/complete: docker/requirements.lock docker/versions.env scripts/setup.sh scripts/packages.sh pyproject.toml \
  $(if $(PYTHON)$(DETECTRON2)$(DALI)$(TORCH)$(WHEELHOUSE),always)
	@PYTHON="$(PYTHON)" DETECTRON2="$(DETECTRON2)" DALI="$(DALI)" TORCH="$(TORCH)" WHEELHOUSE="$(WHEELHOUSE)" scripts/setup.sh

ready:
	@scripts/ready.sh

always:

setup: .venv/complete ## make .venv with every package at its pinned version (PYTHON=program, TORCH=cpu, DALI=1|0, DETECTRON2=git|pypi, WHEELHOUSE=folder)

wheelhouse: .venv/complete ## collect what `make setup` installs, for a machine without network (OUTPUT=folder, FOR=3.12, MACHINE=aarch64)
	@.venv/bin/python -m scripts.wheelhouse "$(or $(OUTPUT),artifacts/wheelhouse)" $(call option,python,$(FOR)) \
	  $(call option,machine,$(MACHINE)) $(ARGS)

demo: $(environment) ## run the whole pipeline on a small scale (DATA=folder of annotated images, IMAGES=folder, SEEDS="0 1 2")
	@$(call triplet,demo) $(force) $(words-demo) $(if $(SEEDS),--seeds $(SEEDS)) $(ARGS)

# Slow tests wait for processes, timers and the network: a third worker uses the cores meanwhile.
test: .venv/complete ## run the fast tests (SLOW=1 for all: several processes, stops and resumes, the whole chain)
	@$(call extra,interchange) || echo "test: tests of an exported backbone are skipped where their library is missing"
	@.venv/bin/pytest --dist worksteal $(if $(call on,$(SLOW)),-n 3,-n 2 -m "not slow") $(ARGS)

check: lint ## lint, check types, and run the fast tests that the changes since the last check can affect
	@.venv/bin/pytest --testmon -m "not slow" $(ARGS)

fuzz: .venv/complete ## give damaged files to every reader (MINUTES=2, ARGS="--reader weights --seed 1")
	@.venv/bin/python -m tests.fuzz.run $(call option,minutes,$(MINUTES)) $(ARGS)

# On a machine without network, by its own Python: make test-gpu PYTHON=python3 (what that lacks: scripts/wheels.sh).
test-gpu: $(if $(PYTHON),,.venv/complete) ## run the tests that need a GPU (PYTHON=python3 does without .venv)
	@TEST_GPU=1 $(or $(PYTHON),.venv/bin/python) -m pytest -m gpu \
	  $$(grep -rlE '(mark|pytest)\.gpu' tests --include='test_*.py') $(ARGS)

mutants: .venv/complete ## list the plausible mistakes in a file that its tests miss (MODULE=triplet/x.py, TESTS="files", MOST=number)
	@.venv/bin/python -m tests.mutants $(MODULE) $(if $(TESTS),--tests $(TESTS)) $(call option,most,$(MOST)) $(ARGS)

lint: .venv/complete ## run ruff and mypy
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy

format: .venv/complete ## format the code, and mend what ruff can mend
	@.venv/bin/ruff check --fix . ; .venv/bin/ruff format .

lock: .venv/complete ## derive docker/requirements.lock from docker/versions.env and pyproject.toml
	@scripts/lock.sh $(ARGS)

audit: .venv/complete ## look for known vulnerabilities and for licences that are not allowed (AUDIT_DB=all.zip of OSV, without network)
	@$(call extra,audit)
	@.venv/bin/python -m scripts.audit $(call option,database,$(AUDIT_DB)) $(ARGS)

doctor: ## say what this machine has, and what to run for what is missing (JSON=1)
	@if [ $(RUNTIME) = docker ]; then scripts/ready.sh && $(call triplet,doctor) $(json) $(ARGS); \
	 elif [ -x .venv/bin/triplet ]; then .venv/bin/triplet doctor $(json) $(ARGS); \
	 else echo "doctor: no environment yet ($$(python3 --version 2>&1)); run: make setup" >&2; exit 1; fi

pull: $(environment) ## fetch and verify data sets and weights (PULL="coco weights", METHOD=name, FROM=path, CHECK=1, PLAN=1)
	@$(call triplet,pull) $(words-pull) $(if $(METHOD),--method $(METHOD)) \
	  $(if $(call on,$(CHECK)),--check) $(if $(call on,$(PLAN)),--plan) $(force) $(ARGS)

pull-data: pull  # its former name

pack: $(environment) ## put images into tar shards, for shared file systems (IMAGES=folder, NAME=folder)
	@$(call triplet,pack) $(words-pack) $(force) $(ARGS)

# Annotated images: a folder, or JSONs in COCO's format and the folders of their images
annotated = $(call option,data,$(or $(DATA),$(COCO))) $(call option,train,$(TRAIN)) $(call option,train-images,$(TRAIN_IMAGES)) \
  $(call option,val,$(VAL)) $(call option,val-images,$(VAL_IMAGES)) \
  $(call option,val-share,$(VAL_SHARE)) $(call option,split-seed,$(SPLIT_SEED))

data: $(environment) ## look at annotated images before training: what is in them, what is odd, a picture (DATA=folder, or TRAIN=file TRAIN_IMAGES=folder VAL=file VAL_IMAGES=folder)
	@$(call triplet,data) $(annotated) $(ARGS)

pretrain: $(environment) ## pretrain a backbone (METHOD=name, GPUS=n, NODES=n RDZV=host:port, IMAGES=folder, WEIGHTS=file, ENGINE=kit|openselfsup)
	@$(call launch,pretrain) $(run) $(words-pretrain) $(force) $(ARGS)

export: $(environment) ## write the backbone for other libraries (METHOD=name, WEIGHTS=file, FORMAT=safetensors|pth|onnx)
ifeq ($(RUNTIME)$(FORMAT),localonnx)
	@$(call extra,onnx)
endif
	@$(call triplet,export) $(run) $(call option,weights,$(WEIGHTS)) $(call option,format,$(FORMAT)) $(force) $(ARGS)

convert: $(environment) ## convert a backbone to Detectron2's format, with proof (METHOD=name, WEIGHTS=file, DETECTION=config)
	@$(call triplet,convert) $(run) $(words-convert) $(force) $(ARGS)

finetune: $(environment) ## train a detector on COCO, or on your own data (METHOD=name, GPUS=n, HOURS=of training or SCHEDULE=1/4x, DATA=folder, DETECTION=config, SEED=n)
	@$(call launch,finetune) $(run) $(words-finetune) $(call option,hours,$(HOURS)) $(force) $(ARGS)

plan: $(environment) ## say what a finetuning takes and what AP to expect, before it begins (METHOD=name, GPU=card or PRESET=kaggle, GPUS=n, MEMORY=GB, HOURS=h or SCHEDULE=1/4x, DATA=folder)
	@$(call triplet,plan) $(call option,method,$(METHOD)) $(call option,config,$(DETECTION)) $(annotated) \
	  $(if $(filter-out file,$(origin GPUS) $(origin NODES)),--gpus "$(processes)") $(call option,memory,$(MEMORY)) \
	  $(call option,gpu,$(GPU)) $(call option,preset,$(PRESET)) $(call option,hours,$(HOURS)) \
	  $(call option,schedule,$(SCHEDULE)) $(json) $(ARGS)

explain: $(environment) ## rank what could have made a result fall short (RESULT="25.1 22.3", METHOD=name or TARGET="37.9 34.5", DETECTION=config, LOG=file, RUN=name)
	@$(call triplet,explain) $(if $(RESULT),--result $(RESULT)) $(if $(TARGET),--target $(TARGET)) \
	  $(call option,method,$(METHOD)) $(call option,config,$(DETECTION)) $(call option,log,$(LOG)) \
	  $(call option,weights,$(WEIGHTS)) $(call option,run,$(RUN)) \
	  $(if $(filter-out file,$(origin GPUS)),--gpus "$(GPUS)") $(json) $(ARGS)

seeds: $(environment) ## convert, finetune and evaluate a method once for each seed (METHOD=name, SEEDS="0 1 2 3 4")
	@for seed in $(or $(SEEDS),0 1 2 3 4); do \
	  run="--no-print-directory RUN=seed$$seed/$(METHOD) SEED=$$seed"; \
	  $(MAKE) convert ARGS= $$run && $(MAKE) finetune $$run && $(MAKE) eval ARGS= $$run || exit; done

eval: $(environment) ## evaluate the finetuned model: COCO's or VOC's numbers, and pictures (METHOD=name, GPUS=n, DATA=folder or VAL=file VAL_IMAGES=folder, MODEL=file DETECTION=config)
	@$(call launch,eval) $(run) $(words-eval) $(force) $(ARGS)

predict: $(environment) ## detect in your own images (IMAGES=folder, METHOD=name or MODEL=file DETECTION=config, SCORE=0.5, SHOW="dog,cat", MOST=n)
	@$(call triplet,predict) $(run) $(call option,images,$(IMAGES)) $(call option,model,$(MODEL)) \
	  $(call option,config,$(DETECTION)) $(call option,name,$(NAME)) $(call option,score,$(SCORE)) \
	  $(call option,show,$(SHOW)) $(call option,most,$(MOST)) $(call option,every,$(EVERY)) $(force) $(ARGS)

linear: $(environment) ## judge a backbone by a linear classifier on ImageNet (METHOD=name, GPUS=n, WEIGHTS=file, LINEAR=config, CLASSES=file)
	@$(call launch,linear) $(run) $(words-linear) $(force) $(ARGS)

knn: $(environment) ## judge a backbone by nearest neighbours on ImageNet (METHOD=name, GPUS=n, WEIGHTS=file)
	@$(call launch,knn) $(run) $(words-knn) $(force) $(ARGS)

semi: $(environment) ## finetune on a part of ImageNet's labels (METHOD=name, PERCENT=1|10, LIST=file or DRAW=1, GPUS=n)
	@$(call launch,semi) $(run) $(words-semi) $(force) $(ARGS)

svm: $(environment) ## judge a backbone by support vector machines on VOC 2007 (METHOD=name, VOC=folder)
	@$(call triplet,svm) $(run) $(words-svm) $(force) $(ARGS)

# ARGS are of the stage that trains: of the only one, or of finetune, or of the first. Quotes keep a stage together.
stages = $(subst chain,pull convert finetune eval report,$(STAGE))
argued = $(or $(filter finetune,$(stages)),$(firstword $(stages)))
chained = $(if $(filter chain,$(STAGE)),$(if $(PULL),,coco weights))
told = $(1) $(if $(filter pull,$(1)),$(chained)) $(words-$(1)) $(if $(filter $(argued),$(1)),$(ARGS))
quote = '$(subst ','\'',$(strip $(1)))'
set-by-user = $(if $(filter-out file,$(origin $(1))),$($(1)))

submit: .venv/complete ## put stages into a cluster's queue (STAGE=chain, ON=slurm|sky|k8s, METHOD=name or all, GPUS=n, NODES=n, HOURS=limit of a job, DRY=1)
	@.venv/bin/triplet submit $(foreach stage,$(stages),$(call quote,$(call told,$(stage)))) $(call option,on,$(ON)) \
	  $(if $(RUN),$(call option,run,$(RUN)),$(if $(METHOD),--method $(METHOD))) $(if $(SEEDS),--seeds $(SEEDS)) \
	  $(call option,gpus,$(call set-by-user,GPUS)) $(call option,nodes,$(call set-by-user,NODES)) \
	  $(call option,hours,$(HOURS)) $(call option,cpus,$(CPUS)) $(call option,memory,$(MEMORY)) \
	  $(call option,gpu,$(GPU)) $(call option,partition,$(PARTITION)) $(call option,account,$(ACCOUNT)) \
	  $(if $(EXTRA),--extra="$(EXTRA)") $(call option,container,$(CONTAINER)) $(call option,bucket,$(BUCKET)) \
	  $(if $(call on,$(DRY)),--dry) $(force)

speed: .venv/complete ## measure the kit's speed beside the released code's; on a GPU, run the whole probe (OUTPUT=file.json)
	@.venv/bin/python -m benchmarks.speed.run $(if $(OUTPUT),--output "$(OUTPUT)") $(ARGS)

report: $(environment) ## put every number beside the paper's: reports/index.html (VERIFY=1 or VERIFY=file.zip, EXPORT=file.zip)
	@$(call triplet,report) $(if $(call on,$(VERIFY)),--verify $(if $(filter-out 1 yes true,$(VERIFY)),"$(VERIFY)")) \
	  $(call option,export,$(if $(EXPORT),$(if $(filter docker,$(RUNTIME)),/reports/$(shell basename "$(EXPORT)"),$(EXPORT)))) $(ARGS)

tensorboard: $(environment) ## show the curves of all runs as they grow (PORT=number)
ifeq ($(RUNTIME),docker)
	@PORT="$(PORT)" docker compose run --rm --service-ports tensorboard
else
	@.venv/bin/tensorboard --logdir "$(or $(TRIPLET_CHECKPOINTS),checkpoints)" $(call option,port,$(PORT)) $(ARGS)
endif

# $(call extra,name): install packages that only some need
extra = .venv/bin/uv pip install --quiet --python .venv/bin/python --require-hashes \
  -r pyproject.toml --extra $(1) --constraints docker/requirements.lock

docs: .venv/complete ## build the documentation in site/ (SERVE=1 shows it while you write, UPDATE=1 runs its commands again)
	@$(call extra,docs)
	@$(if $(call on,$(UPDATE)),.venv/bin/python -m tests.support.blocks &&) \
	  NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs $(if $(call on,$(SERVE)),serve,build --strict --quiet --site-dir site) $(ARGS)

build: ## build the image; for another CUDA, see docs/containers.md (DETECTRON2=git|pypi, OPENSELFSUP=1|0, *_SOURCE=folder)
	@scripts/build.sh

image-tar: ready ## write the image into one file, for a machine without network (OUTPUT=file)
	@scripts/image_tar.sh $(OUTPUT)

shell: ready ## open a shell in the image, with the volumes
	@docker compose run --rm --entrypoint bash pull

clean-datasets: ## delete the data sets, after asking (YES=1 does not ask, RUNTIME=docker for their volume)
	@scripts/clean.sh $(RUNTIME) datasets

clean-checkpoints: ## delete all runs, after asking
	@scripts/clean.sh $(RUNTIME) checkpoints

clean-reports: ## delete the reports, after asking
	@scripts/clean.sh $(RUNTIME) reports

clean-image: ## delete the image, after asking
	@scripts/clean.sh docker image

test-containers: .venv/complete ## build the image and run the stages in it; this installs a container engine where it may
	@$(call extra,containers)
	@env -u ARGS -u MAKEFLAGS .venv/bin/pytest tests/containers --timeout 3600 $(ARGS)  # the make in the tests has its own
