# docker build --tag live . && docker run --publish 7860:7860 live
# docs/deploy.md has the variables that set limits and model: docker run --env SD_MAX_SECONDS=20 ...
FROM python:3.11-slim

# A user without rights, with the number that a Space's containers use.
RUN useradd --create-home --uid 1000 user
WORKDIR /app

# The index of torch's build for processors, 0.2 GB. The usual build is for NVIDIA's GPUs and has gigabytes of libraries;
# to use it: docker build --build-arg TORCH= ..., and docker run --gpus all ...
ARG TORCH="--extra-index-url https://download.pytorch.org/whl/cpu"
COPY requirements-lock.txt .
RUN pip install --no-cache-dir $TORCH --requirement requirements-lock.txt

COPY . .
USER user
EXPOSE 7860
HEALTHCHECK --start-period=2m --timeout=5s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/health', timeout=4)"]
CMD ["python", "app.py", "--host", "0.0.0.0"]
