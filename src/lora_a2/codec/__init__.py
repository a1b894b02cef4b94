"""The wire: downloads and uploads as one versioned little-endian frame, and the sizes of such frames. NumPy only.

    header   magic 4s | version u8 | kind u8 | layout digest 16s | server round u32 | client u32 | rank u16
             | trained factors u8 | factors present u8 | value type u8 | flags u8 | lora_alpha f64
             | num_examples u64 | train_loss f64                                              (60 bytes)
    bitmap   one bit a (module, rank) in the layout's order, most significant bit first; uploads with a mask only
    values   module by module, A's rank slices before B's, each slice contiguous; then the head
    checksum CRC-32 of all that stands before it, u32

No pickle, no names: both ends know the `Layout`, and its digest travels. The size follows from header and bitmap, and
is compared with the bytes given before anything is allocated. A message has exactly one encoding.
"""

from lora_a2.codec.frame import VALUE_TYPES, ValueType
from lora_a2.codec.messages import decode_download, decode_upload, encode_download, encode_upload
from lora_a2.codec.sizes import download_parameters, download_size, upload_parameters, upload_size

__all__ = [
    "VALUE_TYPES",
    "ValueType",
    "decode_download",
    "decode_upload",
    "download_parameters",
    "download_size",
    "encode_download",
    "encode_upload",
    "upload_parameters",
    "upload_size",
]
