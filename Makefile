# StreamPilot's commands. `make` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup build fly screenshots accept two-machines rehearse replay serve eval train experiments test lint format clean

SCENE ?= field
SEED ?= 2
BAG ?= runs/latest/flight
EVERY ?= 10
PROFILE ?= wan
SEEDS ?= 2001-2030
VARIANT ?= streaming
MODEL ?= $(QWEN_MODEL_PATH)

# An instruction in words where MISSION is given, even an empty one; else the scene's own.
TOLD = $(if $(filter undefined,$(origin MISSION)),,--mission '$(subst ','\'',$(MISSION))')
EXPERIMENTS = source scripts/env.sh && VIDEO='$(VIDEO)' python -m vlm_perception.experiments $(if $(MODEL),--model '$(MODEL)') $(ARGS)

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14
	@echo "bench-NAME benchmarks/NAME.py, of: $(patsubst benchmarks/%.py,%,$(wildcard benchmarks/*.py))"

setup: ## everything needed: Debian packages, .venv, the built workspace (repeat at will)
	@scripts/setup.sh

build: ## colcon build of ros2_ws
	@scripts/setup.sh --build

fly: setup ## one mission: make fly [SCENE=field] [SEED=2] [MISSION="fly to the red beacon"] [MISSION_FILE=missions.jsonl] [MONITOR=1: with its page] [ARGS="--set colour=blue"]
	@source scripts/env.sh && python -m nav_bringup.fly --scene '$(SCENE)' --seed '$(SEED)' \
		$(TOLD) $(if $(MISSION_FILE),--mission-file '$(MISSION_FILE)') \
		$(if $(MODEL),--model '$(MODEL)') $(if $(MONITOR),--monitor) $(ARGS)

screenshots: setup ## pictures of the page, the flight viewer, the report and the terminal, into docs/images (Chromium)
	@source scripts/env.sh && python scripts/screenshots.py

accept: setup ## what this machine can show, in one folder: make accept [MODEL=...] [VIDEO=...] [AIRSIM=host] [ARGS=--quick]
	@source scripts/env.sh && python -m nav_bringup.accept $(if $(MODEL),--model '$(MODEL)') $(if $(VIDEO),--video '$(VIDEO)') \
		$(if $(AIRSIM),--airsim '$(AIRSIM)') $(ARGS)

two-machines: setup ## missions with edge and server apart and the link between: make two-machines [PROFILE="wan cut"] [SCENE=...] [SEED=...]
	@source scripts/env.sh && python -m nav_bringup.two_machines --internet $(PROFILE) --scene '$(SCENE)' --seed '$(SEED)' \
		$(TOLD) $(ARGS)

rehearse: setup ## how fast it may fly across an internet, from 100 missions in lock-step: make rehearse PROFILE=wan (or a probe's file) [SCENE=...] [MODEL=...]
	@source scripts/env.sh && python -m nav_eval rehearse '$(PROFILE)' --scene '$(SCENE)' $(if $(MODEL),--model '$(MODEL)') $(ARGS)

replay: setup ## a recording through the memory, on the ground: make replay BAG=runs/latest/flight [EVERY=10] [INSTRUCTION="..."] [QUESTION="..."] [MODEL=...]
	@source scripts/env.sh && python -m nav_eval replay '$(BAG)' --every '$(EVERY)' \
		$(if $(INSTRUCTION),--instruction '$(subst ','\'',$(INSTRUCTION))') \
		$(if $(QUESTION),--question '$(subst ','\'',$(QUESTION))') $(if $(MODEL),--model '$(MODEL)') $(ARGS)

serve: setup ## the HTTP API alone, a token in STREAMPILOT_TOKEN: make serve [MODEL=...] [PORT=6006] [ARGS="--host 0.0.0.0"]
	@source scripts/env.sh && exec python -m nav_server serve $(if $(MODEL),--model '$(MODEL)') $(if $(PORT),--port '$(PORT)') $(ARGS)

eval: setup ## a pilot over many seeds: make eval SCENE=field SEEDS=2001-2030 [VARIANT=streaming,last-4] [CONTROLS=blank,shuffled_words,random,expert] [MODEL=...] [MISSION="..."]
	@source scripts/env.sh && python -m nav_eval eval --scene '$(SCENE)' --seeds '$(SEEDS)' --variant '$(VARIANT)' \
		$(if $(CONTROLS),--controls '$(CONTROLS)') $(if $(MODEL),--model '$(MODEL)') \
		$(TOLD) $(ARGS)

train: setup ## train the shipped pilot anew: make train [ARGS="--help"]
	@source scripts/env.sh && python -m nav_pilot.train $(ARGS)

experiments: setup ## A, B, C and time on the memory, reports in experiments/results; one: make experiments-b [MODEL=...] [VIDEO=...]; also experiments-ovo, experiments-kv
	@$(EXPERIMENTS)

experiments-%: setup
	@$(EXPERIMENTS) $*

# Commands of their own: OVO-Bench in four modes [MODEL=...] [ARGS="--folder OVO --samples 20"]; memory and latency against max_cache_tokens.
experiments-ovo experiments-kv: experiments-%: setup
	@source scripts/env.sh && python -m vlm_perception.experiments.$* $(if $(MODEL),--model '$(MODEL)') $(ARGS)

# A script called http.py would hide Python's own package of that name from every script beside it.
bench-http: bench-http_api

bench-%: setup # make bench-engine, bench-agent ...: benchmarks/NAME.py into benchmarks/results/NAME.json
	@source scripts/env.sh && python benchmarks/$*.py $(ARGS)

test: setup ## every check and every test, by colcon test
	@scripts/test.sh

lint: setup ## format, lint and types, without tests
	@scripts/lint.sh

format: setup ## write the formatter's and the linter's fixes
	@source scripts/env.sh && ruff format . && ruff check --fix .

clean: ## remove what was built and recorded (not .venv)
	rm -rf ros2_ws/build ros2_ws/install ros2_ws/log runs .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
