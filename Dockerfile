# bsym-bids with Python, MRtrix3, templates, atlas and weights: docs/containers.md.
#   docker build -t bsym .
#   docker run --rm -v /data:/data:ro -v /out:/out bsym /data /out participant

FROM debian:bookworm-slim AS python
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates=2* python3=3.11.* \
    && apt-get clean && rm -rf /var/lib/apt/lists/*

# What bsym-bids needs, each package in the version and with the hash of requirements.lock.
FROM python AS dependencies
# Simple index to take torch from: .../whl/cu130 has builds for NVIDIA GPUs.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv=3.11.* \
    && apt-get clean && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/bsym
WORKDIR /build
COPY requirements.lock constraints.txt ./
RUN /opt/bsym/bin/pip install --require-hashes --only-binary :all: --no-binary docopt -r requirements.lock \
    && /opt/bsym/bin/pip install --index-url "${TORCH_INDEX}" -c constraints.txt torch

# The program alone, in a folder that is laid over the one of its dependencies.
FROM dependencies AS program
COPY . .
RUN /opt/bsym/bin/pip install --no-deps --no-build-isolation --ignore-installed --prefix /program .

# What MRtrix3's scripts import of Python's library, its package does not ask for.
FROM python AS image
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        mrtrix3=3.0.3* python3-distutils=3.11.* tini=0.19.* \
    && apt-get clean && rm -rf /var/lib/apt/lists/*
COPY --from=dependencies /opt/bsym /opt/bsym
COPY --from=program /program /opt/bsym
ENV PATH=/opt/bsym/bin:$PATH \
    LANG=C.UTF-8 \
    BSYM_MODEL_HOME=/opt/bsym/models
# The authors' weights, each checked against the hash of their commit: "fetch", or "skip" where the
# machine that builds has no network; then bind them to /opt/bsym/models (docs/containers.md).
ARG WEIGHTS=fetch
RUN mkdir -p "${BSYM_MODEL_HOME}" \
    && case "${WEIGHTS}" in \
        fetch) bsym-model fetch brainsymphony-v1 && chmod -R a+rX "${BSYM_MODEL_HOME}" ;; \
        skip) ;; \
        *) echo "WEIGHTS is ${WEIGHTS}, but must be fetch or skip" >&2; exit 64 ;; \
    esac

ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="bsym-bids" \
      org.opencontainers.image.description="BIDS App: fMRIPrep derivatives and diffusion MRI to BrainSymphony embeddings and predictions" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
HEALTHCHECK --interval=30m --timeout=1m CMD ["bsym-bids", "--version"]
# tini hands signals on and reaps what killed workers leave behind, which process 1 has to do.
ENTRYPOINT ["tini", "-s", "--", "bsym-bids"]
