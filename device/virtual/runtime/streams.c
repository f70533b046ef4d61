/* Streams and events. A task runs when it is launched, unless something before it on its stream has to wait. */

#include "runtime.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { STREAM_COMPLETE = 0, STREAM_NOT_READY = 1, EVENT_NOT_RECORDED = 0, EVENT_COMPLETE = 1, WAIT_COMPLETE = 0 };
enum { VALUE_AT_LEAST = 0, VALUE_EQUAL = 1, VALUE_AND = 2, VALUE_NOR = 3 };

pthread_mutex_t task_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static uint64_t changes = 1; /* values and events: what tasks wait for */
static uint64_t busy_streams;
static stream_t default_streams[MOST_DEVICES];
static stream_t *streams; /* that were made */
static int32_t made_streams;

/* For npudiff: whether there is a stream on which what is launched may not run at once. */
atomic_int npudiff_busy;

/* For npudiff: runs a kernel that did not run when it was launched. */
static status_t (*run_kernel)(uint64_t);

/* For npudiff: kernels that nobody can run any more. */
static uint64_t *dropped;
static size_t dropped_count, dropped_room;

void npudiff_set_run_kernel(status_t (*function)(uint64_t)) { run_kernel = function; }

uint64_t npudiff_dropped_kernel(void) {
    pthread_mutex_lock(&task_lock);
    uint64_t kernel = dropped_count == 0 ? 0 : dropped[--dropped_count];
    pthread_mutex_unlock(&task_lock);
    return kernel;
}

static void drop_kernel(uint64_t kernel) {
    if (dropped_count == dropped_room) {
        size_t room = dropped_room == 0 ? 64 : 2 * dropped_room;
        uint64_t *larger = realloc(dropped, room * sizeof *larger);
        if (larger == NULL) {
            return; /* it is kept, which does no harm */
        }
        dropped = larger;
        dropped_room = room;
    }
    dropped[dropped_count++] = kernel;
}

stream_t *stream_of(void *handle) {
    if (handle != NULL) {
        return handle;
    }
    stream_t *stream = &default_streams[this_device()];
    stream->identity = -1;
    stream->device = this_device();
    return stream;
}

stream_t *next_stream(const stream_t *stream) {
    if (stream == NULL) {
        return default_streams;
    }
    if (stream >= default_streams && stream < default_streams + MOST_DEVICES) {
        ptrdiff_t device = stream - default_streams + 1;
        return device < device_count() ? &default_streams[device] : streams;
    }
    return stream->next;
}

void mark_busy(stream_t *stream) {
    int busy = stream->running || stream->first != NULL || stream->capture != NULL || stream->updating;
    if (busy != stream->busy) {
        stream->busy = busy;
        busy_streams += busy ? 1 : UINT64_MAX;
        atomic_store(&npudiff_busy, busy_streams != 0);
    }
}

/* Wait for a while if a stream waits for another rank, which usually comes soon: what then runs at once costs less than
 * what waits for its turn. Not for longer: it may be this thread that lets the other rank go on. The lock is held. */
static void wait_for_ranks(const stream_t *stream) {
    struct timespec end;
    clock_gettime(CLOCK_REALTIME, &end);
    ++end.tv_sec;
    while (stream->first != NULL && stream->capture == NULL && !stream->updating && calls_wait() &&
           !(stream->running && pthread_equal(stream->runner, pthread_self()))) {
        if (pthread_cond_timedwait(&changed, &task_lock, &end) == ETIMEDOUT) {
            return;
        }
    }
}

/* For npudiff: whether a kernel that is launched on a stream does not run now. */
int32_t npudiff_records(void *handle) {
    stream_t *stream = stream_of(handle);
    pthread_mutex_lock(&task_lock);
    wait_for_ranks(stream);
    int busy = stream->busy;
    pthread_mutex_unlock(&task_lock);
    return busy;
}

/* For npudiff: launch a kernel that does not run now. */
status_t npudiff_launch(void *stream, uint64_t kernel, const char *name) {
    task_t task = {.kind = TASK_KERNEL, .number = kernel};
    strncpy(task.name, name, sizeof task.name - 1);
    return submit(stream, task);
}

