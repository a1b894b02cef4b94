# The server's proxy, the only part that other machines reach. It shares the SuperLink's network namespace, and so its loopback.
# /etc/lora-a2/proxy holds ca.crt, server.pem and server.key; user 1000 must be able to read the key.
#   docker build -f deploy/proxy.Dockerfile -t lora-a2-proxy .
#   docker run -d --network container:superlink -v /etc/lora-a2/proxy:/etc/lora-a2:ro lora-a2-proxy
FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends nginx-light && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 1000 --create-home --home-dir /var/lib/lora-a2-proxy lora-a2-proxy
COPY deploy/nginx.conf /etc/nginx/lora-a2.conf
USER lora-a2-proxy
ENTRYPOINT ["/usr/sbin/nginx", "-p", "/var/lib/lora-a2-proxy", "-c", "/etc/nginx/lora-a2.conf"]
