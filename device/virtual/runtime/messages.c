/* Messages between two ranks. A message is over for who sends it when it has been taken, as between cards. */

#include "ranks.h"

#include <string.h>

static uint64_t smaller(uint64_t one, uint64_t other) { return one < other ? one : other; }

/* Give a message its number when those before it, between the same ranks, are over: whether it has one. */
static int has_turn(communicator_t *communicator, item_t *item) {
    const void **under_way = item->receives ? communicator->receiving : communicator->sending;
    uint64_t *numbers = item->receives ? communicator->received : communicator->sent;
    if (item->number != 0) {
        return 1;
    }
    if (under_way[item->peer] != NULL) {
        return 0;
    }
    under_way[item->peer] = item;
    item->number = ++numbers[item->peer];
    item->moved = 0;
    return 1;
}

/* Copy between a mailbox, which is a ring of bytes, and a buffer: whether anything was moved. */
static int move(mailbox_t *mailbox, item_t *item, _Atomic uint64_t *counter, uint64_t available) {
    uint64_t moved = 0;
    while (item->moved < item->bytes && moved < available) {
        uint64_t at = item->moved % MAILBOX_BYTES;
        uint64_t length = smaller(smaller(available - moved, MAILBOX_BYTES - at), item->bytes - item->moved);
        if (item->receives) {
            memcpy(item->buffer + item->moved, mailbox->bytes + at, length);
        } else {
            memcpy(mailbox->bytes + at, item->buffer + item->moved, length);
        }
        item->moved += length;
        moved += length;
    }
    atomic_store(counter, item->moved);
    return moved != 0;
}

static int send_on(mailbox_t *mailbox, item_t *item, int *moved) {
    if (atomic_load(&mailbox->offered) != item->number) {
        mailbox->count = item->count;
        mailbox->dtype = item->dtype;
        atomic_store(&mailbox->written, 0);
        atomic_store(&mailbox->read, 0);
        atomic_store(&mailbox->offered, item->number);
        *moved = 1;
    }
    uint64_t room = MAILBOX_BYTES - (item->moved - atomic_load(&mailbox->read));
    *moved |= move(mailbox, item, &mailbox->written, room);
    return atomic_load(&mailbox->taken) == item->number;
}

static int receive_on(mailbox_t *mailbox, item_t *item, int *moved) {
    if (atomic_load(&mailbox->offered) != item->number) {
        return 0;
    }
    *moved |= move(mailbox, item, &mailbox->read, atomic_load(&mailbox->written) - item->moved);
    if (item->moved == item->bytes) {
        atomic_store(&mailbox->taken, item->number);
        *moved = 1;
    }
    return item->moved == item->bytes;
}

/* Whether a message that has been offered is not the one that is expected. */
static int is_refused(communicator_t *communicator, mailbox_t *mailbox, const item_t *item, char *why) {
    if (item->receives && atomic_load(&mailbox->offered) == item->number &&
        (mailbox->count != item->count || mailbox->dtype != item->dtype)) {
        mailbox->expected_count = item->count;
        mailbox->expected_dtype = item->dtype;
        atomic_store(&mailbox->refused, item->number);
        ring(communicator->region);
    }
    if (atomic_load(&mailbox->refused) != item->number) {
        return 0;
    }
    uint32_t from = item->receives ? item->peer : communicator->rank;
    uint32_t to = item->receives ? communicator->rank : item->peer;
    item_t sent = {.count = mailbox->count, .dtype = mailbox->dtype, .peer = to};
    item_t expected = {.receives = 1, .count = mailbox->expected_count, .dtype = mailbox->expected_dtype, .peer = from};
    char texts[2][TEXT_BYTES / 4];
    describe_item(&sent, texts[0], sizeof texts[0]);
    describe_item(&expected, texts[1], sizeof texts[1]);
    append(why, "message %llu does not fit: rank %u calls %s, and rank %u %s", (unsigned long long)item->number,
           (unsigned)from, texts[0], (unsigned)to, texts[1]);
    return 1;
}

/* Go on with one message: whether it does not fit. */
static int advance_item(communicator_t *communicator, item_t *item, int *moved, char *why) {
    if (item->done || !has_turn(communicator, item)) {
        return 0;
    }
    mailbox_t *mailbox = item->receives ? mailbox_of(communicator->region, item->peer, communicator->rank)
                                        : mailbox_of(communicator->region, communicator->rank, item->peer);
    if (is_refused(communicator, mailbox, item, why)) {
        return 1;
    }
    item->done = item->receives ? receive_on(mailbox, item, moved) : send_on(mailbox, item, moved);
    if (item->done) {
        *(item->receives ? &communicator->receiving[item->peer] : &communicator->sending[item->peer]) = NULL;
    }
    return 0;
}

status_t advance_messages(call_t *call, char *why) {
    communicator_t *communicator = call->communicator;
    if (!call->begun) {
        call->begun = 1;
        describe_item(&call->items[0], communicator->region->members[communicator->rank].doing, TEXT_BYTES);
    }
    int moved, open;
    do {
        moved = open = 0;
        for (uint32_t place = 0; place < call->item_count; ++place) {
            if (advance_item(communicator, &call->items[place], &moved, why)) {
                return FAILED_CALL;
            }
            open |= !call->items[place].done;
        }
        if (moved) {
            call->since = 0;
            ring(communicator->region);
        }
    } while (moved && open);
    return open ? PENDING : SUCCESS;
}