static int holds(const task_t *task) {
    uint64_t found = *(const volatile uint64_t *)task->object;
    switch (task->count) {
    case VALUE_AT_LEAST:
        return (int64_t)(found - task->number) >= 0;
    case VALUE_EQUAL:
        return found == task->number;
    case VALUE_AND:
        return (found & task->number) != 0;
    default:
        return ~(found | task->number) != 0;
    }
}

static void record(event_t *event, uint64_t which) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    event->nanoseconds = (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
    if (event->done < which) {
        event->done = which;
    }
}

status_t run_task(task_t *task) {
    event_t *event = task->object;
    status_t status = SUCCESS;
    switch (task->kind) {
    case TASK_KERNEL:
        return run_kernel == NULL ? FEATURE_NOT_SUPPORTED : run_kernel(task->number);
    case TASK_COPY:
        memmove(task->object, task->source, task->count);
        return SUCCESS;
    case TASK_SET:
        memset(task->object, (int)task->number, task->count);
        return SUCCESS;
    case TASK_HOST:
        task->function(task->object);
        return SUCCESS;
    case TASK_REPLACE:
        run_replacement(task);
        return SUCCESS;
    case TASK_RANKS:
        return run_ranks(task);
    case TASK_GRAPH:
        return run_graph(task);
    case TASK_WRITE_VALUE:
        pthread_mutex_lock(&task_lock);
        *(volatile uint64_t *)task->object = task->number;
        ++changes;
        break;
    case TASK_WAIT_VALUE:
        pthread_mutex_lock(&task_lock);
        status = holds(task) ? SUCCESS : PENDING;
        break;
    case TASK_RECORD_EVENT:
        pthread_mutex_lock(&task_lock);
        record(event, task->number);
        ++changes;
        break;
    case TASK_WAIT_EVENT:
        pthread_mutex_lock(&task_lock);
        status = event->done >= task->number ? SUCCESS : PENDING;
        break;
    default:
        return INTERNAL_ERROR;
    }
    pthread_mutex_unlock(&task_lock);
    return status;
}

void release_task(task_t *task) {
    event_t *event = task->object;
    switch (task->kind) {
    case TASK_KERNEL:
        drop_kernel(task->number);
        break;
    case TASK_RECORD_EVENT:
    case TASK_WAIT_EVENT:
        if (--event->users == 0 && event->destroyed) {
            free(event);
        }
        break;
    case TASK_GRAPH:
        release_graph(task);
        break;
    case TASK_REPLACE:
        release_replacement(task);
        break;
    case TASK_RANKS:
        release_ranks(task);
        break;
    default:
        break;
    }
}

/* Run the tasks that wait on a stream, as far as they can. The lock is held, but for the time of each. */
static void drain(stream_t *stream) {
    int32_t device = exchange_device(stream->device);
    stream->running = 1;
    stream->runner = pthread_self();
    while (stream->first != NULL) {
        task_t *task = stream->first;
        uint64_t seen = changes;
        pthread_mutex_unlock(&task_lock);
        status_t status = run_task(task);
        pthread_mutex_lock(&task_lock);
        if (status == PENDING) {
            if (changes != seen) {
                continue;
            }
            break;
        }
        stream->first = task->next;
        stream->last = stream->first == NULL ? NULL : stream->last;
        release_task(task);
        free(task);
        if (status != SUCCESS) {
            stream->failed = status;
        }
    }
    stream->running = 0;
    mark_busy(stream);
    exchange_device(device);
    pthread_cond_broadcast(&changed);
}

/* Go on wherever something may go on. The lock is held. */
static void settle(void) {
    stream_t *stream = next_stream(NULL);
    while (busy_streams != 0 && stream != NULL) {
        if (stream->first == NULL || stream->running || stream->tried == changes) {
            stream = next_stream(stream);
            continue;
        }
        stream->tried = changes;
        drain(stream);
        stream = next_stream(NULL); /* others may have come or gone */
    }
}

void something_changed(void) {
    pthread_mutex_lock(&task_lock);
    ++changes;
    settle();
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&task_lock);
}

static status_t enqueue(stream_t *stream, const task_t *task, int front) {
    task_t *made = malloc(sizeof *made);
    if (made == NULL) {
        return MEMORY_ALLOCATION;
    }
    *made = *task;
    made->next = front ? stream->first : NULL;
    if (stream->first == NULL || !front) {
        if (stream->last != NULL) {
            stream->last->next = made;
        }
        stream->last = made;
    }
    if (stream->first == NULL || front) {
        stream->first = made;
    }
    mark_busy(stream);
    return SUCCESS;
}

