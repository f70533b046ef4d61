/* What the parts of the stand-in runtime share. Portable C11, POSIX threads; nothing of it depends on a machine. */

#ifndef NPUDIFF_RUNTIME_H
#define NPUDIFF_RUNTIME_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

typedef int32_t status_t;

/* Status codes of CANN (acl/error_codes/rt_error_codes.h). */
enum {
    SUCCESS = 0,
    PARAM_INVALID = 107000,
    INVALID_DEVICE = 107001,
    CONTEXT_NULL = 107002,
    TIMESTAMP_INVALID = 107006,
    CAPTURE_DEPENDENCY = 107024,
    STREAM_UNJOINED = 107025,
    MODEL_CAPTURED = 107026,
    STREAM_CAPTURED = 107027,
    EVENT_CAPTURED = 107028,
    STREAM_NOT_CAPTURED = 107029,
    CAPTURE_MODE_NOT_SUPPORTED = 107030,
    DEFAULT_STREAM_CAPTURED = 107031,
    CAPTURE_CONFLICT = 107032,
    TASK_GROUP_STATUS = 107033,
    CAPTURE_UNMATCHED = 107036,
    CAPTURE_WRONG_THREAD = 107038,
    FEATURE_NOT_SUPPORTED = 207000,
    MEMORY_ALLOCATION = 207001,
    INTERNAL_ERROR = 507000,
    TASK_TIMEOUT = 507048,
    TASK_TYPE_NOT_SUPPORTED = 507009,
    STREAM_SYNC_TIMEOUT = 507046
};

/* What a task answers that cannot go on yet. Not a status of CANN. */
enum { PENDING = -1 };

/* Devices of this process, by their numbers in it. */
enum { MOST_DEVICES = 64 };
int32_t device_count(void);

/* The device that the calling thread has chosen, or the first one; and let it have another one, for what it returns. */
int32_t this_device(void);
int32_t exchange_device(int32_t device);

/* Code with which a device fails since something went wrong on it, or SUCCESS. */
status_t device_status(int32_t device);

/* Lose a device: from now on everything on it fails with this code. */
void lose_device(int32_t device, status_t code, const char *why);

/* Remember why a call fails, for aclGetRecentErrMsg. */
void remember(const char *format, ...);

/* Run a task on the device: the status with which every call fails once the device is lost. */
#define ON_DEVICE()                                   \
    do {                                              \
        status_t lost = device_status(this_device()); \
        if (lost != SUCCESS) {                        \
            return lost;                              \
        }                                             \
    } while (0)

/* Tasks: what is launched on a stream, or captured by a graph. */
enum task_kind {
    TASK_KERNEL,
    TASK_COPY,
    TASK_SET,
    TASK_HOST,
    TASK_WRITE_VALUE,
    TASK_WAIT_VALUE,
    TASK_RECORD_EVENT,
    TASK_WAIT_EVENT,
    TASK_REPLACE,
    TASK_GRAPH,
    TASK_CONDITION,
    TASK_RANKS
};

enum { NAME_BYTES = 64 };

typedef struct task {
    enum task_kind kind;
    void *object;             /* address, event, group, execution, condition, call, or argument of a host function */
    const void *source;       /* where a copy is from */
    void (*function)(void *); /* of the host */
    uint64_t number;          /* kernel, value, or which record of an event */
    uint64_t count;           /* bytes, how a value is compared, or which task of a group */
    int32_t stream;           /* on which it was captured */
    char name[NAME_BYTES];    /* of a kernel */
    struct task *next;
} task_t;

typedef struct model model_t;
typedef struct group group_t;

/* Cores whose number is limited, by their numbers in CANN's aclrtDevResLimitType: cube and vector. */
enum { LIMITS = 2 };

uint32_t device_limit(uint32_t kind);
int is_limit(uint32_t kind, uint32_t value); /* whether the device has so many */

typedef struct stream {
    int32_t identity;
    int32_t device;
    struct stream *next;
    task_t *first, *last; /* tasks that wait for their turn */
    int running;          /* whether a thread runs its tasks */
    pthread_t runner;
    int busy;            /* whether what is launched may not run at once */
    uint64_t tried;      /* after which change its first task was tried */
    status_t failed;     /* of a task that ran later than its launch */
    model_t *capture;    /* which captures it */
    uint64_t launched;   /* tasks that were captured on it */
    int unjoined;        /* whether the capture's first stream does not wait for it yet */
    group_t *group;      /* which is open, or updated */
    int updating;
    uint32_t limits[LIMITS]; /* cores that it may use; 0: as many as the device */
} stream_t;

typedef struct {
    uint64_t nanoseconds;
    uint64_t asked, done; /* records that were launched, and that are over */
    uint64_t users;       /* tasks that wait for their turn and need it */
    int destroyed;
    uint32_t captured_by; /* identity of a model */
    stream_t *captured_on;
    uint64_t captured_after;
} event_t;

/* The lock of streams, events and graphs. It is never held while a task runs. */
extern pthread_mutex_t task_lock;

stream_t *stream_of(void *handle);

/* Go through all streams, from NULL to NULL. The lock is held. */
stream_t *next_stream(const stream_t *stream);

/* Launch a task: it runs now, waits for its turn, or is captured. */
status_t submit(void *stream, task_t task);

/* Run a task: SUCCESS, PENDING, or an error. The lock is not held. */
status_t run_task(task_t *task);
status_t run_graph(task_t *task);
void run_replacement(const task_t *task);

/* Give back what a task holds. The lock is held. */
void release_task(task_t *task);
void release_graph(const task_t *task);
void release_replacement(const task_t *task);

/* Say whether a stream is one on which launched tasks may not run at once. The lock is held. */
void mark_busy(stream_t *stream);

/* Capture a task that is launched on a captured stream. The lock is held. */
status_t capture_task(stream_t *stream, const task_t *task);

/* Turn a task that is launched on an updated stream into one that replaces a captured one. The lock is held. */
status_t replace_task(stream_t *stream, task_t *task);

/* Let events join streams to a capture. The lock is held. Whether there is nothing more to do goes to done. */
status_t capture_record(stream_t *stream, event_t *event, int *done);
status_t capture_wait(stream_t *stream, event_t *event, int *done);

/* Whether an event belongs to a capture that is not over. The lock is held. */
int is_captured(const event_t *event);

/* A call that other ranks take part in: run it as far as it goes, and give back what its task holds (the lock is held). */
status_t run_ranks(const task_t *task);
void release_ranks(const task_t *task);
const char *name_of_ranks(const task_t *task);
int calls_wait(void); /* whether such a call of this process waits for another rank */

/* Something that tasks wait for may have changed elsewhere. The lock is not held. */
void something_changed(void);

/* Whether a function may be called that no capture sees: a status. Some functions ask with the name of theirs. */
status_t unseen(const char *function);

#endif
