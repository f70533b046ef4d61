/* The functions of HCCL that move data: what they refuse, and which call they make of it. */

#include "ranks.h"

#include <stdlib.h>
#include <string.h>

/* HcclSendRecvItem. */
typedef struct {
    int32_t receives;
    void *buffer;
    uint64_t count;
    int32_t dtype;
    uint32_t peer;
} send_receive_t;

/* Messages between HcclGroupStart and HcclGroupEnd of a thread, in their order. */
typedef struct pending {
    call_t *call;
    void *stream;
    struct pending *next;
} pending_t;

static _Thread_local uint32_t group_depth;
static _Thread_local pending_t *group_first;

static result_t check(void *handle, int32_t dtype, int with_buffers) {
    if (handle == NULL || !with_buffers) {
        remember("HCCL: a null pointer in the place of a %s", handle == NULL ? "communicator" : "buffer");
        return HCCL_NULL;
    }
    if (known_communicator(handle) == NULL) {
        remember("HCCL: not a communicator, or one that has been destroyed");
        return HCCL_PARAMETER;
    }
    if (bytes_of(dtype) == 0) {
        remember("HCCL has no dtype %d", (int)dtype);
        return HCCL_NOT_SUPPORTED;
    }
    return HCCL_SUCCESS;
}

static result_t check_rank(void *handle, uint32_t rank) {
    uint32_t ranks = ((const communicator_t *)handle)->ranks;
    if (rank >= ranks) {
        remember("HCCL: no rank %u in a communicator of %u", (unsigned)rank, (unsigned)ranks);
        return HCCL_PARAMETER;
    }
    return HCCL_SUCCESS;
}

static call_t *made_call(void *handle, const void *send, void *receive, const posted_t *posted) {
    call_t *call = calloc(1, sizeof *call);
    if (call != NULL) {
        call->communicator = handle;
        call->send = send;
        call->receive = receive;
        call->posted = *posted;
    }
    return call;
}

static result_t launched(call_t *call, void *stream) {
    if (call == NULL) {
        return HCCL_MEMORY;
    }
    plan(call);
    return launch_call(call, stream);
}

/* Launch a collective without counts for each rank. One of no elements is nothing: HCCL returns at once. */
static result_t simple(operation_t operation, const void *send, void *receive, uint64_t count, int32_t dtype,
                       int32_t reduction, int32_t root, void *handle, void *stream) {
    if (count == 0) {
        return HCCL_SUCCESS;
    }
    posted_t posted = {.count = count, .operation = operation, .dtype = dtype, .reduction = reduction, .root = root};
    return launched(made_call(handle, send, receive, &posted), stream);
}

/* Copy counts and places of the form that has one for each rank. */
static void set_counts(uint64_t *counts, uint64_t *places, const uint64_t *given, const uint64_t *given_places,
                       const communicator_t *communicator, size_t size) {
    for (uint32_t rank = 0; rank < communicator->ranks; ++rank) {
        counts[rank] = given[rank];
        places[rank] = given_places[rank] * size;
    }
}

#define RETURN_IF_WRONG(CHECK)             \
    do {                                   \
        result_t wrong = (CHECK);          \
        if (wrong != HCCL_SUCCESS) {       \
            return wrong;                  \
        }                                  \
    } while (0)

result_t HcclAllReduce(void *send, void *receive, uint64_t count, int32_t dtype, int32_t reduction, void *communicator,
                       void *stream) {
    RETURN_IF_WRONG(check(communicator, dtype, count == 0 || (send != NULL && receive != NULL)));
    RETURN_IF_WRONG(check_reduction(dtype, reduction));
    return simple(ALL_REDUCE, send, receive, count, dtype, reduction, -1, communicator, stream);
}

result_t HcclReduce(void *send, void *receive, uint64_t count, int32_t dtype, int32_t reduction, uint32_t root,
                    void *communicator, void *stream) {
    RETURN_IF_WRONG(check(communicator, dtype, count == 0 || send != NULL));
    RETURN_IF_WRONG(check_rank(communicator, root));
    RETURN_IF_WRONG(check_reduction(dtype, reduction));
    return simple(REDUCE, send, receive, count, dtype, reduction, (int32_t)root, communicator, stream);
}

result_t HcclReduceScatter(void *send, void *receive, uint64_t count, int32_t dtype, int32_t reduction,
                           void *communicator, void *stream) {
    RETURN_IF_WRONG(check(communicator, dtype, count == 0 || (send != NULL && receive != NULL)));
    RETURN_IF_WRONG(check_reduction(dtype, reduction));
    return simple(REDUCE_SCATTER, send, receive, count, dtype, reduction, -1, communicator, stream);
}

result_t HcclAllGather(void *send, void *receive, uint64_t count, int32_t dtype, void *communicator, void *stream) {
    RETURN_IF_WRONG(check(communicator, dtype, count == 0 || (send != NULL && receive != NULL)));
    return simple(ALL_GATHER, send, receive, count, dtype, -1, -1, communicator, stream);
}

