# A node's worker: it has model and data, but no network. It shares a volume, and so the socket, with the SuperNode.
#   docker build -f deploy/worker.Dockerfile -t lora-a2-worker .
#   docker run -d --network none -v /srv/tickets:/data:ro -v /etc/lora-a2/node.toml:/node.toml:ro \
#     -v lora-a2-socket:/run/lora-a2 -v lora-a2-state:/state lora-a2-worker
# node.toml says what this node allows: deploy/node.toml is an example.
FROM python:3.11-slim
COPY . /source
RUN pip install --no-cache-dir --constraint /source/constraints.txt "/source[minilm]" && rm -r /source \
 && useradd --uid 1000 lora-a2 && install -d -o lora-a2 -m 700 /run/lora-a2 /state
USER lora-a2
ENV HF_HUB_OFFLINE=1
ENTRYPOINT ["lora-a2", "node", "--data", "/data", "--socket", "/run/lora-a2/worker.sock", "--store", "/state", \
  "--policy", "/node.toml"]
CMD ["--model", "all-MiniLM-L6-v2"]
