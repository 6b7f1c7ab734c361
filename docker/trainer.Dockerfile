# The trainer: supervised and reinforcement learning, its policy server, and Ray for KubeRay.
# Build from the repository's root: docker build -f docker/trainer.Dockerfile -t searchrl/trainer .   (GPU: docker/README.md)
ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm

# Python and the user of all processes. CUDA images contain no Python.
FROM ${BASE_IMAGE} AS python
# hadolint ignore=DL3008
RUN if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then \
        apt-get update && apt-get install -y --no-install-recommends ca-certificates python3 python3-venv \
        && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/log/apt /var/log/dpkg.log; \
    fi \
    && groupadd --gid 10001 searchrl \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp/home --shell /usr/sbin/nologin searchrl

FROM python AS tools
WORKDIR /build
COPY requirements/build.lock ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /tools && /tools/bin/pip install --quiet --require-hashes --no-deps -r build.lock

# The installed project, identical in all images.
FROM tools AS app
COPY pyproject.toml README.md LICENSE ./
COPY searchrl searchrl
COPY services services
RUN /tools/bin/pip install --quiet --no-deps --no-build-isolation --no-compile --target /opt/searchrl/app . \
    && python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/searchrl/app

# torch's CPU build, in a layer that the images share: from PyTorch's index, or if that cannot be reached, from the one
# that pip uses; the hash is checked in both cases. GPU: it is installed beside the CUDA libraries instead.
FROM tools AS torch
ARG VARIANT=cpu
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
COPY requirements/torch-cpu.lock ./
RUN --mount=type=cache,target=/root/.cache/pip \
    mkdir -p /opt/searchrl/torch && [ "$VARIANT" = gpu ] || { \
        set -- --quiet --no-deps --require-hashes --no-compile --target /opt/searchrl/torch -r torch-cpu.lock; \
        { /tools/bin/pip install --retries 1 --timeout 15 --extra-index-url "$TORCH_CPU_INDEX" "$@" \
            || /tools/bin/pip install "$@"; } \
        && rm -rf /opt/searchrl/torch/torch/test /opt/searchrl/torch/torch/include /opt/searchrl/torch/torch/share \
        && find /opt/searchrl/torch/torch/bin -type f ! -name torch_shm_manager -delete \
        && { python3 -m compileall -q -q -j 0 --invalidation-mode unchecked-hash /opt/searchrl/torch || true; }; \
    }

# The dependencies of this service, from the lock file of the variant.
FROM python AS dependencies
ARG VARIANT=cpu
WORKDIR /build
COPY --from=tools /tools/bin/uv /usr/local/bin/
COPY docker/install_locked.sh requirements/trainer.lock requirements/trainer-gpu.lock requirements/torch.lock ./
RUN --mount=type=cache,target=/root/.cache/uv \
    case "$VARIANT" in \
        cpu) ./install_locked.sh /opt/searchrl/.venv trainer.lock ;; \
        gpu) ./install_locked.sh /opt/searchrl/.venv trainer-gpu.lock torch.lock ;; \
        *) echo "VARIANT is cpu or gpu, not $VARIANT" >&2; exit 2 ;; \
    esac

FROM python
COPY --from=torch /opt/searchrl/torch /opt/searchrl/torch
# KubeRay's probes call bash and wget in the pods of a Ray cluster.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends bash wget \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/log/apt /var/log/dpkg.log
COPY --from=dependencies /opt/searchrl/.venv /opt/searchrl/.venv
COPY --from=app /opt/searchrl/app /opt/searchrl/app
ENV PATH=/opt/searchrl/.venv/bin:/opt/searchrl/app/bin:${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin} \
    HOME=/tmp/home USER=searchrl LOGNAME=searchrl PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1 DO_NOT_TRACK=1 \
    RAY_USAGE_STATS_ENABLED=0
WORKDIR /opt/searchrl
RUN --mount=type=bind,source=docker/write_sbom.py,target=/run/write_sbom.py \
    --mount=type=bind,source=docker/drop_installers.py,target=/run/drop_installers.py \
    python /run/drop_installers.py \
    && python /run/write_sbom.py searchrl-trainer /opt/searchrl/sbom.cdx.json \
    && install -d -o 10001 -g 10001 /data
USER 10001:10001
EXPOSE 8080 9090
ENTRYPOINT ["python", "-m", "services.trainer"]
ARG BASE_IMAGE
ARG BASE_DIGEST=""
ARG VERSION=0.1.0
ARG REVISION=""
ARG CREATED=""
LABEL org.opencontainers.image.title="SearchRL trainer" \
      org.opencontainers.image.description="Trains searchers by supervised and reinforcement learning" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.base.name="${BASE_IMAGE}" \
      org.opencontainers.image.base.digest="${BASE_DIGEST}"
