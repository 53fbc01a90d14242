# An edge to try out; nothing in it brings torch.  Built by BuildKit, as `docker compose build` does.
# Build arguments:
#   BASE_IMAGE                           any image with Python 3.11 or newer, venv included
#   PIP_INDEX_URL, PIP_EXTRA_INDEX_URL   where pip looks; empty is pip's own default
# Secrets, both optional: pip_conf, a pip.conf, for an index whose password no image shall hold;
# pip_ca, certificates (PEM) that pip shall trust instead of its own.
# Wheels that lie in docker/wheels are at hand without any index.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
ARG PIP_INDEX_URL=
ARG PIP_EXTRA_INDEX_URL=
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /source
# packages first, so that a change of Tandem's own code does not install them again
COPY pyproject.toml constraints.txt docker/install-packages ./
RUN --mount=type=bind,source=docker/wheels,target=/wheels \
    --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=secret,id=pip_ca,target=/etc/pip-ca.pem \
    ./install-packages edge
COPY LICENSE README.md docker/install-tandem ./
COPY cloud cloud
COPY edge edge
COPY prepare prepare
COPY protos protos
COPY shared shared
COPY simulator simulator
RUN ./install-tandem

FROM ${BASE_IMAGE}
COPY --from=build /opt/tandem /opt/tandem
ENV PATH=/opt/tandem/bin:$PATH HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /tmp
ENTRYPOINT ["tandem"]
CMD ["generate", "--help"]
