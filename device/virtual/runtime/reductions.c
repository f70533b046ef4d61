/* Reductions: ranks are added in their order, so that a sum is the same each time. No document says what a card does.
 *
 * Integers wrap. float32 and float64 round after each rank. 16-bit floats are added in float32 and rounded once, to
 * nearest even. Of two numbers of which one is NaN, MAX and MIN are NaN, as in torch.
 */

#include "ranks.h"

#include <stdlib.h>
#include <string.h>

enum { BLOCK = 512 };

static float bits_to_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint32_t float_to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static float of_bf16(uint16_t bits) { return bits_to_float((uint32_t)bits << 16); }

static uint16_t to_bf16(float value) {
    uint32_t bits = float_to_bits(value);
    if ((bits & 0x7fffffffU) > 0x7f800000U) {
        return (uint16_t)(bits >> 16 | 0x40U);
    }
    return (uint16_t)((bits + 0x7fffU + (bits >> 16 & 1U)) >> 16);
}

/* A float16 without its sign, moved to where float32 has exponent and mantissa, is the value times 2^-112. */
static float of_fp16(uint16_t bits) {
    uint32_t magnitude = (uint32_t)(bits & 0x7fffU) << 13;
    uint32_t sign = (uint32_t)(bits & 0x8000U) << 16;
    if (magnitude >= 0x0f800000U) { /* infinity or NaN */
        return bits_to_float(sign | 0x7f800000U | (magnitude & 0x007fffffU));
    }
    float scaled = bits_to_float(magnitude) * 0x1p112F;
    return bits_to_float(sign | float_to_bits(scaled));
}

static uint16_t to_fp16(float value) {
    uint32_t bits = float_to_bits(value);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000U);
    uint32_t magnitude = bits & 0x7fffffffU;
    if (magnitude > 0x7f800000U) {
        return sign | 0x7e00U;
    }
    if (magnitude >= 0x477ff000U) { /* what rounds to 65536 or more, and infinity */
        return sign | 0x7c00U;
    }
    if (magnitude < 0x38800000U) { /* below 2^-14: adding 0.5 leaves multiples of 2^-24, rounded to nearest even */
        return (uint16_t)(sign | (float_to_bits(bits_to_float(magnitude) + 0.5F) - 0x3f000000U));
    }
    return (uint16_t)(sign | ((magnitude - 0x38000000U + 0xfffU + (magnitude >> 13 & 1U)) >> 13));
}

#define LARGER(a, b) ((a) != (a) || (a) > (b) ? (a) : (b))
#define SMALLER(a, b) ((a) != (a) || (a) < (b) ? (a) : (b))

/* Combine a range with another one: integers as unsigned ones, which wrap. */
#define COMBINE(NAME, TYPE, WRAPPING)                                                                   \
    static void NAME(TYPE *out, const TYPE *part, uint64_t elements, int32_t reduction) {               \
        switch (reduction) {                                                                            \
        case SUM:                                                                                       \
            for (uint64_t i = 0; i < elements; ++i) {                                                   \
                out[i] = (TYPE)((WRAPPING)out[i] + (WRAPPING)part[i]);                                  \
            }                                                                                           \
            break;                                                                                      \
        case PROD:                                                                                      \
            for (uint64_t i = 0; i < elements; ++i) {                                                   \
                out[i] = (TYPE)((WRAPPING)out[i] * (WRAPPING)part[i]);                                  \
            }                                                                                           \
            break;                                                                                      \
        case MAX:                                                                                       \
            for (uint64_t i = 0; i < elements; ++i) {                                                   \
                out[i] = LARGER(part[i], out[i]);                                                       \
            }                                                                                           \
            break;                                                                                      \
        default:                                                                                        \
            for (uint64_t i = 0; i < elements; ++i) {                                                   \
                out[i] = SMALLER(part[i], out[i]);                                                      \
            }                                                                                           \
            break;                                                                                      \
        }                                                                                               \
    }

COMBINE(combine_int8, int8_t, uint32_t)
COMBINE(combine_int16, int16_t, uint32_t)
COMBINE(combine_int32, int32_t, uint32_t)
COMBINE(combine_int64, int64_t, uint64_t)
COMBINE(combine_uint64, uint64_t, uint64_t)
COMBINE(combine_fp32, float, float)
COMBINE(combine_fp64, double, double)

static void fold_16_bits(uint16_t *out, const void *const *parts, uint32_t count, uint64_t elements, int is_bf16,
                         int32_t reduction) {
    float sum[BLOCK], part[BLOCK];
    for (uint64_t start = 0; start < elements; start += BLOCK) {
        uint64_t length = elements - start < BLOCK ? elements - start : BLOCK;
        for (uint32_t rank = 0; rank < count; ++rank) {
            const uint16_t *values = (const uint16_t *)parts[rank] + start;
            float *into = rank == 0 ? sum : part;
            for (uint64_t i = 0; i < length; ++i) {
                into[i] = is_bf16 ? of_bf16(values[i]) : of_fp16(values[i]);
            }
            if (rank > 0) {
                combine_fp32(sum, part, length, reduction);
            }
        }
        for (uint64_t i = 0; i < length; ++i) {
            out[start + i] = is_bf16 ? to_bf16(sum[i]) : to_fp16(sum[i]);
        }
    }
}

static void combine(void *out, const void *part, uint64_t elements, int32_t dtype, int32_t reduction) {
    switch (dtype) {
    case INT8:
        combine_int8(out, part, elements, reduction);
        break;
    case INT16:
        combine_int16(out, part, elements, reduction);
        break;
    case INT32:
        combine_int32(out, part, elements, reduction);
        break;
    case INT64:
        combine_int64(out, part, elements, reduction);
        break;
    case UINT64:
        combine_uint64(out, part, elements, reduction);
        break;
    case FP64:
        combine_fp64(out, part, elements, reduction);
        break;
    default:
        combine_fp32(out, part, elements, reduction);
        break;
    }
}

void fold(void *out, const void *const *parts, uint32_t count, uint64_t elements, int32_t dtype, int32_t reduction) {
    if (dtype == FP16 || dtype == BF16) {
        fold_16_bits(out, parts, count, elements, dtype == BF16, reduction);
        return;
    }
    memcpy(out, parts[0], elements * bytes_of(dtype));
    for (uint32_t rank = 1; rank < count; ++rank) {
        combine(out, parts[rank], elements, dtype, reduction);
    }
}

/* What HcclAllReduce's documents have for A2 and A3: no products of int16 and bfloat16. An Ascend 950 has more. */
result_t check_reduction(int32_t dtype, int32_t reduction) {
    if (reduction < 0 || reduction >= REDUCTIONS) {
        remember("HCCL has no reduction %d", (int)reduction);
        return HCCL_NOT_SUPPORTED;
    }
    const char *soc = getenv("NPUDIFF_VIRTUAL_SOC");
    int is_950 = soc != NULL && strncmp(soc, "Ascend950", 9) == 0;
    int known = dtype == INT8 || dtype == INT16 || dtype == INT32 || dtype == INT64 || dtype == FP16 || dtype == FP32 ||
                dtype == BF16 || (is_950 && (dtype == UINT64 || dtype == FP64));
    if (!known || (reduction == PROD && (dtype == INT16 || dtype == BF16))) {
        remember("HCCL does not reduce dtype %d with reduction %d on this chip", (int)dtype, (int)reduction);
        return HCCL_NOT_SUPPORTED;
    }
    return HCCL_SUCCESS;
}
