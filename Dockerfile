# Untested: it was written on a machine without Docker. Please report what fails.
#   docker build -t pv3d .                            with CUDA, for GPUs
#   docker build -t pv3d --build-arg CPU=1 .          without
#   docker run --rm -v "$PWD/demo:/pv3d/demo" pv3d make demo
#   docker run --rm --gpus all --ipc host -v /data:/data pv3d python train.py --outdir /data/runs --cfg pv3d-128 --data /data/heads.zip
FROM python:3.11-slim
ARG CPU=
RUN apt-get update && apt-get install -y --no-install-recommends g++ git make && rm -rf /var/lib/apt/lists/*
WORKDIR /pv3d
COPY . .
RUN make install CPU=$CPU
# the compiler of the kernels, of the same CUDA as torch
RUN [ -n "$CPU" ] || { cuda=$(.venv/bin/python -c 'import torch; print(torch.version.cuda)'); \
    .venv/bin/python -m pip install "nvidia-cuda-nvcc==$cuda.*" "nvidia-cuda-cccl==$cuda.*"; }
ENV PATH=/pv3d/.venv/bin:$PATH
CMD ["make"]
