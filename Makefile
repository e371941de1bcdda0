# StreamPilot's commands. `make` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup build fly test lint format clean

SCENE ?= field
SEED ?= 1
MISSION ?= fly to the red beacon

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

setup: ## everything needed: Debian packages, .venv, the built workspace (repeat at will)
	@scripts/setup.sh

build: ## colcon build of ros2_ws
	@scripts/setup.sh --build

fly: setup ## one mission: make fly SCENE=field SEED=1 MISSION="fly to the red beacon"
	@source scripts/env.sh && python -m nav_bringup.fly --scene '$(SCENE)' --seed '$(SEED)' --mission '$(subst ','\'',$(MISSION))'

test: setup ## every check and every test, by colcon test
	@scripts/test.sh

lint: setup ## format, lint and types, without tests
	@scripts/lint.sh

format: setup ## write the formatter's and the linter's fixes
	@source scripts/env.sh && ruff format . && ruff check --fix .

clean: ## remove what was built and recorded (not .venv)
	rm -rf ros2_ws/build ros2_ws/install ros2_ws/log runs .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
