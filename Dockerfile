# docker build -t qvg .
# docker run --rm --gpus all --user "$(id -u):$(id -g)" --env HOME=/videos --volume "$PWD:/videos" qvg generate
FROM nvidia/cuda:13.0.1-base-ubuntu24.04 AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/qvg
WORKDIR /source
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY qvg_cli qvg_cli
COPY kernels kernels
COPY configs configs
# Such as "ray" or "ray,play".
ARG EXTRAS=""
# PyTorch brings its own CUDA libraries; the base image has the driver's interface alone.
RUN /opt/qvg/bin/pip install --no-cache-dir --constraint constraints.txt ".${EXTRAS:+[$EXTRAS]}"

FROM nvidia/cuda:13.0.1-base-ubuntu24.04
# Triton compiles a launcher in C for every kernel: it needs a compiler and Python's headers when it runs.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev python3 python3-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home qvg \
    && mkdir /videos \
    && chown qvg:qvg /videos
COPY --from=build /opt/qvg /opt/qvg
ENV PATH=/opt/qvg/bin:$PATH
USER 10001
WORKDIR /videos
ENTRYPOINT ["qvg"]
CMD ["--help"]
