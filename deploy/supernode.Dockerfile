# A node's SuperNode: it has the network and the key, but neither model nor data.
#   docker build -f deploy/supernode.Dockerfile -t lora-a2-supernode .
#   docker run -d -v /etc/lora-a2:/certificates:ro -v lora-a2-socket:/run/lora-a2 lora-a2-supernode \
#     --superlink superlink.example.org:9092 \
#     --node-config 'partition-id=0 num-partitions=3 worker-socket="/run/lora-a2/worker.sock"'
FROM python:3.11-slim
COPY . /source
RUN pip install --no-cache-dir --constraint /source/constraints.txt "/source[flower]" && rm -r /source \
 && useradd --uid 1000 --create-home --home-dir /var/lib/lora-a2 lora-a2 && install -d -o lora-a2 -m 700 /run/lora-a2
USER lora-a2
WORKDIR /var/lib/lora-a2
ENV FLWR_HOME=/var/lib/lora-a2/flwr FLWR_DISABLE_UPDATE_CHECK=1 FLWR_TELEMETRY_ENABLED=0
ENTRYPOINT ["python", "-m", "lora_a2.flower.supernode", "--root-certificates", "/certificates/ca.crt", \
  "--auth-supernode-private-key", "/certificates/node.key"]
