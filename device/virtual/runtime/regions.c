/* Memory of a communicator: a file without a name, which is gone when the last process that has it ends. */

#define _GNU_SOURCE /* memfd_create, syscall */

#include "ranks.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MAGIC UINT64_C(0x6e70756469666631)

enum { PAGE = 4096 };

static size_t header_bytes(void) { return (sizeof(region_t) + PAGE - 1) / PAGE * PAGE; }

static size_t region_bytes(uint32_t ranks) {
    return header_bytes() + 2 * (size_t)STAGE_BYTES * ranks + sizeof(mailbox_t) * ranks * ranks;
}

unsigned char *stage_of(region_t *region, uint32_t rank, uint64_t round) {
    return (unsigned char *)region + header_bytes() + (2 * (size_t)rank + round % 2) * STAGE_BYTES;
}

mailbox_t *mailbox_of(region_t *region, uint32_t from, uint32_t to) {
    uint32_t ranks = atomic_load(&region->ranks);
    mailbox_t *first = (mailbox_t *)(stage_of(region, ranks, 0));
    return first + (size_t)from * ranks + to;
}

double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

void ring(region_t *region) {
    atomic_fetch_add(&region->bell, 1);
    syscall(SYS_futex, &region->bell, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

void listen_for(region_t *region, uint32_t heard, int milliseconds) {
    struct timespec time = {.tv_sec = milliseconds / 1000, .tv_nsec = (milliseconds % 1000) * 1000000L};
    syscall(SYS_futex, &region->bell, FUTEX_WAIT, heard, &time, NULL, 0);
}

static result_t system_failed(const char *what) {
    remember("the memory of a communicator: %s: %s", what, strerror(errno));
    return HCCL_SYSTEM_CALL;
}

static region_t *mapped(int file, size_t size) {
    void *address = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0);
    return address == MAP_FAILED ? NULL : address;
}

static result_t initialize(region_t *region, root_t *root) {
    pthread_mutexattr_t shared;
    pthread_mutexattr_init(&shared);
    pthread_mutexattr_setpshared(&shared, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&shared, PTHREAD_MUTEX_ROBUST);
    for (int rank = 0; rank < MOST_RANKS; ++rank) {
        pthread_mutex_init(&region->members[rank].life, &shared);
    }
    pthread_mutexattr_destroy(&shared);
    if (getrandom(root->token, sizeof root->token, 0) != (ssize_t)sizeof root->token) {
        return system_failed("random numbers");
    }
    memcpy(region->token, root->token, sizeof region->token);
    region->magic = MAGIC;
    return HCCL_SUCCESS;
}

result_t make_root(root_t *root) {
    int file = memfd_create("npudiff-ranks", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, (off_t)header_bytes()) != 0) {
        return system_failed("a file without a name");
    }
    region_t *region = mapped(file, header_bytes());
    if (region == NULL) {
        close(file);
        return system_failed("mmap");
    }
    *root = (root_t){.magic = MAGIC, .process = (int32_t)getpid(), .file = file};
    result_t result = initialize(region, root);
    munmap(region, header_bytes());
    if (result != HCCL_SUCCESS) {
        close(file);
    }
    return result;
}

void forget_root(const root_t *root) {
    if (root->process == (int32_t)getpid()) {
        close(root->file);
    }
}

/* Open the file of a root, which another process has: numbers may be another file's by now, the token may not. */
static int open_root(const root_t *root) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)root->process, (int)root->file);
    int file = open(path, O_RDWR | O_CLOEXEC);
    if (file < 0) {
        remember("the rank that gave the root information is not there (process %d): %s", (int)root->process,
                 strerror(errno));
        return -1;
    }
    struct stat found;
    region_t *region = NULL;
    if (fstat(file, &found) == 0 && S_ISREG(found.st_mode) && (size_t)found.st_size >= header_bytes()) {
        region = mapped(file, header_bytes());
    }
    int same = region != NULL && region->magic == MAGIC && memcmp(region->token, root->token, TOKEN_BYTES) == 0;
    if (region != NULL) {
        munmap(region, header_bytes());
    }
    if (!same) {
        close(file);
        remember("the rank that gave the root information has ended (process %d)", (int)root->process);
        return -1;
    }
    return file;
}

result_t open_region(const root_t *root, uint32_t ranks, region_t **region) {
    if (root->magic != MAGIC) {
        remember("the root information is not of HcclGetRootInfo of the virtual NPU");
        return HCCL_PARAMETER;
    }
    int file = open_root(root);
    if (file < 0) {
        return HCCL_REMOTE;
    }
    size_t size = region_bytes(ranks);
    struct stat found;
    region_t *made = NULL;
    if (fstat(file, &found) == 0 && ((size_t)found.st_size >= size || ftruncate(file, (off_t)size) == 0)) {
        made = mapped(file, size);
    }
    close(file);
    if (made == NULL) {
        return system_failed("mmap");
    }
    uint32_t said = 0;
    if (!atomic_compare_exchange_strong(&made->ranks, &said, ranks) && said != ranks) {
        munmap(made, size);
        remember("one rank says that the communicator has %u ranks, another one %u", (unsigned)said, (unsigned)ranks);
        return HCCL_PARAMETER;
    }
    *region = made;
    return HCCL_SUCCESS;
}

void close_region(region_t *region, uint32_t ranks) { munmap(region, region_bytes(ranks)); }

int is_gone(member_t *member) {
    if (atomic_load(&member->state) != ATTACHED) {
        return 0;
    }
    int found = pthread_mutex_trylock(&member->life);
    if (found == 0 || found == EOWNERDEAD) {
        pthread_mutex_unlock(&member->life);
    }
    return found == EOWNERDEAD || found == ENOTRECOVERABLE;
}
