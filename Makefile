# Thin: each target is one line of real work. PYTHON is any Python 3.11 or newer.
INVENTORY ?= inventory/local
ARGS ?=
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export VLLM_FLEET_CACHE ?= $(HOME)/.cache/vllm-fleet
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: deploy preflight test test-fleet test-real-fleet lint bench clean
.DEFAULT_GOAL := deploy

deploy: $(VENV)/controller
	$(BIN)/ansible-playbook -i $(INVENTORY) deploy.yml $(ARGS)

preflight: $(VENV)/controller
	scripts/preflight -i $(INVENTORY) $(ARGS)

test: $(VENV)/test
	scripts/test

# Four nodes and a gateway, changed, broken and killed while clients go on asking.
test-fleet: $(VENV)/test
	$(BIN)/molecule test --scenario-name fleet

# The real vLLM on two nodes, behind a gateway and as one server over both; after `make test`, whose image and model it takes.
test-real-fleet: $(VENV)/test
	$(BIN)/pytest -q -s tests/real_fleet

lint: $(VENV)/test
	scripts/lint

bench: $(VENV)/test
	$(BIN)/ansible-playbook -i inventory/local bench/prepare.yml
	$(BIN)/python bench/bench.py $(ARGS)

$(VENV)/controller: requirements.txt scripts/venv
	scripts/venv $(PYTHON) $(VENV) requirements.txt $@

$(VENV)/test: requirements-test.txt requirements.txt scripts/venv
	scripts/venv $(PYTHON) $(VENV) requirements-test.txt $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .ansible
