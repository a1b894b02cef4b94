"""lora-a2 on Flower: the apps that `flwr run` starts, in simulation and across machines. Only this package imports flwr.

    [tool.flwr.app.components]
    serverapp = "lora_a2.flower.server_app:app"
    clientapp = "lora_a2.flower.client_app:app"

The server half drives the grid itself instead of subclassing Flower's `Strategy`: `Strategy.start` counts from round 1, so it
cannot resume; it sends the same record to all nodes; and it cannot repeat a round. The round loop is `lora_a2.federation.loop`,
as in the simulator.
"""
