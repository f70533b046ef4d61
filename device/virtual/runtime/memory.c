/* Memory: the device's is the host's, counted, limited, and aligned as the device aligns it. */

#include "runtime.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* CANN aligns device memory to 512 bytes; a block of that size before each allocation holds how large it is. */
enum { ALIGNMENT = 512 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t total = UINT64_C(64) << 30;
static uint64_t used;
static uint64_t blocks;

/* For npudiff: how large the device is, what is in use, and in how many blocks. */
void npudiff_set_memory(uint64_t bytes) {
    pthread_mutex_lock(&lock);
    total = bytes;
    pthread_mutex_unlock(&lock);
}

void npudiff_memory(uint64_t *bytes, uint64_t *in_use, uint64_t *in_blocks) {
    pthread_mutex_lock(&lock);
    *bytes = total;
    *in_use = used;
    *in_blocks = blocks;
    pthread_mutex_unlock(&lock);
}

static int reserve(uint64_t size) {
    pthread_mutex_lock(&lock);
    int fits = size <= total && used <= total - size;
    if (fits) {
        used += size;
        ++blocks;
    }
    uint64_t left = used > total ? 0 : total - used;
    pthread_mutex_unlock(&lock);
    if (!fits) {
        remember("the virtual NPU is out of memory: %llu bytes asked for, %llu left",
                 (unsigned long long)size, (unsigned long long)left);
    }
    return fits;
}

static void release(uint64_t size) {
    pthread_mutex_lock(&lock);
    used -= size;
    --blocks;
    pthread_mutex_unlock(&lock);
}

status_t aclrtMalloc(void **address, size_t size, int32_t policy) {
    (void)policy;
    void *block = NULL;
    *address = NULL;
    ON_DEVICE();
    if (size == 0) {
        return PARAM_INVALID;
    }
    if (size > SIZE_MAX - ALIGNMENT || !reserve(size)) {
        return MEMORY_ALLOCATION;
    }
    if (posix_memalign(&block, ALIGNMENT, size + ALIGNMENT) != 0) {
        release(size);
        remember("the host has no %llu bytes for the virtual NPU", (unsigned long long)size);
        return MEMORY_ALLOCATION;
    }
    *(uint64_t *)block = size;
    *address = (char *)block + ALIGNMENT;
    return SUCCESS;
}

status_t aclrtMallocAlign32(void **address, size_t size, int32_t policy) { return aclrtMalloc(address, size, policy); }

status_t aclrtFree(void *address) {
    if (address == NULL) {
        return PARAM_INVALID;
    }
    void *block = (char *)address - ALIGNMENT;
    release(*(uint64_t *)block);
    free(block);
    return SUCCESS;
}

status_t aclrtMallocHost(void **address, size_t size) {
    *address = NULL;
    return posix_memalign(address, ALIGNMENT, size) == 0 ? SUCCESS : MEMORY_ALLOCATION;
}

status_t aclrtMallocHostWithCfg(void **address, uint64_t size, void *config) {
    (void)config;
    return aclrtMallocHost(address, (size_t)size);
}

status_t aclrtFreeHost(void *address) {
    free(address);
    return SUCCESS;
}

status_t aclrtGetMemInfo(int32_t attribute, size_t *left, size_t *all) {
    (void)attribute;
    pthread_mutex_lock(&lock);
    *left = (size_t)(used > total ? 0 : total - used);
    *all = (size_t)total;
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

status_t aclrtMemcpy(void *to, size_t room, const void *from, size_t count, int32_t kind) {
    (void)kind;
    ON_DEVICE();
    if (count > room) {
        return PARAM_INVALID;
    }
    memmove(to, from, count);
    return SUCCESS;
}

status_t aclrtMemcpyAsync(void *to, size_t room, const void *from, size_t count, int32_t kind, void *stream) {
    (void)stream;
    return aclrtMemcpy(to, room, from, count, kind);
}

status_t aclrtMemcpyAsyncWithCondition(void *to, size_t room, const void *from, size_t count, int32_t kind,
                                       void *stream) {
    return aclrtMemcpyAsync(to, room, from, count, kind, stream);
}

status_t aclrtMemset(void *address, size_t room, int32_t value, size_t count) {
    ON_DEVICE();
    if (count > room) {
        return PARAM_INVALID;
    }
    memset(address, value, count);
    return SUCCESS;
}

status_t aclrtMemsetAsync(void *address, size_t room, int32_t value, size_t count, void *stream) {
    (void)stream;
    return aclrtMemset(address, room, value, count);
}