result_t HcclBroadcast(void *buffer, uint64_t count, int32_t dtype, uint32_t root, void *communicator, void *stream) {
    RETURN_IF_WRONG(check(communicator, dtype, count == 0 || buffer != NULL));
    RETURN_IF_WRONG(check_rank(communicator, root));
    return simple(BROADCAST, buffer, buffer, count, dtype, -1, (int32_t)root, communicator, stream);
}

result_t HcclScatter(void *send, void *receive, uint64_t count, int32_t dtype, uint32_t root, void *communicator,
                     void *stream) {
    RETURN_IF_WRONG(check(communicator, dtype, count == 0 || receive != NULL));
    RETURN_IF_WRONG(check_rank(communicator, root));
    int is_root = ((const communicator_t *)communicator)->rank == root;
    RETURN_IF_WRONG(check(communicator, dtype, count == 0 || !is_root || send != NULL));
    return simple(SCATTER, send, receive, count, dtype, -1, (int32_t)root, communicator, stream);
}

result_t HcclAlltoAll(const void *send, uint64_t count, int32_t dtype, const void *receive, uint64_t receive_count,
                      int32_t receive_dtype, void *communicator, void *stream) {
    RETURN_IF_WRONG(check(communicator, dtype, count == 0 || (send != NULL && receive != NULL)));
    if (count != receive_count || dtype != receive_dtype) {
        remember("HcclAlltoAll: what is sent to each rank and received from it are of other sizes or dtypes");
        return HCCL_PARAMETER;
    }
    return simple(ALL_TO_ALL, send, (void *)(uintptr_t)receive, count, dtype, -1, -1, communicator, stream);
}

result_t HcclBarrier(void *communicator, void *stream) {
    RETURN_IF_WRONG(check(communicator, INT8, 1));
    posted_t posted = {.operation = BARRIER, .dtype = INT8, .reduction = -1, .root = -1};
    return launched(made_call(communicator, NULL, NULL, &posted), stream);
}

result_t HcclAllGatherV(void *send, uint64_t count, void *receive, const void *counts, const void *places,
                        int32_t dtype, void *communicator, void *stream) {
    RETURN_IF_WRONG(check(communicator, dtype, counts != NULL && places != NULL));
    const communicator_t *known = communicator;
    posted_t posted = {.operation = ALL_GATHER_V, .dtype = dtype, .reduction = -1, .root = -1};
    call_t *call = made_call(communicator, send, receive, &posted);
    if (call != NULL) {
        call->posted.sends[known->rank] = count;
        set_counts(call->posted.receives, call->in_at, counts, places, known, bytes_of(dtype));
    }
    return launched(call, stream);
}

result_t HcclReduceScatterV(void *send, const void *counts, const void *places, void *receive, uint64_t count,
                            int32_t dtype, int32_t reduction, void *communicator, void *stream) {
    RETURN_IF_WRONG(check(communicator, dtype, counts != NULL && places != NULL));
    RETURN_IF_WRONG(check_reduction(dtype, reduction));
    const communicator_t *known = communicator;
    posted_t posted = {.operation = REDUCE_SCATTER_V, .dtype = dtype, .reduction = reduction, .root = -1};
    call_t *call = made_call(communicator, send, receive, &posted);
    if (call != NULL) {
        call->posted.receives[known->rank] = count;
        set_counts(call->posted.sends, call->out_at, counts, places, known, bytes_of(dtype));
    }
    return launched(call, stream);
}

result_t HcclAlltoAllV(const void *send, const void *send_counts, const void *send_places, int32_t dtype,
                       const void *receive, const void *receive_counts, const void *receive_places,
                       int32_t receive_dtype, void *communicator, void *stream) {
    int complete = send_counts != NULL && send_places != NULL && receive_counts != NULL && receive_places != NULL;
    RETURN_IF_WRONG(check(communicator, dtype, complete));
    if (dtype != receive_dtype) {
        remember("HcclAlltoAllV: what is sent and received are of other dtypes");
        return HCCL_PARAMETER;
    }
    posted_t posted = {.operation = ALL_TO_ALL_V, .dtype = dtype, .reduction = -1, .root = -1};
    call_t *call = made_call(communicator, send, (void *)(uintptr_t)receive, &posted);
    if (call != NULL) {
        set_counts(call->posted.sends, call->out_at, send_counts, send_places, communicator, bytes_of(dtype));
        set_counts(call->posted.receives, call->in_at, receive_counts, receive_places, communicator, bytes_of(dtype));
    }
    return launched(call, stream);
}

