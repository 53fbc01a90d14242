"""A linear layer without bias whose weights may be laid out for the processor beforehand.

On x86 PyTorch hands float32 products with few rows to MKL, which is far slower there than oneDNN
on weights in oneDNN's own blocked layout, most of all for 2 to 16 rows.  oneDNN in turn takes less
time for 4 rows than for 1, so fewer are padded.  The two operators used are those that PyTorch's
own compiler emits; where they are missing, and for every other dtype or device, this is an ordinary
linear layer.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from shared.library_settings import make_setting

# oneDNN keeps a compiled kernel, with its buffers, for each of the last 1,024 shapes that it met,
# and every number of rows is another one.  It reads this when it is first used.
make_setting("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

_FEWEST_ROWS = 4


class PackedLinear:
    """``[n, in_features]`` → ``[n, out_features]``, weight ``[out_features, in_features]``."""

    def __init__(self, weight: Tensor) -> None:
        self._packed = (
            weight.device.type == "cpu" and weight.dtype is torch.float32 and _supported()
        )
        if self._packed:
            weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _FEWEST_ROWS)
        self._weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        """The product for rows ``x``, in their dtype."""
        if not self._packed:
            return F.linear(x, self._weight)
        rows = x.shape[0]
        if rows < _FEWEST_ROWS:
            x = F.pad(x, (0, 0, 0, _FEWEST_ROWS - rows))
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, None, "none", [], "")
        return out[:rows]


def _supported() -> bool:
    return (
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
