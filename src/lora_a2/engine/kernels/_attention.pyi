INTERFACE: int
"""The version of the arguments below."""

Rows = tuple[int, int, int]
"""Address, and distance of rows and of heads in elements."""
Shape = tuple[int, int, int, int, int, float, bool, int, int, float, int, int]
"""Addresses of the sentences' starts and lengths (int64), their number, heads, a head's width, scaling, bfloat16, how many
tokens before and after itself a token sees, softcap (0: none), address (0: none) and side of the bias (heads, side, side)."""

def forward(shape: Shape, q: Rows, k: Rows, v: Rows, out: Rows, sums: int, /) -> None: ...
def backward(
    shape: Shape, q: Rows, k: Rows, v: Rows, grad: Rows, dq: Rows, dk: Rows, dv: Rows, sums: int, /
) -> None: ...
