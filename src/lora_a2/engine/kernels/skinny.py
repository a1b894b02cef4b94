"""LoRA's skinny products: a tall matrix of tokens times a handful of rank slices, for K clients at once.

Shapes: K clients, T tokens a client, R rank slices, d the width of an input or output; token matrices (K·T, d) may be
columns of a wider one. In bfloat16 on a CPU that has AVX-512 BF16 a compiled kernel (`_skinny.c`) takes them, since a matrix
library spends most of so small a product on preparing it; elsewhere PyTorch does.
"""

from __future__ import annotations

import torch
from torch import Tensor

try:
    from lora_a2.engine.kernels import _skinny as kernel
except ImportError:  # built without a C compiler
    kernel = None  # type: ignore[assignment]

KERNEL_WIDTH = 32
KERNEL_RANKS = 8
"""The compiled kernel takes widths and ranks that are multiples of these."""
_SUPPORTED = kernel is not None and kernel.supported()


def compiled() -> bool:
    """Whether the compiled kernel is there and this processor can run it."""
    return _SUPPORTED


def down(x: Tensor, a: Tensor) -> Tensor:
    """x (K·T, d), A (K, R, d) → x_k A_kᵀ (K, T, R)."""
    clients, ranks, width = a.shape
    if not _kernel_takes(x, a):
        return torch.bmm(_by_client(x, clients), a.transpose(1, 2))
    rows = x.shape[0] // clients
    z = x.new_empty(clients, rows, ranks)
    kernel.down(_rows_of(x, rows), _matrices(a), _matrices(z), clients, rows, width, ranks)
    return z


def up(y: Tensor, z: Tensor, b: Tensor) -> None:
    """y (K·T, d) += z_k B_k, in place, for z (K, T, R) and B (K, R, d)."""
    clients, ranks, width = b.shape
    if _kernel_takes(y, b):
        rows = y.shape[0] // clients
        kernel.up(_rows_of(y, rows), _matrices(z), _matrices(b), clients, rows, width, ranks)
    elif clients == 1:
        y.addmm_(z[0], b[0])
    else:
        y += torch.bmm(z, b).view(len(y), width)


def outer(total: Tensor, z: Tensor, x: Tensor) -> None:
    """total (K, R, d) float32 += z_kᵀ x_k, in place, for z (K, T, R) and x (K·T, d)."""
    clients, ranks, width = total.shape
    if not _kernel_takes(x, total):
        total += torch.bmm(z.transpose(1, 2), _by_client(x, clients))
        return
    rows = x.shape[0] // clients
    kernel.outer(_matrices(total), _matrices(z), _rows_of(x, rows), clients, rows, width, ranks)


def _by_client(rows: Tensor, clients: int) -> Tensor:
    """(K·T, d) → (K, T, d), without a copy."""
    return rows.view(clients, len(rows) // clients, rows.shape[1])


def _kernel_takes(rows: Tensor, slices: Tensor) -> bool:
    fits = slices.shape[2] % KERNEL_WIDTH == 0 and slices.shape[1] % KERNEL_RANKS == 0
    return _SUPPORTED and fits and rows.dtype == torch.bfloat16 and rows.device.type == "cpu" and rows.stride(1) == 1


def _matrices(values: Tensor) -> tuple[int, int, int]:
    """Where the kernel finds the clients' matrices of (K, T, d): address, distance of clients in bytes, of rows in elements."""
    return values.data_ptr(), values.stride(0) * values.element_size(), values.stride(1)


def _rows_of(values: Tensor, rows: int) -> tuple[int, int, int]:
    """As `_matrices`, of (K·T, d) with this many rows a client. Not a view, which would take as long as a small product."""
    row = values.stride(0)
    return values.data_ptr(), rows * row * values.element_size(), row
