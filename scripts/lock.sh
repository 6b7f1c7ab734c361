#!/usr/bin/env bash
# Resolve the requirements of each image and of development, with hashes, for Python 3.11 to 3.13 on Linux.
# torch stays out of the locks: its CPU and CUDA builds come from different indexes (scripts/set_up.sh, docker/).
# UPGRADE=1 takes the newest versions.
set -euo pipefail
cd "$(dirname "$0")/.."

resolve() { # resolve FILE cpu|cuda EXTRA...
    local file=$1 build=$2 extras=() inputs=(pyproject.toml) override
    shift 2
    for extra in "$@"; do extras+=(--extra "$extra"); done
    override=$(mktemp)
    if [ "$build" = cpu ]; then
        echo "torch ; sys_platform == 'never'" > "$override" # installed apart; its own needs are in torch-cpu.in
        [[ " $* " =~ \ (encoders|trainer)\  ]] && inputs+=(requirements/torch-cpu.in)
    else
        echo "torch==$TORCH" > "$override"
    fi
    .venv/bin/uv pip compile "${inputs[@]}" --universal --python-version 3.11 --generate-hashes --no-annotate \
        --no-header --no-emit-package torch --quiet "${extras[@]}" --override "$override" ${UPGRADE:+--upgrade} \
        -o "requirements/$file.lock"
    rm "$override"
    echo "requirements/$file.lock: $(grep -c '==' "requirements/$file.lock") packages"
}

TORCH=2.13.0
resolve dev cpu retriever encoders generator trainer evaluator dev
resolve retriever cpu retriever encoders
resolve retriever-gpu cuda retriever encoders
resolve generator cpu generator
resolve trainer cpu trainer
resolve trainer-gpu cuda trainer
resolve evaluator cpu evaluator
