"""The proxy in front of a SuperLink: nginx, which passes on the fleet service and nothing else.

Flower serves control, fleet and runtime on one port, and checks keys only in the fleet service: anyone who reaches that port
can start runs, which are programs. So the SuperLink listens on the loopback, and other machines reach only the proxy.
"""

from __future__ import annotations

import os
import re
import shutil
from importlib.resources import files
from pathlib import Path

from lora_a2.errors import ConfigError, RunError

_SYNTAX = re.compile(r"[\"$\\\x00-\x1f]")
"""Characters that nginx reads as syntax even between quotes."""


def nginx() -> str:
    """The path of nginx.

    Raises:
        RunError: it is not installed.
    """
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    if (found := shutil.which("nginx", path=path)) is None:
        raise RunError(
            "There is no nginx, which is the proxy in front of the SuperLink: install it (apt-get install nginx)."
        )
    return found


def configuration(*, listen: str, superlink: str, certificate: Path, key: Path, authority: Path) -> str:
    """nginx's configuration.

    Args:
        listen: the port, or address and port, that nodes connect to.
        superlink: address and port of the SuperLink, whose certificate is for "localhost".
        certificate: the server's, for the names that nodes use, with its chain of intermediate certificates.
        key: of that certificate.
        authority: the certificate of the authority that signed the SuperLink's.

    Raises:
        ConfigError: a path or an address has characters that nginx would read as syntax.
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