/* Run a task at once on a stream where nothing waits. The lock is held, but for that time. */
static status_t run_first(stream_t *stream, task_t *task) {
    uint64_t seen = changes;
    stream->running = 1;
    stream->runner = pthread_self();
    mark_busy(stream);
    pthread_mutex_unlock(&task_lock);
    int32_t device = exchange_device(stream->device);
    status_t status = run_task(task);
    exchange_device(device);
    pthread_mutex_lock(&task_lock);
    stream->running = 0;
    if (status == PENDING) {
        stream->tried = seen;
        return enqueue(stream, task, 1);
    }
    stream->tried = 0; /* what was launched while it ran has not been tried: its turn comes without a change */
    release_task(task);
    mark_busy(stream);
    pthread_cond_broadcast(&changed);
    return status;
}

/* Let somebody else have a task, who gives back later what it holds. The lock is held. */
static status_t keep(stream_t *stream, task_t *task) {
    status_t status = device_status(stream->device);
    if (status == SUCCESS && stream->updating) {
        status = replace_task(stream, task);
    }
    if (status == SUCCESS && stream->capture != NULL) {
        status = capture_task(stream, task);
    } else if (status == SUCCESS && (stream->running || stream->first != NULL)) {
        status = enqueue(stream, task, 0);
    } else if (status == SUCCESS) {
        return PENDING;
    }
    if (status != SUCCESS) {
        release_task(task);
    }
    return status;
}

status_t submit(void *handle, task_t task) {
    stream_t *stream = stream_of(handle);
    pthread_mutex_lock(&task_lock);
    status_t status = keep(stream, &task);
    if (status == PENDING) {
        status = run_first(stream, &task);
    }
    settle();
    pthread_mutex_unlock(&task_lock);
    return status;
}

status_t aclrtCreateStreamWithConfig(void **stream, uint32_t priority, uint32_t flags) {
    (void)priority;
    (void)flags;
    stream_t *made = calloc(1, sizeof *made);
    *stream = made;
    if (made == NULL) {
        return MEMORY_ALLOCATION;
    }
    pthread_mutex_lock(&task_lock);
    made->identity = made_streams++;
    made->device = this_device();
    made->next = streams;
    streams = made;
    pthread_mutex_unlock(&task_lock);
    return SUCCESS;
}

status_t aclrtCreateStream(void **stream) { return aclrtCreateStreamWithConfig(stream, 0, 0); }

status_t aclrtSetStreamResLimit(void *stream, uint32_t kind, uint32_t value) {
    if (!is_limit(kind, value)) {
        return PARAM_INVALID;
    }
    stream_of(stream)->limits[kind] = value;
    return SUCCESS;
}

status_t aclrtGetStreamResLimit(void *stream, uint32_t kind, uint32_t *value) {
    if (kind >= LIMITS) {
        return PARAM_INVALID;
    }
    uint32_t own = stream_of(stream)->limits[kind];
    *value = own == 0 ? device_limit(kind) : own;
    return SUCCESS;
}

status_t aclrtResetStreamResLimit(void *stream) {
    stream_t *reset = stream_of(stream);
    for (uint32_t kind = 0; kind < LIMITS; ++kind) {
        reset->limits[kind] = 0;
    }
    return SUCCESS;
}

/* Wait until nothing is left to run on a stream; forever, if the time is not above 0. The lock is held. */
static status_t wait_for(const stream_t *stream, int32_t milliseconds) {
    struct timespec end;
    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += milliseconds / 1000;
    end.tv_nsec += (milliseconds % 1000) * 1000000L;
    if (end.tv_nsec >= 1000000000L) {
        ++end.tv_sec;
        end.tv_nsec -= 1000000000L;
    }
    while (stream->first != NULL || stream->running) {
        if (stream->running && pthread_equal(stream->runner, pthread_self())) {
            break; /* a host function that waits for what comes after it */
        }
        if (milliseconds <= 0) {
            pthread_cond_wait(&changed, &task_lock);
        } else if (pthread_cond_timedwait(&changed, &task_lock, &end) == ETIMEDOUT) {
            return STREAM_SYNC_TIMEOUT;
        }
    }
    return SUCCESS;
}

