# The server: SuperLink and ServerApp. It listens on its container's loopback; the published port is that of the proxy
# (proxy.Dockerfile), which joins this network namespace. /etc/lora-a2/superlink holds ca.crt, superlink.pem, superlink.key.
#   docker build -f deploy/superlink.Dockerfile -t lora-a2-superlink .
#   docker run -d --name superlink -p 9092:9092 -v /etc/lora-a2/superlink:/certificates:ro -v lora-a2-server:/var/lib/lora-a2 \
#     lora-a2-superlink
# Start runs inside the container: docker exec superlink flwr run …
FROM python:3.11-slim
COPY . /source
RUN pip install --no-cache-dir --constraint /source/constraints.txt "/source[flower,minilm]" && rm -r /source \
 && useradd --create-home --home-dir /var/lib/lora-a2 lora-a2
USER lora-a2
WORKDIR /var/lib/lora-a2
ENV FLWR_HOME=/var/lib/lora-a2/flwr FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1 \
    FLWR_DISABLE_UPDATE_CHECK=1 FLWR_TELEMETRY_ENABLED=0
EXPOSE 9092
ENTRYPOINT ["flower-superlink", "--enable-supernode-auth", "--host", "127.0.0.1", "--port", "8000", \
  "--ssl-ca-certfile", "/certificates/ca.crt", "--ssl-certfile", "/certificates/superlink.pem", \
  "--ssl-keyfile", "/certificates/superlink.key", "--database", "/var/lib/lora-a2/superlink.sqlite"]
