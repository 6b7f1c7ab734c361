#!/bin/sh
# Install into a virtual environment, then delete what a service never reads.
#   install_locked.sh VENV LOCK|FOLDER...
# A lock file is installed with its hashes checked; a folder holds a project without dependencies of its own.
set -eu
venv=$1
shift

# uv does not read pip's settings; pass on an index or a folder of wheels that the build host configured.
setting() { sed -n "s/^$1 *= *//p" /etc/pip.conf 2>/dev/null || true; }
index=$(setting index-url)
wheels=$(setting find-links)
if [ -e /etc/ssl/certs/ca-certificates.crt ]; then export UV_SYSTEM_CERTS=1; fi

[ -x "$venv/bin/python" ] || uv --quiet venv --no-project --python python3 "$venv"
install() {
    uv --quiet pip install --python "$venv/bin/python" --no-deps --link-mode copy \
        ${index:+--default-index "$index"} ${wheels:+--find-links "$wheels"} "$@"
}
for item in "$@"; do
    if [ -d "$item" ]; then install --no-build-isolation "./$item"; else install --require-hashes --requirement "$item"; fi
done

# The project and torch are in separate layers.
printf '%s\n' /opt/searchrl/app /opt/searchrl/torch > "$(echo "$venv"/lib/python3*/site-packages)/searchrl.pth"

# Tests, archives for linking and C headers are for building packages, not for running them.
find "$venv" -type d -name tests -prune -exec rm -rf {} +
find "$venv" \( -name '*.a' -o -name '*.jar' \) -delete
rm -rf "$venv"/lib/python*/site-packages/pyarrow/include "$venv"/lib/python*/site-packages/ray/cpp
# Keep only the runtime of Intel's OpenMP; the rest offloads work to Intel's GPUs.
rm -f "$venv"/lib/*.dbg "$venv"/lib/libomptarget* "$venv"/lib/libpi_* "$venv"/lib/libur_* "$venv"/lib/lib*sycl*
# A read-only root cannot store bytecode: without this, every start compiles all modules again.
python3 -m compileall -q -q -j 0 --invalidation-mode unchecked-hash "$venv"/lib || true
