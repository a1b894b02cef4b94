"""`lora-a2 flower certificates`"""

from __future__ import annotations

from pathlib import Path

import click

from lora_a2.commands.common import examples


@click.command(
    "certificates",
    short_help="Make a test authority and keys for TLS.",
    epilog=examples(
        "lora-a2 flower certificates certificates --nodes 5",
        "lora-a2 flower certificates certificates --host superlink.example.org --host 10.0.0.5",
    ),
)
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option("--nodes", type=click.IntRange(min=0), default=3, show_default=True, help="How many nodes get a key.")
@click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="HOST",
    help="Name or address by which nodes reach the server; repeat for more.  [default: localhost, 127.0.0.1, ::1]",
)
@click.option("--days", type=click.IntRange(min=1), default=365, show_default=True, help="How long they are valid.")
def command(directory: Path, nodes: int, hosts: tuple[str, ...], days: int) -> None:
    """Make a test authority, certificates for the server, and a key for each node.

    In earnest, certificates come from your institution's authority, and each node makes its own key and keeps it.
    """
    from lora_a2.flower.certificates import LOOPBACK, make_certificates

    made = make_certificates(directory, nodes=nodes, hosts=hosts or LOOPBACK, days=days)
    click.echo(f"SuperLink: {made.authority}, {made.superlink_certificate}, {made.superlink_key}")
    click.echo(f"Proxy: {made.authority}, {made.server_certificate}, {made.server_key}")
    for node in range(nodes):
        click.echo(f"Node {node}: {made.authority}, {made.node_key(node)}; register {made.node_public_key(node)}")