static status_t synchronize(stream_t *stream, int32_t milliseconds) {
    if (stream->capture != NULL) {
        remember("a stream that is captured (stream %d) cannot be waited for", (int)stream->identity);
        return STREAM_CAPTURED;
    }
    status_t status = wait_for(stream, milliseconds);
    if (status == SUCCESS) {
        status = stream->failed;
        stream->failed = SUCCESS;
    }
    return status;
}

status_t aclrtSynchronizeStreamWithTimeout(void *handle, int32_t milliseconds) {
    pthread_mutex_lock(&task_lock);
    status_t status = synchronize(stream_of(handle), milliseconds);
    int32_t device = stream_of(handle)->device;
    pthread_mutex_unlock(&task_lock);
    status_t lost = device_status(device);
    return lost == SUCCESS ? status : lost;
}

status_t aclrtSynchronizeStream(void *stream) { return aclrtSynchronizeStreamWithTimeout(stream, 0); }

status_t aclrtSynchronizeDeviceWithTimeout(int32_t milliseconds) {
    ON_DEVICE();
    status_t status = SUCCESS;
    pthread_mutex_lock(&task_lock);
    for (stream_t *stream = next_stream(NULL); stream != NULL && status == SUCCESS; stream = next_stream(stream)) {
        if (stream->device == this_device() && (stream->busy || stream->failed != SUCCESS)) {
            status = synchronize(stream, milliseconds);
        }
    }
    pthread_mutex_unlock(&task_lock);
    status_t lost = device_status(this_device());
    return lost == SUCCESS ? status : lost;
}

status_t aclrtSynchronizeDevice(void) { return aclrtSynchronizeDeviceWithTimeout(0); }

status_t aclrtDestroyStream(void *handle) {
    stream_t *stream = handle;
    if (stream == NULL) {
        return PARAM_INVALID;
    }
    pthread_mutex_lock(&task_lock);
    status_t status = synchronize(stream, 0);
    if (status != STREAM_CAPTURED) {
        stream_t **place = &streams;
        while (*place != NULL && *place != stream) {
            place = &(*place)->next;
        }
        if (*place == stream) {
            *place = stream->next;
        }
        stream->updating = 0;
        mark_busy(stream);
        free(stream);
        status = SUCCESS;
    }
    pthread_mutex_unlock(&task_lock);
    return status;
}

status_t aclrtDestroyStreamForce(void *stream) { return aclrtDestroyStream(stream); }

status_t aclrtStreamGetId(void *stream, int32_t *identity) {
    *identity = stream_of(stream)->identity;
    return SUCCESS;
}

status_t aclrtStreamQuery(void *handle, int32_t *status) {
    ON_DEVICE();
    stream_t *stream = stream_of(handle);
    pthread_mutex_lock(&task_lock);
    int captured = stream->capture != NULL;
    *status = stream->busy ? STREAM_NOT_READY : STREAM_COMPLETE;
    pthread_mutex_unlock(&task_lock);
    if (captured) {
        remember("a stream that is captured (stream %d) cannot be asked whether it is done", (int)stream->identity);
        return STREAM_CAPTURED;
    }
    return SUCCESS;
}

status_t aclrtSetStreamFailureMode(void *stream, uint64_t mode) {
    (void)stream;
    (void)mode;
    return SUCCESS;
}

