#!/usr/bin/env bash
# Run the whole suite with coverage, processes included; fail below 85 %.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 RAY_USAGE_STATS_ENABLED=0
export COVERAGE_PROCESS_START=$PWD/pyproject.toml
rm -f .coverage .coverage.*
# Two workers, a file never split: most of the time is waiting for processes. TEST_WORKERS=0 runs them one by one.
# Tests on a real cluster are test_cluster.sh's.
.venv/bin/python -m pytest --numprocesses "${TEST_WORKERS:-2}" --dist loadfile --ignore=tests/cluster/live \
    --cov=searchrl --cov=services --cov-report= --durations=15 "$@"
# A process that ends after pytest leaves its data late: add it, never start over with it alone.
.venv/bin/coverage combine --append --quiet 2>/dev/null || true
.venv/bin/coverage report --skip-covered --sort=cover --fail-under=85
