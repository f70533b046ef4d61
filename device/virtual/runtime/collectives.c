/* Collectives: in each round every rank shows its part, and reads those of others when all are there. */

#include "ranks.h"

#include <string.h>

enum { LARGE = 1 << 15 }; /* bytes from which on each rank reduces its share only, and then all shares are gathered */

/* Whether a rank has something of its own for each other rank, or the same for all. */
static int is_personal(int32_t operation) {
    return operation == SCATTER || operation == REDUCE_SCATTER || operation == REDUCE_SCATTER_V ||
           operation == ALL_TO_ALL || operation == ALL_TO_ALL_V;
}

/* Whether a call takes two rounds for each piece of its data. */
static int in_shares(const call_t *call) {
    return call->posted.operation == ALL_REDUCE && call->fold_bytes >= LARGE && call->communicator->ranks > 1;
}

/* Bytes that one rank can show another one in a round. */
static uint64_t capacity(const call_t *call) {
    uint64_t ranks = call->communicator->ranks;
    return is_personal(call->posted.operation) ? STAGE_BYTES / ranks / 64 * 64 : STAGE_BYTES;
}

static uint64_t smaller(uint64_t one, uint64_t other) { return one < other ? one : other; }

/* Bytes of a whole that a step moves. */
static uint64_t length_of(uint64_t whole, uint64_t step, uint64_t room) {
    return whole <= step * room ? 0 : smaller(whole - step * room, room);
}

/* Say which bytes go where, once: from what the call asks for. */
void plan(call_t *call) {
    const posted_t *posted = &call->posted;
    uint32_t rank = call->communicator->rank, ranks = call->communicator->ranks;
    uint64_t size = bytes_of(posted->dtype), bytes = posted->count * size;
    int is_root = (int32_t)rank == posted->root;
    switch (posted->operation) {
    case ALL_REDUCE:
    case REDUCE:
        call->out_bytes[0] = bytes;
        call->fold_bytes = posted->operation == ALL_REDUCE || is_root ? bytes : 0;
        break;
    case BROADCAST:
        call->out_bytes[0] = is_root ? bytes : 0;
        call->in_bytes[posted->root] = is_root ? 0 : bytes;
        break;
    case ALL_GATHER:
    case ALL_GATHER_V:
        call->out_bytes[0] = posted->operation == ALL_GATHER ? bytes : posted->sends[rank] * size;
        break;
    case SCATTER:
        call->in_bytes[posted->root] = bytes;
        break;
    case REDUCE_SCATTER:
    case REDUCE_SCATTER_V:
        call->fold_bytes = posted->operation == REDUCE_SCATTER ? bytes : posted->receives[rank] * size;
        break;
    default:
        break;
    }
    for (uint32_t peer = 0; peer < ranks; ++peer) {
        int everybody = posted->operation == ALL_TO_ALL || posted->operation == REDUCE_SCATTER;
        if (everybody || (posted->operation == SCATTER && is_root)) {
            call->out_bytes[peer] = bytes;
            call->out_at[peer] = peer * bytes;
        } else if (posted->operation == ALL_TO_ALL_V || posted->operation == REDUCE_SCATTER_V) {
            call->out_bytes[peer] = posted->sends[peer] * size;
        }
        if (posted->operation == ALL_TO_ALL || posted->operation == ALL_GATHER) {
            call->in_bytes[peer] = bytes;
            call->in_at[peer] = peer * bytes;
        } else if (posted->operation == ALL_TO_ALL_V || posted->operation == ALL_GATHER_V) {
            call->in_bytes[peer] = posted->receives[peer] * size;
        }
    }
}

/* Return how many rounds a call takes, which is the same for all ranks. What they ask for is known, and is the same. */
static uint64_t rounds_of(const call_t *call) {
    const communicator_t *communicator = call->communicator;
    uint64_t size = bytes_of(call->posted.dtype), most = call->posted.count;
    for (uint32_t rank = 0; rank < communicator->ranks; ++rank) {
        const posted_t *theirs = &communicator->region->members[rank].posted[communicator->calls % 2];
        for (uint32_t peer = 0; peer < communicator->ranks; ++peer) {
            most = theirs->sends[peer] > most ? theirs->sends[peer] : most;
        }
    }
    uint64_t room = capacity(call), rounds = (most * size + room - 1) / room;
    return (rounds == 0 ? 1 : rounds) * (in_shares(call) ? 2 : 1);
}

/* Return the part of a piece that a rank reduces: where it begins, and its bytes. */
static uint64_t share_of(const call_t *call, uint64_t piece, uint32_t rank, uint64_t *bytes) {
    uint64_t size = bytes_of(call->posted.dtype), ranks = call->communicator->ranks;
    uint64_t share = (piece / size + ranks - 1) / ranks * size;
    uint64_t at = smaller(rank * share, piece);
    *bytes = smaller(share, piece - at);
    return at;
}

static void fold_stages(call_t *call, void *out, uint64_t at, uint64_t bytes, uint64_t round) {
    communicator_t *communicator = call->communicator;
    const void *parts[MOST_RANKS];
    for (uint32_t rank = 0; rank < communicator->ranks; ++rank) {
        parts[rank] = stage_of(communicator->region, rank, round) + at;
    }
    uint64_t elements = bytes / bytes_of(call->posted.dtype);
    if (elements != 0) {
        fold(out, parts, communicator->ranks, elements, call->posted.dtype, call->posted.reduction);
    }
}

