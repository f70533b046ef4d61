"""Numbers of dtypes where a schema says ``int``: torch's ScalarType below 256, torch_npu's own from there on."""

from __future__ import annotations

INT8 = 1
INT32 = 3
FLOAT16 = 5
QINT8 = 12
QUINT8 = 13
QINT32 = 14
UINT8 = 0
BFLOAT16 = 15
QUINT4X2 = 16
