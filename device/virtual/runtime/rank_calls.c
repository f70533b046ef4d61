/* Calls that other ranks take part in: they wait on their stream, and fail when they wait for nobody. */

#include "ranks.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LOOK_EVERY 0.02 /* seconds between looks at who is there */

static atomic_int waiting_calls;

int calls_wait(void) { return atomic_load(&waiting_calls) != 0; }

static const char *const dtype_names[DTYPES] = {
    "int8", "int16", "int32", "float16", "float32", "int64", "uint64", "uint8", "uint16", "uint32", "float64", "bfloat16",
    "int128", NULL, "hif8", "float8_e4m3", "float8_e5m2", "float8_e8m0",
};
static const unsigned char dtype_bytes[DTYPES] = {1, 2, 4, 2, 4, 8, 8, 1, 2, 4, 8, 2, 16, 0, 1, 1, 1, 1};
static const char *const operation_names[] = {
    "HcclAllReduce", "HcclAllGather", "HcclAllGatherV", "HcclReduceScatter", "HcclReduceScatterV", "HcclBroadcast",
    "HcclReduce", "HcclScatter", "HcclAlltoAll", "HcclAlltoAllV", "HcclBarrier", "HcclBatchSendRecv",
};
static const char *const reduction_names[REDUCTIONS] = {"sum", "prod", "max", "min"};

size_t bytes_of(int32_t dtype) { return dtype < 0 || dtype >= DTYPES ? 0 : dtype_bytes[dtype]; }

void append(char *text, const char *format, ...) {
    size_t used = strlen(text);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text + used, TEXT_BYTES - used, format, arguments);
    va_end(arguments);
}

void describe(const posted_t *posted, char *text, size_t room) {
    char parts[3][64] = {"", "", ""};
    int32_t operation = posted->operation;
    int reduces = operation == ALL_REDUCE || operation == REDUCE || operation == REDUCE_SCATTER ||
                  operation == REDUCE_SCATTER_V;
    if (reduces && posted->reduction >= 0 && posted->reduction < REDUCTIONS) {
        snprintf(parts[0], sizeof parts[0], "%s, ", reduction_names[posted->reduction]);
    }
    if (posted->root >= 0) {
        snprintf(parts[1], sizeof parts[1], "root %d, ", (int)posted->root);
    }
    const char *dtype = bytes_of(posted->dtype) == 0 ? "?" : dtype_names[posted->dtype];
    if (operation == ALL_GATHER_V || operation == REDUCE_SCATTER_V || operation == ALL_TO_ALL_V) {
        snprintf(parts[2], sizeof parts[2], "counts of %s", dtype);
    } else if (operation != BARRIER) {
        snprintf(parts[2], sizeof parts[2], "%llu x %s", (unsigned long long)posted->count, dtype);
    }
    int known = operation >= ALL_REDUCE && operation <= MESSAGES;
    snprintf(text, room, "%s(%s%s%s)", known ? operation_names[operation] : "?", parts[0], parts[1], parts[2]);
}

void describe_item(const item_t *item, char *text, size_t room) {
    const char *dtype = bytes_of(item->dtype) == 0 ? "?" : dtype_names[item->dtype];
    snprintf(text, room, "%s(%llu x %s %s rank %u)", item->receives ? "HcclRecv" : "HcclSend",
             (unsigned long long)item->count, dtype, item->receives ? "from" : "to", (unsigned)item->peer);
}

/* Whether a call waits for a rank. */
static int needs(const call_t *call, uint32_t rank) {
    const communicator_t *communicator = call->communicator;
    if (call->items == NULL) {
        return call->begun && atomic_load(&communicator->region->members[rank].arrived) < communicator->rounds;
    }
    for (uint32_t place = 0; place < call->item_count; ++place) {
        if (!call->items[place].done && call->items[place].peer == rank) {
            return 1;
        }
    }
    return 0;
}

static void name_rank(const communicator_t *communicator, uint32_t rank, char *text) {
    int32_t world = communicator->region->members[rank].world;
    append(text, "rank %u", (unsigned)rank);
    if (world >= 0 && (uint32_t)world != rank) {
        append(text, " (RANK=%d)", (int)world);
    }
}

/* Say what a rank does that has not come. */
static void say_where(const call_t *call, uint32_t rank, char *why) {
    member_t *member = &call->communicator->region->members[rank];
    uint64_t calls = atomic_load(&member->calls);
    char text[TEXT_BYTES / 4] = "";
    if (call->items != NULL) {
        snprintf(text, sizeof text, "%.200s", member->doing);
        append(why, text[0] == '\0' ? " has begun no message" : " has begun %s last", text);
    } else if (calls == 0) {
        append(why, " has called nothing yet");
    } else {
        describe(&member->posted[calls % 2], text, sizeof text);
        append(why, " is at call %llu, %s", (unsigned long long)calls, text);
    }
}

