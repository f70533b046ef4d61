/* Memory: the device's is the host's, counted, limited, and aligned as the device aligns it. */

#include "runtime.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* CANN aligns device memory to 512 bytes; a block of that size before each allocation holds how large it is. */
enum { ALIGNMENT = 512 };

/* What stands before each allocation. */
typedef struct block {
    uint64_t size;
    int32_t device;
    struct block *before, *after;
} block_t;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static block_t all = {.before = &all, .after = &all};
static uint64_t total = UINT64_C(64) << 30;
static uint64_t used[MOST_DEVICES];
static uint64_t blocks[MOST_DEVICES];

/* For npudiff: how large each device is; what is in use of this one, and in how many blocks. */
void npudiff_set_memory(uint64_t bytes) {
    pthread_mutex_lock(&lock);
    total = bytes;
    pthread_mutex_unlock(&lock);
}

void npudiff_memory(uint64_t *bytes, uint64_t *in_use, uint64_t *in_blocks) {
    pthread_mutex_lock(&lock);
    *bytes = total;
    *in_use = used[this_device()];
    *in_blocks = blocks[this_device()];
    pthread_mutex_unlock(&lock);
}

/* For npudiff: how often memory was freed. What was allocated before stays allocated as long as this does. */
atomic_ullong npudiff_frees;

/* For npudiff: whether some bytes are allocated. */
int32_t npudiff_is_allocated(const void *address, uint64_t size) {
    const char *first = address;
    int found = 0;
    pthread_mutex_lock(&lock);
    for (block_t *block = all.after; block != &all && !found; block = block->after) {
        const char *begin = (const char *)block + ALIGNMENT;
        found = first >= begin && first + size <= begin + block->size;
    }
    pthread_mutex_unlock(&lock);
    return found;
}

static int reserve(uint64_t size, int32_t device) {
    pthread_mutex_lock(&lock);
    int fits = size <= total && used[device] <= total - size;
    if (fits) {
        used[device] += size;
        ++blocks[device];
    }
    uint64_t left = used[device] > total ? 0 : total - used[device];
    pthread_mutex_unlock(&lock);
    if (!fits) {
        remember("the virtual NPU is out of memory: %llu bytes asked for, %llu left",
                 (unsigned long long)size, (unsigned long long)left);
    }
    return fits;
}

static void release(uint64_t size, int32_t device, block_t *block) {
    pthread_mutex_lock(&lock);
    used[device] -= size;
    --blocks[device];
    if (block != NULL) {
        block->before->after = block->after;
        block->after->before = block->before;
        atomic_fetch_add(&npudiff_frees, 1);
    }
    pthread_mutex_unlock(&lock);
}

status_t aclrtMalloc(void **address, size_t size, int32_t policy) {
    (void)policy;
    void *made = NULL;
    int32_t device = this_device();
    *address = NULL;
    ON_DEVICE();
    if (size == 0) {
        return PARAM_INVALID;
    }
    if (size > SIZE_MAX - ALIGNMENT || !reserve(size, device)) {
        return MEMORY_ALLOCATION;
    }
    if (posix_memalign(&made, ALIGNMENT, size + ALIGNMENT) != 0) {
        release(size, device, NULL);
        remember("the host has no %llu bytes for the virtual NPU", (unsigned long long)size);
        return MEMORY_ALLOCATION;
    }
    block_t *block = made;
    pthread_mutex_lock(&lock);
    *block = (block_t){.size = size, .device = device, .before = all.before, .after = &all};
    all.before->after = block;
    all.before = block;
    pthread_mutex_unlock(&lock);
    *address = (char *)made + ALIGNMENT;
    return SUCCESS;
}

status_t aclrtMallocAlign32(void **address, size_t size, int32_t policy) { return aclrtMalloc(address, size, policy); }

status_t aclrtFree(void *address) {
    if (address == NULL) {
        return PARAM_INVALID;
    }
    block_t *block = (block_t *)((char *)address - ALIGNMENT);
    release(block->size, block->device, block);
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

/* Memory of the host that the device uses where it is: both see one address. */
status_t aclrtHostRegister(void *address, uint64_t size, int32_t kind, void **device_address) {
    (void)size;
    (void)kind;
    *device_address = address;
    return SUCCESS;
}

status_t aclrtHostUnregister(void *address) {
    (void)address;
    return SUCCESS;
}

status_t aclrtGetMemInfo(int32_t attribute, size_t *left, size_t *all) {
    (void)attribute;
    pthread_mutex_lock(&lock);
    uint64_t in_use = used[this_device()];
    *left = (size_t)(in_use > total ? 0 : total - in_use);
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
    status_t status = unseen("aclrtMemcpy");
    if (status == SUCCESS) {
        memmove(to, from, count);
    }
    return status;
}

status_t aclrtMemcpyAsync(void *to, size_t room, const void *from, size_t count, int32_t kind, void *stream) {
    (void)kind;
    if (count > room) {
        return PARAM_INVALID;
    }
    return submit(stream, (task_t){.kind = TASK_COPY, .object = to, .source = from, .count = count});
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
    status_t status = unseen("aclrtMemset");
    if (status == SUCCESS) {
        memset(address, value, count);
    }
    return status;
}

status_t aclrtMemsetAsync(void *address, size_t room, int32_t value, size_t count, void *stream) {
    if (count > room) {
        return PARAM_INVALID;
    }
    return submit(stream, (task_t){.kind = TASK_SET, .object = address, .number = (uint64_t)value, .count = count});
}
