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
FLOAT8_E5M2 = 23
FLOAT8_E4M3FN = 24

NPU_INT4 = 285
NPU_HIFLOAT8 = 290
NPU_FLOAT8_E5M2 = 291
NPU_FLOAT8_E4M3FN = 292
NPU_FLOAT8_E8M0 = 293
NPU_FLOAT4_E2M1 = 296
NPU_FLOAT4_E1M2 = 297
