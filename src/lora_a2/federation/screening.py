"""What must hold of a reply before it may touch the state."""

from __future__ import annotations

import numpy as np

from lora_a2 import codec
from lora_a2.core.types import ClientProfile, Download, Upload, dense
from lora_a2.errors import ReplyError
from lora_a2.federation.agreement import Federation
from lora_a2.federation.client import upload_schema

LARGEST_LOSS = 1e6
"""A mean cross-entropy beyond this is nobody's; sums of such numbers stay finite."""


def screen(federation: Federation, profile: ClientProfile, download: Download, data: bytes) -> Upload:
    """Decodes an upload and checks all that must hold before it may touch the state.

    Raises:
        CodecError: not a valid message of this federation.
        ReplyError: another round or client, other factors, more examples than the client's profile states, more
            rank slices than its budget, values that are not finite, or an impossible loss.
    """
    start = download.adapter
    upload = codec.decode_upload(data, upload_schema(federation), start.rank, start.lora_alpha)
    _check_base(federation, upload)
    expected = (download.server_round, profile.id, download.shared)
    given = (upload.server_round, upload.client, upload.shared)
    if given != expected:
        raise ReplyError(
            f"Client {profile.id} sent a reply for round {given[0]}, client {given[1]}, factors {sorted(given[2])}; "
            f"expected round {expected[0]}, client {expected[1]}, factors {sorted(expected[2])}."
        )
    if upload.num_examples > profile.num_examples:
        raise ReplyError(
            f"Client {profile.id} claims {upload.num_examples} examples; its profile allows {profile.num_examples}."
        )
    modules = len(federation.layout.modules)
    selected = sum(int(m.sum()) for m in upload.mask.values()) if upload.mask else download.adapter.rank * modules
    allowed = (profile.rank_budget if federation.method.select else download.adapter.rank) * modules
    if selected > allowed:
        raise ReplyError(f"Client {profile.id} sent {selected} rank slices; its budget allows {allowed}.")
    federation.method.accepts(upload)
    weights = [dense(change) for change in upload.base_update.values()]
    finite = upload.update.tensors.finite() and all(np.isfinite(values).all() for values in weights)
    if not (finite and np.isfinite(upload.train_loss)):
        raise ReplyError(f"Client {profile.id} sent values that are not finite.")
    if not 0 <= upload.train_loss <= LARGEST_LOSS:
        raise ReplyError(f"Client {profile.id} states the loss {upload.train_loss:g}; expected 0 to {LARGEST_LOSS:g}.")
    return upload


def _check_base(federation: Federation, upload: Upload) -> None:
    """The change of every weight if the method trains them, gradients of the target weights where it asks for them; else none.

    Raises:
        ReplyError: other weights.
    """
    method = federation.method
    asked = method.full or method.asks_gradients(upload.server_round)
    wanted = {name for name, _ in federation.layout.base} if asked else set()
    if upload.base_update.keys() != wanted:
        raise ReplyError(f"The upload changes {len(upload.base_update)} base weights; expected {len(wanted)}.")
