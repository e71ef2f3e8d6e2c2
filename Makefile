# Thin: each target is one line of real work. `make` alone prints this file's targets: the words behind "##".
INVENTORY ?= inventory/local
ARGS ?=
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VERSION = $(shell sed -n 's/^version = "\([^"]*\)".*/\1/p' pyproject.toml)
export VLLM_FLEET_CACHE ?= $(HOME)/.cache/vllm-fleet
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help deploy preflight test unit test-fleet test-real-fleet lint bench changelog clean
.DEFAULT_GOAL := help

help: ## Print this help; changes nothing
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@printf '\n%s\n' 'Variables:'
	@printf '  %-18s %s\n' \
	  'INVENTORY' 'the hosts, default inventory/local: this machine without a GPU' \
	  'ARGS' 'more arguments of ansible-playbook (deploy, preflight); for bench the number of repetitions (20)' \
	  'PYTHON' 'the Python that .venv is made with, 3.11 or newer, default python3' \
	  'VLLM_FLEET_CACHE' 'what long tests keep between runs, default ~/.cache/vllm-fleet'
	@printf '\n%s\n' 'Examples:'
	@printf '  %s\n' \
	  'make deploy' \
	  'make preflight INVENTORY=inventory/mine' \
	  "make deploy INVENTORY=inventory/mine ARGS='--check --diff'" \
	  "make deploy INVENTORY=inventory/mine ARGS='--limit node3'"

deploy: $(VENV)/controller ## Deploy the fleet of INVENTORY: driver, image, weights, servers in waves, gateways
	$(BIN)/ansible-playbook -i $(INVENTORY) deploy.yml $(ARGS)

preflight: export VLLM_FLEET_BEGUN := make
preflight: $(VENV)/controller ## Check the fleet of INVENTORY by reading only: would a deployment be refused?
	scripts/preflight -i $(INVENTORY) $(ARGS)

test: $(VENV)/test ## Run lint and all tests but the real fleet's; installs what it needs, an hour
	scripts/test

unit: $(VENV)/test ## Run the unit tests, under a minute
	$(BIN)/pytest -q tests/unit

# Four nodes and a gateway, changed, broken and killed while clients go on asking.
test-fleet: $(VENV)/test ## Run the story of four nodes and a gateway
	$(BIN)/molecule test --scenario-name fleet

# The real vLLM on two nodes, behind a gateway and as one server over both; after `make test`, whose image and model it takes.
test-real-fleet: $(VENV)/test ## Run the real vLLM on two nodes, after `make test`
	$(BIN)/pytest -q -s tests/real_fleet

lint: $(VENV)/test ## Check style, types, roles, module pages and texts without running anything
	scripts/lint

bench: $(VENV)/test ## Measure deployments on this machine, as a table and as JSON
	$(BIN)/ansible-playbook -i inventory/local bench/prepare.yml
	$(BIN)/python bench/bench.py $(ARGS)

changelog: $(VENV)/test ## Move the fragments into CHANGELOG.md under the version of pyproject.toml
	$(BIN)/towncrier build --yes --version $(VERSION)

$(VENV)/controller: requirements.txt scripts/venv
	scripts/venv $(PYTHON) $(VENV) requirements.txt $@

$(VENV)/test: requirements-test.txt scripts/venv
	scripts/venv $(PYTHON) $(VENV) requirements-test.txt $@

clean: ## Remove .venv and the tools' caches; nothing of a fleet
	rm -rf $(VENV) .mypy_cache .ruff_cache .ansible
