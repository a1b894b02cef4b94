Rows = tuple[int, int, int]
"""Address, and distance of rows and of heads in elements."""
Shape = tuple[int, int, int, int, int, float, bool, bool]
"""Addresses of the sentences' starts and lengths (int64), their number, heads, a head's width, scaling, bfloat16, causal."""

def forward(shape: Shape, q: Rows, k: Rows, v: Rows, out: Rows, sums: int, /) -> None: ...
def backward(
    shape: Shape, q: Rows, k: Rows, v: Rows, grad: Rows, dq: Rows, dk: Rows, dv: Rows, sums: int, /
) -> None: ...
