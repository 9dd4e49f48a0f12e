# One image for the server, the workers, the migration and the dashboard.
FROM python:3.12-slim AS build
WORKDIR /build
RUN python -m venv /opt/hpo
COPY requirements.lock ./
RUN /opt/hpo/bin/pip install --no-cache-dir --quiet --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY hpo_service/ hpo_service/
COPY worker/ worker/
RUN /opt/hpo/bin/pip install --no-cache-dir --quiet --no-deps --no-build-isolation . \
    && /opt/hpo/bin/python -m compileall -q /opt/hpo/lib

FROM python:3.12-slim
# One BLAS thread a process: a second one gains nothing on networks this small.
ENV PATH=/opt/hpo/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 TZ=UTC HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1
COPY --from=build /opt/hpo /opt/hpo
# Volumes made here belong to the user that the services run as; the backups' to the one that makes them.
RUN mkdir -p /secrets/owner /secrets/reader /secrets/before /data /keys/admin /keys/worker /backups \
    && chown -R 10001:10001 /secrets /data /keys && chown 10004:10004 /backups \
    && chmod 711 /secrets /secrets/owner /secrets/reader && chmod 700 /keys/admin /keys/worker /backups
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000
ENTRYPOINT ["hpo"]
CMD ["--help"]