/* Attributes say what is reported of tasks, and nobody listens. */
status_t aclrtSetStreamAttribute(void *stream, int32_t attribute, void *value) {
    (void)stream;
    (void)attribute;
    (void)value;
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
    return submit(stream, (task_t){.kind = TASK_HOST, .function = function, .object = argument});
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

/* Host functions run where their stream does: a thread that asks for them finds none, and waits as long as it may. */
status_t aclrtProcessReport(int32_t milliseconds) {
    struct timespec time = {.tv_sec = milliseconds / 1000, .tv_nsec = (milliseconds % 1000) * 1000000L};
    nanosleep(&time, NULL);
    return SUCCESS;
}

status_t aclrtValueWrite(void *address, uint64_t value, uint32_t flag, void *stream) {
    (void)flag;
    return submit(stream, (task_t){.kind = TASK_WRITE_VALUE, .object = address, .number = value});
}

status_t aclrtValueWait(void *address, uint64_t value, uint32_t flag, void *stream) {
    return submit(stream, (task_t){.kind = TASK_WAIT_VALUE, .object = address, .number = value, .count = flag});
}

status_t aclrtCreateEventExWithFlag(void **event, uint32_t flags) {
    (void)flags;
    *event = calloc(1, sizeof(event_t));
    return *event == NULL ? MEMORY_ALLOCATION : SUCCESS;
}

status_t aclrtCreateEventWithFlag(void **event, uint32_t flags) { return aclrtCreateEventExWithFlag(event, flags); }

status_t aclrtCreateEvent(void **event) { return aclrtCreateEventExWithFlag(event, 0); }

status_t aclrtDestroyEvent(void *handle) {
    event_t *event = handle;
    if (event == NULL) {
        return PARAM_INVALID;
    }
    pthread_mutex_lock(&task_lock);
    event->destroyed = 1;
    if (event->users == 0) {
        free(event);
    }
    pthread_mutex_unlock(&task_lock);
    return SUCCESS;
}

status_t aclrtRecordEvent(void *handle, void *stream) {
    ON_DEVICE();
    event_t *event = handle;
    int done = 0;
    pthread_mutex_lock(&task_lock);
    status_t status = capture_record(stream_of(stream), event, &done);
    task_t task = {.kind = TASK_RECORD_EVENT, .object = event};
    if (!done) {
        task.number = ++event->asked;
        ++event->users;
    }
    pthread_mutex_unlock(&task_lock);
    return done ? status : submit(stream, task);
}

status_t aclrtStreamWaitEvent(void *stream, void *handle) {
    ON_DEVICE();
    event_t *event = handle;
    int done = 0;
    pthread_mutex_lock(&task_lock);
    status_t status = capture_wait(stream_of(stream), event, &done);
    task_t task = {.kind = TASK_WAIT_EVENT, .object = event, .number = event->asked};
    if (!done) {
        ++event->users;
    }
    pthread_mutex_unlock(&task_lock);
    return done ? status : submit(stream, task);
}

status_t aclrtResetEvent(void *handle, void *stream) {
    (void)stream;
    event_t *event = handle;
    pthread_mutex_lock(&task_lock);
    event->asked = event->done = 0;
    pthread_mutex_unlock(&task_lock);
    return SUCCESS;
}

/* Look at an event from the host: whether it is over. The lock is held. */
static status_t look_at(const event_t *event, int *over) {
    *over = event->done >= event->asked;
    if (is_captured(event)) {
        remember("an event that is captured cannot be waited for, or asked whether it is done");
        return EVENT_CAPTURED;
    }
    return SUCCESS;
}

status_t aclrtQueryEventStatus(void *handle, int32_t *status) {
    ON_DEVICE();
    event_t *event = handle;
    int over;
    pthread_mutex_lock(&task_lock);
    status_t found = look_at(event, &over);
    *status = event->asked != 0 && over ? EVENT_COMPLETE : EVENT_NOT_RECORDED;
    pthread_mutex_unlock(&task_lock);
    return found;
}

status_t aclrtQueryEventWaitStatus(void *event, int32_t *status) {
    (void)event;
    ON_DEVICE();
    *status = WAIT_COMPLETE;
    return SUCCESS;
}

status_t aclrtSynchronizeEvent(void *handle) {
    const event_t *event = handle;
    int over;
    pthread_mutex_lock(&task_lock);
    status_t status = look_at(event, &over);
    while (status == SUCCESS && !over) {
        pthread_cond_wait(&changed, &task_lock);
        status = look_at(event, &over);
    }
    pthread_mutex_unlock(&task_lock);
    status_t lost = device_status(this_device());
    return lost == SUCCESS ? status : lost;
}

status_t aclrtEventElapsedTime(float *milliseconds, void *start, void *end) {
    const event_t *first = start;
    const event_t *last = end;
    if (first->done == 0 || last->done == 0) {
        return TIMESTAMP_INVALID;
    }
    *milliseconds = (float)((double)(int64_t)(last->nanoseconds - first->nanoseconds) / 1e6);
    return SUCCESS;
}

status_t aclrtEventGetTimestamp(void *event, uint64_t *microseconds) {
    *microseconds = ((event_t *)event)->nanoseconds / 1000;
    return ((event_t *)event)->done == 0 ? TIMESTAMP_INVALID : SUCCESS;
}
