# docker build -t rambo_det . && docker run --gpus all --shm-size 8g -it rambo_det
# --shm-size: data workers pass images through shared memory.
FROM python:3.11-slim-bookworm

# Detectron2 is built from its repository, which needs git and a compiler. Its CUDA operators are
# not built: this image has no CUDA compiler, and the architectures of configs/ do not need them.
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential git \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /rambo_det
COPY requirements.txt ./
RUN pip install --no-cache-dir -r requirements.txt
COPY tools/get_detectron2.py tools/
RUN python tools/get_detectron2.py
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation -e .

CMD ["rambo-train", "--config", "configs/quickstart/faster_rcnn_rambo.yaml"]
