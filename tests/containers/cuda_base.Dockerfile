# The stand-in for the CUDA base, with this machine's toolkit where NVIDIA's devel images have one.
ARG BASE
# hadolint ignore=DL3006
FROM ${BASE}
# hadolint ignore=DL3022
COPY --from=toolkit . /usr/local/cuda
ENV PATH=/usr/local/cuda/bin:$PATH
