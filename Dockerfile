# gptlab in a container, on a CPU or with --gpus all.
#
#   docker build -t gptlab --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .
#   docker run --rm -v "$PWD/runs:/work/runs" gptlab train
#   docker run --rm --gpus all --shm-size=8g -v "$PWD/runs:/work/runs" gptlab train model=gpt124m
#
# Not tried: no Docker daemon was at hand, so this file has not been built.
FROM python:3.12-slim
# Empty: what pip chooses, the CUDA build on Linux. The host needs the NVIDIA driver and its container toolkit.
ARG TORCH_INDEX=
RUN if [ -n "$TORCH_INDEX" ]; then pip install --no-cache-dir torch --index-url "$TORCH_INDEX"; fi
COPY . /opt/gptlab
RUN pip install --no-cache-dir /opt/gptlab
WORKDIR /work
ENTRYPOINT ["gptlab"]
