#!/usr/bin/env bash
# Run the complete suite with coverage; fail below 70 %. Measured are the test processes; COVERAGE_PROCESSES=1 also
# measures the services that tests start, which makes them start and run at half the speed (their imports are traced).
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 RAY_USAGE_STATS_ENABLED=0
if [ -n "${COVERAGE_PROCESSES:-}" ]; then
    export COVERAGE_PROCESS_START=$PWD/pyproject.toml
fi
rm -f .coverage .coverage.*
# Two workers: tests mostly wait for processes. A file stays on one worker; tests/conftest.py decides about the order of
# files. TEST_WORKERS=0 runs one test at a time.
# test_cluster.sh runs the tests on a real cluster.
.venv/bin/python -m pytest --numprocesses "${TEST_WORKERS:-2}" --dist loadfile --no-loadscope-reorder \
    --ignore=tests/cluster/live \
    --cov=searchrl --cov=services --cov-report= --durations=15 "$@"
if [ -n "${COVERAGE_PROCESSES:-}" ]; then
    # Processes that end after pytest write their data late: append it to what was combined.
    .venv/bin/coverage combine --append --quiet 2>/dev/null || true
fi
.venv/bin/coverage report --skip-covered --sort=cover --fail-under=70
