"""Marks for tests that need a program which is no Python package."""

from __future__ import annotations

import pytest

from lora_a2.errors import RunError


def _lacks_nginx() -> bool:
    try:
        from lora_a2.flower.proxy import nginx

        nginx()
    except RunError:
        return True
    return False


NGINX = pytest.mark.skipif(_lacks_nginx(), reason="a SuperLink is published through nginx: apt-get install nginx")
