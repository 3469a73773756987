# qbench in a container. The base image must have Python 3.11 to 3.13, make and a C compiler (Triton calls it).
# PyTorch's wheels bring the CUDA libraries; a GPU needs only the host's driver and NVIDIA's container toolkit.
#
#   docker build -t qbench .
#   docker run --gpus all -v qbench-cache:/cache -v "$PWD/runs:/qbench/runs" qbench run model=qwen3-0.6b method=gptq
#
# Without a GPU, --build-arg TORCH_INDEX=URL takes PyTorch's smaller CPU build, see README.md.
ARG BASE=python:3.12
FROM ${BASE}
ARG TORCH_INDEX=
WORKDIR /qbench

# The largest download comes first, so that a change of the code does not repeat it.
COPY constraints.txt .
RUN python3 -m venv .venv && \
    .venv/bin/pip install --no-cache-dir -c constraints.txt ${TORCH_INDEX:+--extra-index-url $TORCH_INDEX} \
      $(grep '^torch==' constraints.txt)

COPY . .
RUN make install TORCH_INDEX=$TORCH_INDEX

ENV PATH=/qbench/.venv/bin:$PATH HF_HOME=/cache/huggingface QBENCH_CACHE=/cache/qbench
ENTRYPOINT ["qbench"]
CMD ["--help"]
