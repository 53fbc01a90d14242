# make demo   everything from nothing: environment, model, cloud and edge, a real conversation
# make test   everything that CI runs: ruff, mypy, protos, unit to real-model tests

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
TEST_BUNDLE := build/test-bundle
PROTO := protos/tandem/v1/collaboration.proto
PYTEST_ARGS ?=
# Processes that run tests side by side: one more than cores, for much of a test is waiting.
TEST_JOBS ?= 3
# A file's tests stay in one process, and files begin in order: the long ones come before the units.
PARALLEL := -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder
FUZZ_CASES ?= 200000

.PHONY: help demo test test-slow test-docker test-ray fuzz quick lint format bundle test-bundle protos clean

help:
	@echo "make demo        install, prepare the model, run a cloud and an edge, talk to them"
	@echo "make test        install, then ruff, mypy and every test, $(TEST_JOBS) at once; TEST_JOBS=n"
	@echo "make test-slow   the proofs that take minutes: all prompts, all positions"
	@echo "make test-docker the compose stack on a Docker engine, as root on Linux"
	@echo "make test-ray    the cloud as a Ray Serve application; installs Ray into $(VENV)"
	@echo "make fuzz        $(FUZZ_CASES) cases against parsers, codec and a cloud; FUZZ_CASES=n"
	@echo "make quick       the tests that need no model"
	@echo "make lint        ruff and mypy alone;  make format  ruff's formatter"
	@echo "make bundle      prepare the default model into the user's cache"
	@echo "make protos      compile protos/ (needs the registries)"
	@echo "make clean       remove $(VENV) and build/ (the user's cache stays)"

demo: $(VENV)/.installed-run bundle
	@$(BIN)/tandem demo

test: lint test-bundle
	@echo "== tests"
	@TANDEM_TEST_BUNDLE=$(TEST_BUNDLE) $(BIN)/python -m pytest -m "not slow" $(PARALLEL) $(PYTEST_ARGS)

test-slow: $(VENV)/.installed-dev test-bundle
	@TANDEM_TEST_BUNDLE=$(TEST_BUNDLE) $(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

test-docker: $(VENV)/.installed-dev
	@TANDEM_DOCKER_TESTS=1 $(BIN)/python -m pytest -m docker $(PYTEST_ARGS) tests/docker

test-ray: $(VENV)/.installed-ray
	@$(BIN)/python -m pytest -m ray $(PYTEST_ARGS) tests/integration/test_ray.py

# A failure names its round: make fuzz TANDEM_FUZZ_SEED=n begins with it.
fuzz: $(VENV)/.installed-dev
	@TANDEM_FUZZ_CASES=$(FUZZ_CASES) $(BIN)/python -m pytest -s \
		tests/property/test_fuzz_messages.py tests/property/test_fuzz_service.py $(PYTEST_ARGS)

quick: $(VENV)/.installed-dev
	@$(BIN)/python -m pytest -m "not model and not slow" $(PARALLEL) $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev
	@echo "== ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "== mypy"
	@$(BIN)/mypy

format: $(VENV)/.installed-dev
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .

bundle: $(VENV)/.installed-run
	@echo "== model"
	@$(BIN)/tandem prepare

test-bundle: $(VENV)/.installed-dev
	@echo "== model for the tests"
	@$(BIN)/tandem prepare --bundle $(TEST_BUNDLE) --full-depth \
		--precision float32 --precision int8 --precision int4

# Compiled by an older protoc than the newest, in an environment of its own, so that the generated
# code runs with every protobuf and grpcio that pyproject.toml allows.
protos: build/protos-venv/.installed
	@build/protos-venv/bin/python -m grpc_tools.protoc -I . \
		--plugin=protoc-gen-mypy=build/protos-venv/bin/protoc-gen-mypy \
		--python_out=. --grpc_python_out=. --mypy_out=. $(PROTO)

build/protos-venv/.installed:
	@$(PYTHON) -m venv build/protos-venv
	@build/protos-venv/bin/pip install --quiet grpcio-tools==1.76.0 mypy-protobuf==3.7.0 \
		"setuptools<81"
	@touch $@

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "== environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$@ -m pip install --quiet --upgrade pip

$(VENV)/.installed-run: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "== packages (the first time takes a few minutes: torch and onnxruntime are large)"
	@PYTHONWARNINGS=ignore $(BIN)/pip install --quiet --constraint constraints.txt --editable '.[simulator]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "== packages for development"
	@PYTHONWARNINGS=ignore $(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(VENV)/.installed-run

$(VENV)/.installed-ray: pyproject.toml constraints.txt $(VENV)/.installed-dev
	@echo "== Ray"
	@PYTHONWARNINGS=ignore $(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,ray]'
	@touch $@

clean:
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis
