#!/usr/bin/env bash
# Run the whole suite with coverage, processes included; fail below 85 %.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 RAY_USAGE_STATS_ENABLED=0
export COVERAGE_PROCESS_START=$PWD/pyproject.toml
rm -f .coverage .coverage.*
# Two workers: tests mostly wait for processes. A file stays on one worker. TEST_WORKERS=0 runs one test at a time.
# test_cluster.sh runs the tests on a real cluster.
.venv/bin/python -m pytest --numprocesses "${TEST_WORKERS:-2}" --dist loadfile --ignore=tests/cluster/live \
    --cov=searchrl --cov=services --cov-report= --durations=15 "$@"
# Processes that end after pytest write their data late: append it to what was combined.
.venv/bin/coverage combine --append --quiet 2>/dev/null || true
.venv/bin/coverage report --skip-covered --sort=cover --fail-under=85