/* Show this rank's part of the current step. */
static void show(call_t *call) {
    communicator_t *communicator = call->communicator;
    unsigned char *stage = stage_of(communicator->region, communicator->rank, communicator->rounds);
    uint64_t room = capacity(call), step = call->step;
    if (in_shares(call)) {
        uint64_t piece = length_of(call->fold_bytes, step / 2, room);
        if (step % 2 == 0) {
            memcpy(stage, call->send + step / 2 * room, piece);
        } else {
            uint64_t bytes, at = share_of(call, piece, communicator->rank, &bytes);
            fold_stages(call, stage, at, bytes, communicator->rounds - 1);
        }
        return;
    }
    uint32_t boxes = is_personal(call->posted.operation) ? communicator->ranks : 1;
    for (uint32_t peer = 0; peer < boxes; ++peer) {
        uint64_t bytes = length_of(call->out_bytes[peer], step, room);
        if (bytes != 0) {
            memcpy(stage + peer * room, call->send + call->out_at[peer] + step * room, bytes);
        }
    }
}

/* Read what others show in the current step. */
static void look(call_t *call) {
    communicator_t *communicator = call->communicator;
    uint64_t room = capacity(call), step = call->step, round = communicator->rounds;
    uint64_t box = is_personal(call->posted.operation) ? communicator->rank * room : 0;
    if (in_shares(call)) {
        uint64_t piece = length_of(call->fold_bytes, step / 2, room);
        for (uint32_t rank = 0; step % 2 == 1 && rank < communicator->ranks; ++rank) {
            uint64_t bytes, at = share_of(call, piece, rank, &bytes);
            memcpy(call->receive + step / 2 * room + at, stage_of(communicator->region, rank, round), bytes);
        }
        return;
    }
    uint64_t folded = length_of(call->fold_bytes, step, room);
    if (folded != 0) {
        fold_stages(call, call->receive + step * room, box, folded, round);
    }
    for (uint32_t rank = 0; rank < communicator->ranks; ++rank) {
        uint64_t bytes = length_of(call->in_bytes[rank], step, room);
        if (bytes != 0) {
            memcpy(call->receive + call->in_at[rank] + step * room,
                   stage_of(communicator->region, rank, round) + box, bytes);
        }
    }
}

static int all_arrived(const communicator_t *communicator) {
    for (uint32_t rank = 0; rank < communicator->ranks; ++rank) {
        if (atomic_load(&communicator->region->members[rank].arrived) < communicator->rounds) {
            return 0;
        }
    }
    return 1;
}

static void show_and_arrive(call_t *call) {
    communicator_t *communicator = call->communicator;
    ++communicator->rounds;
    show(call);
    atomic_store(&communicator->region->members[communicator->rank].arrived, communicator->rounds);
    if (all_arrived(communicator)) {
        ring(communicator->region);
    }
}

static void begin(call_t *call) {
    communicator_t *communicator = call->communicator;
    member_t *self = &communicator->region->members[communicator->rank];
    communicator->active = call;
    ++communicator->calls;
    self->posted[communicator->calls % 2] = call->posted;
    atomic_store(&self->calls, communicator->calls);
    call->begun = 1;
    call->step = 0;
    show_and_arrive(call);
}

static int is_same(const posted_t *one, const posted_t *other) {
    return one->operation == other->operation && one->dtype == other->dtype && one->reduction == other->reduction &&
           one->root == other->root && one->count == other->count;
}

/* Say what does not fit between the calls of two ranks; 0 if nothing. */
static int differ(const call_t *call, uint32_t one, uint32_t other, char *why) {
    const communicator_t *communicator = call->communicator;
    const posted_t *first = &communicator->region->members[one].posted[communicator->calls % 2];
    const posted_t *second = &communicator->region->members[other].posted[communicator->calls % 2];
    if (!is_same(first, second)) {
        char texts[2][TEXT_BYTES / 4];
        describe(first, texts[0], sizeof texts[0]);
        describe(second, texts[1], sizeof texts[1]);
        append(why, "call %llu is not the same on all ranks: rank %u calls %s, and rank %u %s",
               (unsigned long long)communicator->calls, (unsigned)one, texts[0], (unsigned)other, texts[1]);
        return 1;
    }
    uint64_t sent = first->sends[other], expected = second->receives[one];
    if (first->operation == ALL_GATHER_V) {
        sent = first->sends[one];
    } else if (first->operation == REDUCE_SCATTER_V) {
        expected = second->receives[other];
    }
    if (sent != expected) {
        append(why, "counts of call %llu do not fit: rank %u sends %llu elements to rank %u, which expects %llu",
               (unsigned long long)communicator->calls, (unsigned)one, (unsigned long long)sent, (unsigned)other,
               (unsigned long long)expected);
    }
    return sent != expected;
}

static int any_differ(const call_t *call, char *why) {
    uint32_t ranks = call->communicator->ranks;
    for (uint32_t one = 0; one < ranks; ++one) {
        for (uint32_t other = 0; other < ranks; ++other) {
            if (differ(call, one, other, why)) {
                return 1;
            }
        }
    }
    return 0;
}

status_t advance_collective(call_t *call, char *why) {
    communicator_t *communicator = call->communicator;
    if (!call->begun) {
        if (communicator->active != NULL) {
            return PENDING; /* until its turn comes */
        }
        begin(call);
    }
    while (all_arrived(communicator)) {
        call->since = 0;
        if (call->step == 0) {
            if (any_differ(call, why)) {
                communicator->active = NULL;
                return FAILED_CALL;
            }
            call->steps = rounds_of(call);
        }
        look(call);
        if (++call->step == call->steps) {
            communicator->active = NULL;
            return SUCCESS;
        }
        show_and_arrive(call);
    }
    return PENDING;
}
