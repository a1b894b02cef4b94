"""The wire: downloads and uploads as one versioned little-endian frame, and the sizes of such frames. NumPy only.

    header   magic 4s | version u8 | kind u8 | layout digest 16s | server round u32 | client u32 | rank u16
             | trained factors u8 | factors present u8 | value type u8 | flags u8 | lora_alpha f64
             | num_examples u64 | train_loss f64                                              (60 bytes)
    bitmap   one bit a (module, rank) in the layout's order, most significant bit first; uploads with a mask only.
             Sparse frames: one bit an entry of the factors, and only the values of set bits follow, none of them zero
    values   module by module, A's rank slices before B's, each slice contiguous; then the head
    checksum CRC-32 of all that stands before it, u32

What methods that move the frozen weights put behind a frame is drawn in `codec/base.py`.

No pickle, no names: both ends know the `Layout`, and its digest travels. The size follows from header and bitmap, and
is compared with the bytes given before anything is allocated. A message has exactly one encoding.
"""

from lora_a2.codec.base import BaseMessage, attach_base, base_parameters, base_size, detach_frame, read_base
from lora_a2.codec.frame import VALUE_TYPES, ValueType, fits
from lora_a2.codec.messages import decode_download, decode_upload, encode_download, encode_upload, frame_factors
from lora_a2.codec.sizes import download_parameters, download_size, upload_parameters, upload_size, zero_entries

__all__ = [
    "VALUE_TYPES",
    "BaseMessage",
    "ValueType",
    "attach_base",
    "base_parameters",
    "base_size",
    "decode_download",
    "decode_upload",
    "detach_frame",
    "download_parameters",
    "download_size",
    "encode_download",
    "encode_upload",
    "fits",
    "frame_factors",
    "read_base",
    "upload_parameters",
    "upload_size",
    "zero_entries",
]
