"""The wire: downloads and uploads as one versioned little-endian frame, and the sizes of such frames. NumPy only.

    header   magic 4s | version u8 | kind u8 | layout digest 16s | server round u32 | client u32 | rank u16
             | shared factors u8 | factors present u8 | value type u8 | flags u8 | lora_alpha f64
             | num_examples u64 | train_loss f64                                              (60 bytes)
    holds    downloads only: the round on which it builds i32 (0: the seed's start, -1: nothing) | digest of what the client
             holds after it 16s
    bitmap   most significant bit first. Uploads with a mask: one bit a (module, rank) in the layout's order. Downloads that
             build on something: one bit a (module, factor, rank), and one a head tensor, set where it changed.
             Sparse frames: one bit an entry of the factors, and only the values of set bits follow, none of them zero
    values   module by module, A's rank slices before B's before R's, each slice contiguous; then the head
    checksum CRC-32 of all that stands before it, u32

What methods that move the frozen weights put behind a frame is drawn in `codec/base.py`.

No pickle, no names: both ends know the `Layout`, and its digest travels. The size follows from header and bitmap, and
is compared with the bytes given before anything is allocated. A message has exactly one encoding.
"""

from lora_a2.codec.base import base_parameters, base_size
from lora_a2.codec.messages import (
    Address,
    Body,
    DownloadSchema,
    UploadSchema,
    addressed,
    decode_download,
    decode_upload,
    encode,
    encode_body,
    frame_factors,
    read_address,
)
from lora_a2.codec.sizes import changed_size, upload_parameters, upload_size, whole_size, zero_entries
from lora_a2.codec.values import EXACT, VALUE_TYPES, as_sent, fits

__all__ = [
    "EXACT",
    "VALUE_TYPES",
    "Address",
    "Body",
    "DownloadSchema",
    "UploadSchema",
    "addressed",
    "as_sent",
    "base_parameters",
    "base_size",
    "changed_size",
    "decode_download",
    "decode_upload",
    "encode",
    "encode_body",
    "fits",
    "frame_factors",
    "read_address",
    "upload_parameters",
    "upload_size",
    "whole_size",
    "zero_entries",
]
