"""What must hold of a reply before it may touch the state."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lora_a2 import codec
from lora_a2.core.algebra import dense
from lora_a2.core.types import BaseUpdate, ClientProfile, Download, Upload
from lora_a2.errors import ReplyError
from lora_a2.federation.agreement import Federation

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
    upload = codec.decode_upload(codec.detach_frame(data), federation.layout, start.rank, start.lora_alpha)
    upload = replace(upload, base_update=_full_update(federation, data))
    expected = (download.server_round, profile.id, download.trainable)
    given = (upload.server_round, upload.client, upload.trainable)
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
    if federation.method.prune is not None and upload.mask is not None:
        kept = {tuple(keep.tolist()) for keep in upload.mask.values()}
        if len(kept) > 1 or not (first := np.array(kept.pop()))[0] or (np.diff(first.astype(int)) > 0).any():
            raise ReplyError(f"Client {profile.id} pruned otherwise than to the same first rank slices everywhere.")
    arrays = [f.get(x) for f in upload.update.factors.values() for x in upload.trainable]
    weights = [dense(change) for change in upload.base_update.values()]
    finite = all(np.isfinite(a).all() for a in [*arrays, *weights, *upload.update.head.values()])
    if not (finite and np.isfinite(upload.train_loss)):
        raise ReplyError(f"Client {profile.id} sent values that are not finite.")
    if not 0 <= upload.train_loss <= LARGEST_LOSS:
        raise ReplyError(f"Client {profile.id} states the loss {upload.train_loss:g}; expected 0 to {LARGEST_LOSS:g}.")
    return upload


def _full_update(federation: Federation, data: bytes) -> BaseUpdate:
    """The change of every weight, where the method trains them; else the upload must have none."""
    update = codec.read_base(data, federation.layout).update
    wanted = {name for name, _ in federation.layout.base} if federation.method.full else set()
    if update.keys() != wanted:
        raise ReplyError(f"The upload changes {len(update)} base weights; expected {len(wanted)}.")
    return update
