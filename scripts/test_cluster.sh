#!/usr/bin/env bash
# Build the images where needed and run tests/cluster on a real cluster.
#   KUBECONFIG=... scripts/test_cluster.sh       your own cluster, which already has the images localhost/searchrl/*:dev
#   scripts/test_cluster.sh                      the single node that SEARCHRL_KUBE (a folder with an executable `kube`) starts
#                                                (stopped again if it was started here; KEEP=1 keeps it)
#   scripts/test_cluster.sh --if-any [PATH...]   as `make test` calls it: without a cluster one line on stderr, and success
#                                                (SEARCHRL_CLUSTER_TESTS=1: with a KUBECONFIG of yours, too; =0: never)
set -euo pipefail
cd "$(dirname "$0")/.."
kube=${SEARCHRL_KUBE:-../shared/kube}/kube
# A third of kubectl's processor time, and much of the API server's, is garbage collection: collect less often.
export GOGC=${GOGC:-800}
# One thread per Go program: on a busy machine more threads only spin. Packing images uses all cores.
one_core=GOMAXPROCS=1
optional=
if [ "${1:-}" = --if-any ]; then
    optional=1
    shift
fi

no_cluster() {
    echo "NO CLUSTER: $1 The tests on a real cluster $([ -n "$optional" ] && echo were skipped || echo "cannot run")." >&2
    echo "            Set KUBECONFIG to a cluster that has the images of docker/ (tag dev), or SEARCHRL_KUBE to a folder" >&2
    echo "            whose \`kube up\` starts one, and run: make test-cluster" >&2
    [ -n "$optional" ] && exit 0 || exit 2
}

wanted=${SEARCHRL_CLUSTER_TESTS:-}
if [ -n "$optional" ] && [ "$wanted" = 0 ]; then
    no_cluster "SEARCHRL_CLUSTER_TESTS is 0."
fi
# The cluster of a KUBECONFIG that happens to be in a shell may serve users: do not use it without being asked.
if [ -n "$optional" ] && [ -n "${KUBECONFIG:-}" ] && [ -z "$wanted" ]; then
    no_cluster "KUBECONFIG is set, and SEARCHRL_CLUSTER_TESTS=1 is not."
fi

# Exporting an image takes longer than building it from cached layers: skip it if the inputs are unchanged.
INPUTS=inputs.searchrl.test
build() { # build DOCKERFILE TARGET REFERENCE INPUT...; without a target the last stage
    local start=$SECONDS file=$1 target=$2 reference=$3 digest said
    shift 3
    digest=$(git ls-files -z -- "$file" "$@" | xargs -0 sha256sum | sha256sum | cut -c1-16)
    if buildah --storage-driver overlay inspect --type image "$reference" 2>/dev/null | grep "\"$INPUTS\": \"$digest\"" >/dev/null; then
        return
    fi
    said=$("$kube" build -f "$file" ${target:+--target "$target"} -t "$reference" --label "$INPUTS=$digest" . 2>&1) ||
        load_again "$reference" "$said" || return 1
    echo "Built $reference in $((SECONDS - start)) s"
}
# Images imported at the same time share layers, and containerd can drop such a layer between two imports ("parent
# snapshot does not exist"): import again what was built, one at a time. An image that never gets in is forgotten, because
# the next run would take it for loaded.
load_again() { # load_again REFERENCE MESSAGE
    [[ $2 == *"parent snapshot"* ]] || { echo "$2" >&2; return 1; }
    flock "$kube" "$kube" load "$1" >&2 || flock "$kube" "$kube" load "$1" >&2 || {
        buildah --storage-driver overlay rmi "$1" >/dev/null
        echo "$2" >&2
        return 1
    }
}
build_service() {
    build docker/Dockerfile "$1" "localhost/searchrl/$1:dev" \
        docker/install_locked.sh docker/write_sbom.py docker/drop_installers.py pyproject.toml requirements searchrl services
}
build_tool() { build "tests/cluster/images/$1.Dockerfile" "" "localhost/thirdparty/$1:dev"; }

start_node() {
    local exports
    exports=$(env $one_core "$kube" up) || no_cluster "$kube up failed."
    eval "$(grep '^export ' <<<"$exports")"
}
# A node that was killed while it wrote its image store can list an image and yet not have it, and then every pod waits
# for minutes: start one pod before the tests.
runs_a_pod() {
    kubectl delete pod node-check --ignore-not-found --now >/dev/null
    kubectl run node-check --image="localhost/searchrl/retriever:dev" --image-pull-policy=Never --restart=Never --command -- true >/dev/null
    kubectl wait pod node-check --for=jsonpath='{.status.phase}'=Succeeded --timeout=60s >/dev/null 2>&1 || {
        kubectl events --for pod/node-check >&2
        return 1
    }
    kubectl delete pod node-check --now >/dev/null
}
# Its images again from buildah, which has them all.
repair_node() {
    local service tool store=${KUBE_HOME:-/var/tmp/kube-node}/containerd
    echo "The node starts no pod: starting it again with an empty image store." >&2
    "$kube" down
    grep -o "$store[^ ]*" /proc/mounts | sort -r | xargs -r umount -l
    rm -rf "$store"
    start_node
    for service in "${services[@]}"; do "$kube" load "localhost/searchrl/$service:dev"; done
    for tool in "${tools[@]}"; do "$kube" load "localhost/thirdparty/$tool:dev"; done
}

if [ -z "${KUBECONFIG:-}" ]; then
    [ -x "$kube" ] || no_cluster "There is no $kube."
    [ "$(id -u)" = 0 ] || no_cluster "$kube needs root."
    if [ -z "${KEEP:-}" ] && [[ ! $("$kube" status) =~ apiserver\ +running ]]; then
        trap '"$kube" down >/dev/null 2>&1' EXIT # what was started here ends here; images stay
    fi
    start_node
    # The first image makes the layers that all share. Packing uses one core each, so the rest run in parallel.
    services=(retriever generator trainer evaluator) tools=(redis prometheus) building=()
    build_service retriever
    for service in "${services[@]:1}"; do
        build_service "$service" &
        building+=($!)
    done
    for tool in "${tools[@]}"; do
        build_tool "$tool"
    done
    for one in "${building[@]}"; do
        wait "$one"
    done
    runs_a_pod || { repair_node; runs_a_pod; } || { echo "The node starts no pod; see above." >&2; exit 1; }
fi
export PATH=$PWD/.tools/bin:$PATH SEARCHRL_CLUSTER_TESTS=1
# Two processes, because tests mostly wait for pods; side_by_side.py puts the long files first.
env $one_core .venv/bin/python -m pytest -p tests.cluster.side_by_side --numprocesses "${TEST_WORKERS:-2}" --no-loadscope-reorder \
    --durations=15 "${@:-tests/cluster}"
