"""lora-a2 on Flower: the apps that `flwr run` starts, in simulation and across machines. Only this package imports flwr.

    [tool.flwr.app.components]
    serverapp = "lora_a2.flower.server_app:app"
    clientapp = "lora_a2.flower.client_app:app"

The server's half drives the grid itself instead of subclassing Flower's `Strategy`: its `start` counts from round 1, so that
it cannot resume, sends one record to all nodes, and cannot repeat a round. The rounds are those of `lora_a2.federation.loop`, the
same as in the simulator.
"""
