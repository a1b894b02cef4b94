"""The proxy before a SuperLink: nginx, which lets the fleet service through and nothing else.

Flower serves control, fleet and runtime on one port, and checks keys in the fleet service alone: whoever reaches that port
may start runs, which are programs. So a SuperLink listens on the loopback, and this is what other machines reach.
"""

from __future__ import annotations

import os
import re
import shutil
from importlib.resources import files
from pathlib import Path

from lora_a2.errors import ConfigError, RunError

_SYNTAX = re.compile(r"[\"$\\\x00-\x1f]")
"""What nginx reads as syntax between quotes too."""


def nginx() -> str:
    """Where nginx is.

    Raises:
        RunError: it is not installed.
    """
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    if (found := shutil.which("nginx", path=path)) is None:
        raise RunError("There is no nginx, which a SuperLink is published through: install it (apt-get install nginx).")
    return found


def configuration(*, listen: str, superlink: str, certificate: Path, key: Path, authority: Path) -> str:
    """nginx's configuration.

    Args:
        listen: port, or address and port, that nodes reach.
        superlink: address and port of the SuperLink, whose certificate is for "localhost".
        certificate: of the server, for the names that nodes reach it by, with whatever lies between it and the authority.
        key: of that certificate.
        authority: that signed the SuperLink's certificate.

    Raises:
        ConfigError: a path or an address with characters that nginx would read as syntax.
    """
    text = files("lora_a2.flower").joinpath("nginx.conf").read_text(encoding="utf-8")
    values = {"LISTEN": listen, "SUPERLINK": superlink, "CERTIFICATE": certificate, "KEY": key, "AUTHORITY": authority}
    for name, value in values.items():
        if _SYNTAX.search(str(value)):
            raise ConfigError(
                f"nginx cannot be told {str(value)!r}: choose a path without quotes, dollars and backslashes."
            )
        text = text.replace(f"@{name}@", str(value))
    return text
