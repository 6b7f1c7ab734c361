#!/usr/bin/env bash
# Build the images and run tests/cluster on a real cluster.
#   KUBECONFIG=... scripts/test_cluster.sh       a cluster of yours that already has the images localhost/searchrl/*:dev
#   scripts/test_cluster.sh                      the single node that SEARCHRL_KUBE (a folder with an executable `kube`) starts
set -euo pipefail
cd "$(dirname "$0")/.."
kube=${SEARCHRL_KUBE:-../shared/kube}/kube

if [ -z "${KUBECONFIG:-}" ]; then
    if [ ! -x "$kube" ]; then
        echo "No cluster: set KUBECONFIG to one that has the images of docker/ (tag dev), or SEARCHRL_KUBE." >&2
        exit 2
    fi
    eval "$("$kube" up | grep '^export ')"
    for service in retriever generator trainer evaluator; do
        if [ -n "${REBUILD:-}" ] || ! buildah --storage-driver overlay inspect "localhost/searchrl/$service:dev" >/dev/null 2>&1; then
            echo "Building localhost/searchrl/$service:dev ..."
            "$kube" build -f "docker/$service.Dockerfile" -t "localhost/searchrl/$service:dev" .
        fi
    done
fi
export SEARCHRL_CLUSTER_TESTS=1
.venv/bin/python -m pytest tests/cluster --durations=10 "$@"
