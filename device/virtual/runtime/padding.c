/* One operator of CANN's own library, since torch_npu calls it past torch: rows are padded to 32 bytes before they are
 * gathered (ProcessGroupHCCL::byte_alignment). All other operators are kernels that torch knows. */

#include "runtime.h"

#include <stdlib.h>
#include <string.h>

enum { MOST_DIMS = 8, SCALAR_BYTES = 16, DTYPES_OF_ACL = 28 };

/* Bytes of aclDataType; 0 for what has no padding here. */
static const unsigned char dtype_bytes[DTYPES_OF_ACL] = {
    4, 2, 1, 4, 1, 0, 2, 2, 4, 8, 8, 8, 1, 0, 0, 0, 8, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2,
};

typedef struct {
    int64_t sizes[MOST_DIMS];
    int64_t strides[MOST_DIMS];
    uint64_t dims;
    uint64_t element;
    char *first;
} tensor_t;

typedef struct {
    const char *source;
    char *target;
    uint64_t bytes, padding;
} executor_t;

void *aclCreateTensor(const int64_t *sizes, uint64_t dims, int32_t dtype, const int64_t *strides, int64_t offset,
                      int32_t format, const int64_t *storage, uint64_t storage_dims, void *data) {
    (void)format;
    (void)storage;
    (void)storage_dims;
    tensor_t *made = dims > MOST_DIMS ? NULL : calloc(1, sizeof *made);
    if (made != NULL) {
        made->dims = dims;
        made->element = dtype < 0 || dtype >= DTYPES_OF_ACL ? 0 : dtype_bytes[dtype];
        made->first = data == NULL ? NULL : (char *)data + offset * (int64_t)made->element;
        for (uint64_t dim = 0; dim < dims; ++dim) {
            made->sizes[dim] = sizes[dim];
            made->strides[dim] = strides == NULL ? 0 : strides[dim];
        }
    }
    return made;
}

status_t aclDestroyTensor(const void *tensor) {
    free((void *)(uintptr_t)tensor);
    return SUCCESS;
}

/* A number, as its bytes; one that is 0 in any dtype has none but zeros. */
void *aclCreateScalar(const void *value, int32_t dtype) {
    unsigned char *made = calloc(1, SCALAR_BYTES);
    if (made != NULL && dtype >= 0 && dtype < DTYPES_OF_ACL) {
        memcpy(made, value, dtype_bytes[dtype]);
    }
    return made;
}

status_t aclDestroyScalar(const void *scalar) { return aclDestroyTensor(scalar); }

/* How far rows are padded follows from the sizes; nobody looks into the array. */
void *aclCreateIntArray(const int64_t *values, uint64_t count) {
    (void)values;
    (void)count;
    return calloc(1, 1);
}

status_t aclDestroyIntArray(const void *array) { return aclDestroyTensor(array); }

/* Whether a tensor is one row, without gaps. */
static int is_row(const tensor_t *tensor) {
    return tensor != NULL && tensor->dims == 2 && tensor->sizes[0] == 1 && tensor->element != 0 &&
           (tensor->strides[1] == 1 || tensor->sizes[1] == 1);
}

status_t aclnnConstantPadNdGetWorkspaceSize(const void *self, const void *padding, const void *value, void *result,
                                            uint64_t *workspace, void **executor) {
    static const unsigned char zeros[SCALAR_BYTES];
    const tensor_t *source = self, *target = result;
    if (!is_row(source) || !is_row(target) || target->element != source->element ||
        target->sizes[1] < source->sizes[1] || value == NULL || memcmp(value, zeros, SCALAR_BYTES) != 0) {
        remember("aclnnConstantPadNd: the virtual NPU pads one row with zeros, at its end");
        return FEATURE_NOT_SUPPORTED;
    }
    (void)padding;
    executor_t *made = malloc(sizeof *made);
    if (made == NULL) {
        return MEMORY_ALLOCATION;
    }
    *made = (executor_t){
        .source = source->first, .target = target->first, .bytes = (uint64_t)source->sizes[1] * source->element,
        .padding = (uint64_t)(target->sizes[1] - source->sizes[1]) * source->element,
    };
    *workspace = 0;
    *executor = made;
    return SUCCESS;
}

status_t aclnnConstantPadNd(void *workspace, uint64_t size, void *executor, void *stream) {
    (void)workspace;
    (void)size;
    executor_t *given = executor;
    executor_t padded = *given;
    free(given);
    status_t status = submit(stream, (task_t){.kind = TASK_COPY, .object = padded.target, .source = padded.source,
                                              .count = padded.bytes});
    return status != SUCCESS ? status
                             : submit(stream, (task_t){.kind = TASK_SET, .object = padded.target + padded.bytes,
                                                       .count = padded.padding});
}
