/* Streams and events: a task is over when the call that made it returns, so that both are always done. */

#include "runtime.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

typedef struct {
    int32_t identity;
} stream_t;

typedef struct {
    uint64_t nanoseconds;
    int recorded;
} event_t;

enum { STREAM_COMPLETE = 0, EVENT_NOT_RECORDED = 0, EVENT_COMPLETE = 1, WAIT_COMPLETE = 0 };

static atomic_int streams;

status_t aclrtCreateStreamWithConfig(void **stream, uint32_t priority, uint32_t flags) {
    (void)priority;
    (void)flags;
    stream_t *made = malloc(sizeof *made);
    *stream = made;
    if (made == NULL) {
        return MEMORY_ALLOCATION;
    }
    made->identity = atomic_fetch_add(&streams, 1);
    return SUCCESS;
}

status_t aclrtCreateStream(void **stream) { return aclrtCreateStreamWithConfig(stream, 0, 0); }

status_t aclrtDestroyStream(void *stream) {
    free(stream);
    return SUCCESS;
}

status_t aclrtDestroyStreamForce(void *stream) { return aclrtDestroyStream(stream); }

status_t aclrtStreamGetId(void *stream, int32_t *identity) {
    *identity = stream == NULL ? -1 : ((stream_t *)stream)->identity;
    return SUCCESS;
}

status_t aclrtStreamQuery(void *stream, int32_t *status) {
    (void)stream;
    ON_DEVICE();
    *status = STREAM_COMPLETE;
    return SUCCESS;
}

status_t aclrtSynchronizeStream(void *stream) {
    (void)stream;
    return device_status();
}

status_t aclrtSynchronizeStreamWithTimeout(void *stream, int32_t milliseconds) {
    (void)milliseconds;
    return aclrtSynchronizeStream(stream);
}

status_t aclrtStreamWaitEvent(void *stream, void *event) {
    (void)stream;
    (void)event;
    return device_status();
}

status_t aclrtSetStreamFailureMode(void *stream, uint64_t mode) {
    (void)stream;
    (void)mode;
    return SUCCESS;
}

status_t aclrtGetStreamOverflowSwitch(void *stream, uint32_t *flag) {
    (void)stream;
    *flag = 0;
    return SUCCESS;
}

status_t aclrtSetStreamOverflowSwitch(void *stream, uint32_t flag) {
    (void)stream;
    (void)flag;
    return SUCCESS;
}

status_t aclrtLaunchHostFunc(void *stream, void (*function)(void *), void *argument) {
    (void)stream;
    ON_DEVICE();
    function(argument);
    return SUCCESS;
}

status_t aclrtLaunchCallback(void (*function)(void *), void *argument, int32_t blocking, void *stream) {
    (void)blocking;
    return aclrtLaunchHostFunc(stream, function, argument);
}

status_t aclrtSubscribeReport(uint64_t thread, void *stream) {
    (void)thread;
    (void)stream;
    return SUCCESS;
}

status_t aclrtUnSubscribeReport(uint64_t thread, void *stream) { return aclrtSubscribeReport(thread, stream); }

status_t aclrtCreateEventExWithFlag(void **event, uint32_t flags) {
    (void)flags;
    *event = calloc(1, sizeof(event_t));
    return *event == NULL ? MEMORY_ALLOCATION : SUCCESS;
}

status_t aclrtCreateEventWithFlag(void **event, uint32_t flags) { return aclrtCreateEventExWithFlag(event, flags); }

status_t aclrtCreateEvent(void **event) { return aclrtCreateEventExWithFlag(event, 0); }

status_t aclrtDestroyEvent(void *event) {
    free(event);
    return SUCCESS;
}

status_t aclrtRecordEvent(void *event, void *stream) {
    (void)stream;
    ON_DEVICE();
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    event_t *recorded = event;
    recorded->nanoseconds = (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
    recorded->recorded = 1;
    return SUCCESS;
}

status_t aclrtResetEvent(void *event, void *stream) {
    (void)stream;
    ((event_t *)event)->recorded = 0;
    return SUCCESS;
}

status_t aclrtQueryEventStatus(void *event, int32_t *status) {
    ON_DEVICE();
    *status = ((event_t *)event)->recorded ? EVENT_COMPLETE : EVENT_NOT_RECORDED;
    return SUCCESS;
}

status_t aclrtQueryEventWaitStatus(void *event, int32_t *status) {
    (void)event;
    ON_DEVICE();
    *status = WAIT_COMPLETE;
    return SUCCESS;
}

status_t aclrtSynchronizeEvent(void *event) {
    (void)event;
    return device_status();
}

status_t aclrtEventElapsedTime(float *milliseconds, void *start, void *end) {
    const event_t *first = start;
    const event_t *last = end;
    if (!first->recorded || !last->recorded) {
        return TIMESTAMP_INVALID;
    }
    *milliseconds = (float)((double)(int64_t)(last->nanoseconds - first->nanoseconds) / 1e6);
    return SUCCESS;
}

status_t aclrtEventGetTimestamp(void *event, uint64_t *microseconds) {
    *microseconds = ((event_t *)event)->nanoseconds / 1000;
    return ((event_t *)event)->recorded ? SUCCESS : TIMESTAMP_INVALID;
}
