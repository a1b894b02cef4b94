"""Who holds what: labels by client."""

from __future__ import annotations

import numpy as np

from lora_a2.report.blocks import Figure, Section, table
from lora_a2.report.heat import Grid, heat_map
from lora_a2.report.inputs import Run

MAX_CLIENTS = 40
"""Rows and columns of a picture with a cell for each client; of more the first are drawn."""


def labels(run: Run) -> Section | None:
    """The labels of each client's training examples; None if examples have none."""
    record = run.record
    if not record.environment["data"]["label_names"]:
        return None
    if not record.clients:
        return Section("Labels", ("This run did not record which labels its clients hold.",))
    holders = sorted(record.clients, key=lambda client: client.id)
    rows = [
        {"y": client.name, "x": label, "value": int(count)}
        for client in holders[:MAX_CLIENTS]
        for label, count in zip(record.label_names, client.train, strict=True)
    ]
    cut = f" The first {MAX_CLIENTS} of {len(holders)} clients." if len(holders) > MAX_CLIENTS else ""
    cells = []
    for client in holders:
        order = [c for c in np.argsort(-client.train, kind="stable") if client.train[c]]
        listed = ", ".join(f"{record.label_names[c]} {client.train[c]}" for c in order)
        cells.append((client.name, int(client.train.sum()), int(client.test.sum()), len(order), listed))
    figure = Figure(
        "Labels per client",
        f"Training examples of each label at each client, coloured by the square root of their number.{cut}",
        heat_map(
            Grid(
                record.label_names, [c.name for c in holders[:MAX_CLIENTS]], rows, ("Label", "Client", "Examples"), "d"
            ),
            root=True,
        ),
        table(["Client", "Training examples", "Test examples", "Labels", "How many of each"], cells),
    )
    sizes = [int(client.train.sum()) for client in holders]
    held = [int((client.train > 0).sum()) for client in holders]
    said = (
        f"{len(holders)} clients with {min(sizes):,} to {max(sizes):,} training examples and {min(held)} to {max(held)} of "
        f"{len(record.label_names)} labels."
    )
    return Section("Labels", (said,), figures=(figure,))
