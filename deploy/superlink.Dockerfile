# The server: SuperLink and ServerApp.
#   docker build -f deploy/superlink.Dockerfile -t lora-a2-superlink .
#   docker run -d -p 8000:8000 -v /etc/lora-a2:/certificates:ro -v lora-a2-server:/var/lib/lora-a2 lora-a2-superlink
FROM python:3.11-slim
COPY . /source
RUN pip install --no-cache-dir --constraint /source/constraints.txt "/source[flower,minilm]" && rm -r /source \
 && useradd --create-home --home-dir /var/lib/lora-a2 lora-a2
USER lora-a2
WORKDIR /var/lib/lora-a2
ENV FLWR_HOME=/var/lib/lora-a2/flwr FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1 \
    FLWR_DISABLE_UPDATE_CHECK=1 FLWR_TELEMETRY_ENABLED=0
EXPOSE 8000
ENTRYPOINT ["flower-superlink", "--enable-supernode-auth", "--host", "0.0.0.0", "--port", "8000", \
  "--ssl-ca-certfile", "/certificates/ca.crt", "--ssl-certfile", "/certificates/server.pem", \
  "--ssl-keyfile", "/certificates/server.key", "--database", "/var/lib/lora-a2/superlink.sqlite"]
