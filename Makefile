# Each target does its own set-up, from nothing, and does nothing twice.

SHELL := /bin/bash
BIN := .venv/bin
SECONDS ?= 60

.DEFAULT_GOAL := help
.PHONY: help setup dev demo test soak bench lint format map clean

help: ## say what there is
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 12

setup: ## make .venv/bin/atoll
	@./setup.sh run

dev: ## also install what tests and checks need
	@./setup.sh dev

demo: setup ## mount, ping, pipe, kill a server: one minute
	@$(BIN)/atoll demo

test: lint ## all checks and all tests: make test ARGS='-k fuse -x'
	@$(BIN)/python -m pytest $(ARGS)

soak: dev ## run everything at once under faults: make soak SECONDS=600
	@$(BIN)/python -m tests.soak --seconds $(SECONDS)

bench: dev ## measure, and print the tables
	@$(BIN)/python -m tests.bench

lint: dev ## format, style, import directions, types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports
	@$(BIN)/mypy

format: dev ## let ruff mend what it can
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

map: dev ## bring the README's map up to date with the tree
	@$(BIN)/python -m tests.readme_map

clean: ## remove what was made, .venv too
	@rm -rf .venv .*_cache .hypothesis build dist
	@find . -name __pycache__ -prune -exec rm -rf {} +
