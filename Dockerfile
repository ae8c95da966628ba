# For CPUs:        docker build -t segjax .
# For NVIDIA GPUs: docker build -t segjax --build-arg EXTRAS=cuda12 .
#
# The CUDA libraries come with JAX's wheels; the host needs the driver and NVIDIA's container
# toolkit. Files are read and written in /work, and compiled programs and data sets are kept in
# /home/segjax/.cache:
#
#   docker run --rm -it --gpus all -v "$PWD:/work" -v segjax-cache:/home/segjax/.cache segjax \
#     train --config=unet/scenes --workdir=runs/scenes
#
# The container's user has the id 1000. Where the directory belongs to another one, run as that user,
# with a cache that it may write to, instead of the volume:
#
#   docker run --user "$(id -u):$(id -g)" -e HOME=/tmp -v "$PWD:/work" ...
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS wheel
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir=/wheels .

FROM python:${PYTHON}-slim
# Extras of pyproject.toml, separated by commas.
ARG EXTRAS=""
COPY constraints.txt /tmp/
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
  wheel="$(echo /wheels/segjax-*.whl)" \
  && pip install --no-cache-dir -c /tmp/constraints.txt "${wheel}${EXTRAS:+[${EXTRAS}]}" \
  && useradd --create-home --uid=1000 segjax \
  && install --directory --owner=segjax /work /home/segjax/.cache
USER 1000
WORKDIR /work
ENTRYPOINT ["segjax"]
CMD ["--help"]
