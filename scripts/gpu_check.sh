#!/usr/bin/env bash
# Run tests/gpu/check on a machine with a GPU; options are passed on (--device cpu: a dry run).
#   WHEELS=FOLDER      install what make gpu-wheels downloaded into runs/gpu-check/packages, without a network
#   GPU_PYTHON=PYTHON  its own packages, such as torch, are used where FOLDER holds no other version
set -euo pipefail
cd "$(dirname "$0")/.."

find_python() {
    for candidate in ${GPU_PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys, pip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "The GPU check needs Python 3.11, 3.12 or 3.13 with pip; set GPU_PYTHON=..." >&2
    exit 2
}

if [ -z "${WHEELS:-}" ] && [ -z "${GPU_PYTHON:-}" ]; then
    scripts/set_up.sh venv
    python=.venv/bin/python
else
    python=$(find_python)
fi

if [ -n "${WHEELS:-}" ]; then
    packages=$PWD/runs/gpu-check/packages
    rm -rf "$packages" # pip does not replace what an earlier version left there
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$packages" \
        --require-hashes --find-links "$WHEELS" -r "$WHEELS/requirements.txt"
    export PYTHONPATH=$packages
fi
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
exec "$python" -m tests.gpu.check "$@"