/* Counts of all ranks in one matrix, by who sends; data lie one after the other. */
result_t HcclAlltoAllVC(const void *send, const void *matrix, int32_t dtype, const void *receive, int32_t receive_dtype,
                        void *communicator, void *stream) {
    RETURN_IF_WRONG(check(communicator, dtype, matrix != NULL));
    const communicator_t *known = communicator;
    const uint64_t *counts = matrix;
    uint64_t sends[MOST_RANKS], receives[MOST_RANKS], send_places[MOST_RANKS], receive_places[MOST_RANKS];
    uint64_t sent = 0, received = 0;
    for (uint32_t peer = 0; peer < known->ranks; ++peer) {
        sends[peer] = counts[known->rank * known->ranks + peer];
        receives[peer] = counts[peer * known->ranks + known->rank];
        send_places[peer] = sent;
        receive_places[peer] = received;
        sent += sends[peer];
        received += receives[peer];
    }
    return HcclAlltoAllV(send, sends, send_places, dtype, receive, receives, receive_places, receive_dtype,
                         communicator, stream);
}

static result_t keep_for_group(call_t *call, void *stream) {
    pending_t *made = malloc(sizeof *made);
    if (made == NULL) {
        return HCCL_MEMORY;
    }
    *made = (pending_t){.call = call, .stream = stream};
    pending_t **place = &group_first;
    while (*place != NULL) {
        place = &(*place)->next;
    }
    *place = made;
    return HCCL_SUCCESS;
}

/* Launch messages; those of no elements are nothing. Within a group they wait for its end. */
static result_t messages(const send_receive_t *given, uint32_t count, void *communicator, void *stream) {
    posted_t posted = {.operation = MESSAGES, .dtype = INT8, .reduction = -1, .root = -1};
    call_t *call = made_call(communicator, NULL, NULL, &posted);
    item_t *items = calloc(count == 0 ? 1 : count, sizeof *items);
    if (call == NULL || items == NULL) {
        free(call);
        free(items);
        return HCCL_MEMORY;
    }
    call->items = items;
    for (uint32_t place = 0; place < count; ++place) {
        const send_receive_t *one = &given[place];
        if (one->count != 0) {
            items[call->item_count++] = (item_t){
                .receives = one->receives, .buffer = one->buffer, .count = one->count,
                .bytes = one->count * bytes_of(one->dtype), .dtype = one->dtype, .peer = one->peer,
            };
        }
    }
    if (call->item_count == 0) {
        free(items);
        free(call);
        return HCCL_SUCCESS;
    }
    return group_depth > 0 ? keep_for_group(call, stream) : launch_call(call, stream);
}

result_t HcclBatchSendRecv(const send_receive_t *given, uint32_t count, void *communicator, void *stream) {
    if (given == NULL || count == 0) {
        remember("HcclBatchSendRecv: nothing to send or receive");
        return given == NULL ? HCCL_NULL : HCCL_PARAMETER;
    }
    for (uint32_t place = 0; place < count; ++place) {
        const send_receive_t *one = &given[place];
        RETURN_IF_WRONG(check(communicator, one->dtype, one->count == 0 || one->buffer != NULL));
        RETURN_IF_WRONG(check_rank(communicator, one->peer));
    }
    return messages(given, count, communicator, stream);
}

result_t HcclSend(void *buffer, uint64_t count, int32_t dtype, uint32_t peer, void *communicator, void *stream) {
    send_receive_t one = {.buffer = buffer, .count = count, .dtype = dtype, .peer = peer};
    return HcclBatchSendRecv(&one, 1, communicator, stream);
}

result_t HcclRecv(void *buffer, uint64_t count, int32_t dtype, uint32_t peer, void *communicator, void *stream) {
    send_receive_t one = {.receives = 1, .buffer = buffer, .count = count, .dtype = dtype, .peer = peer};
    return HcclBatchSendRecv(&one, 1, communicator, stream);
}

result_t HcclGroupStart(void) {
    ++group_depth;
    return HCCL_SUCCESS;
}

/* Let the messages of one communicator and stream be one call. */
static result_t join(call_t *call, const call_t *other) {
    size_t count = call->item_count + other->item_count;
    item_t *items = realloc(call->items, count * sizeof *items);
    if (items == NULL) {
        return HCCL_MEMORY;
    }
    memcpy(items + call->item_count, other->items, other->item_count * sizeof *items);
    call->items = items;
    call->item_count = (uint32_t)count;
    return HCCL_SUCCESS;
}

result_t HcclGroupEnd(void) {
    if (group_depth == 0) {
        remember("HcclGroupEnd without HcclGroupStart");
        return HCCL_PARAMETER;
    }
    result_t result = HCCL_SUCCESS;
    while (--group_depth == 0 && group_first != NULL) {
        pending_t *first = group_first;
        group_first = first->next;
        for (pending_t **place = &group_first; *place != NULL;) {
            pending_t *other = *place;
            if (other->stream != first->stream || other->call->communicator != first->call->communicator) {
                place = &other->next;
                continue;
            }
            result_t joined = join(first->call, other->call);
            result = result == HCCL_SUCCESS ? joined : result;
            *place = other->next;
            free(other->call->items);
            free(other->call);
            free(other);
        }
        result_t launch = launch_call(first->call, first->stream);
        result = result == HCCL_SUCCESS ? launch : result;
        free(first);
        ++group_depth;
    }
    return result;
}