/* Say what is wrong with one of the ranks that are waited for: a result, HCCL_SUCCESS if it may come yet. */
static result_t wrong_with(const call_t *call, uint32_t rank, int late, char *why) {
    member_t *member = &call->communicator->region->members[rank];
    char text[TEXT_BYTES] = "; ";
    name_rank(call->communicator, rank, text);
    result_t result = HCCL_REMOTE;
    if (atomic_load(&member->failed)) {
        append(text, " gave up: %.300s", member->failure);
    } else if (is_gone(member) && needs(call, rank)) { /* it may have come just before its end */
        append(text, " has ended (process %d)", (int)member->process);
    } else if (atomic_load(&member->state) == LEFT && needs(call, rank)) {
        append(text, " has left the communicator");
    } else if (late) {
        say_where(call, rank, text);
        result = HCCL_TIMEOUT;
    } else {
        return HCCL_SUCCESS;
    }
    append(why, "%s", text);
    return result;
}

/* Look at the ranks that a call waits for, now and then: a result, HCCL_SUCCESS while all is well. */
static result_t look_around(call_t *call, char *why) {
    double now = seconds_now();
    if (call->since == 0) {
        call->since = now;
    }
    if (now - call->looked < LOOK_EVERY) {
        return HCCL_SUCCESS;
    }
    call->looked = now;
    int late = now - call->since > call->communicator->patience;
    result_t worst = HCCL_SUCCESS;
    char wrong[TEXT_BYTES] = "";
    for (uint32_t rank = 0; rank < call->communicator->ranks; ++rank) {
        result_t result = needs(call, rank) ? wrong_with(call, rank, late, wrong) : HCCL_SUCCESS;
        worst = result == HCCL_REMOTE || worst == HCCL_SUCCESS ? result : worst;
    }
    if (worst != HCCL_SUCCESS) {
        append(why, "waited %.1f s%s", now - call->since, wrong);
    }
    return worst;
}

/* Give up: the device is lost, as it is on a card after the time that HCCL waits, and other ranks are told. */
static status_t give_up(call_t *call, result_t result, const char *why) {
    communicator_t *communicator = call->communicator;
    member_t *self = &communicator->region->members[communicator->rank];
    char text[TEXT_BYTES] = "HCCL, communicator ", what[TEXT_BYTES / 4];
    append(text, "%s of %u ranks, ", communicator->name, (unsigned)communicator->ranks);
    name_rank(communicator, communicator->rank, text);
    if (call->items == NULL) {
        describe(&call->posted, what, sizeof what);
        append(text, " in its call %llu, %s: %s", (unsigned long long)communicator->calls, what, why);
    } else {
        describe_item(&call->items[0], what, sizeof what);
        append(text, " in %s%s: %s", what, call->item_count > 1 ? " and others" : "", why);
    }
    if (communicator->active == call) {
        communicator->active = NULL;
    }
    communicator->error = result;
    snprintf(self->failure, sizeof self->failure, "%s", text);
    atomic_store(&self->failed, 1);
    ring(communicator->region);
    lose_device(communicator->device, TASK_TIMEOUT, text);
    return TASK_TIMEOUT;
}

/* Note whether a call waits. The communicator's watcher lets it be tried again. */
static void set_waits(call_t *call, int waits) {
    if (call->waits != waits) {
        call->waits = waits;
        call->communicator->waiting += waits ? 1 : UINT32_MAX;
        atomic_fetch_add(&waiting_calls, waits ? 1 : -1);
        pthread_cond_signal(&call->communicator->woken);
    }
}

/* Let a call begin anew, at the next replay of its graph. */
static void reset(call_t *call) {
    call->begun = 0;
    call->since = call->looked = 0;
    for (uint32_t place = 0; place < call->item_count; ++place) {
        call->items[place].number = call->items[place].moved = 0;
        call->items[place].done = 0;
    }
}

static status_t advance(call_t *call) {
    communicator_t *communicator = call->communicator;
    char why[TEXT_BYTES] = "";
    status_t lost = device_status(communicator->device);
    if (lost != SUCCESS) {
        return lost;
    }
    if (communicator->destroyed) {
        remember("communicator %s has been destroyed", communicator->name);
        return PARAM_INVALID;
    }
    status_t status = call->items == NULL ? advance_collective(call, why) : advance_messages(call, why);
    result_t result = HCCL_TIMEOUT; /* what a card says of calls that do not fit */
    if (status == PENDING) {
        result = look_around(call, why);
        status = result == HCCL_SUCCESS ? PENDING : FAILED_CALL;
    }
    return status == FAILED_CALL ? give_up(call, result, why) : status;
}

status_t run_ranks(const task_t *task) {
    call_t *call = task->object;
    communicator_t *communicator = call->communicator;
    pthread_mutex_lock(&communicator->lock);
    status_t status = advance(call);
    set_waits(call, status == PENDING);
    if (status != PENDING) {
        reset(call);
    }
    pthread_mutex_unlock(&communicator->lock);
    return status;
}

const char *name_of_ranks(const task_t *task) { return operation_names[((const call_t *)task->object)->posted.operation]; }

void release_call(call_t *call) {
    release_communicator(call->communicator);
    free(call->items);
    free(call);
}

void release_ranks(const task_t *task) { release_call(task->object); }

result_t launch_call(call_t *call, void *stream) {
    pthread_mutex_lock(&call->communicator->lock);
    ++call->communicator->references;
    pthread_mutex_unlock(&call->communicator->lock);
    status_t status = submit(stream, (task_t){.kind = TASK_RANKS, .object = call});
    return status == SUCCESS ? HCCL_SUCCESS : HCCL_RUNTIME;
}
