/* Ranks: what stands in for HCCL. Each communicator is a piece of memory that the processes of its ranks share. */

#ifndef NPUDIFF_RANKS_H
#define NPUDIFF_RANKS_H

#include "runtime.h"

#include <stdatomic.h>

typedef int32_t result_t;

/* Results of HCCL (hccl_types.h). */
enum {
    HCCL_SUCCESS = 0,
    HCCL_PARAMETER = 1,
    HCCL_NULL = 2,
    HCCL_MEMORY = 3,
    HCCL_INTERNAL = 4,
    HCCL_NOT_SUPPORTED = 5,
    HCCL_NOT_FOUND = 6,
    HCCL_SYSTEM_CALL = 8,
    HCCL_TIMEOUT = 9,
    HCCL_RUNTIME = 15,
    HCCL_REMOTE = 21
};

enum {
    MOST_RANKS = 64,
    STAGE_BYTES = 1 << 20,   /* what a rank shows the others at once, twice: while one is read the other is written */
    MAILBOX_BYTES = 1 << 17, /* of each pair of ranks, in each direction */
    COMMUNICATOR_NAME_BYTES = 128,
    TOKEN_BYTES = 16,
    TEXT_BYTES = 1024,
    SUBGROUPS = 64
};

/* HcclReduceOp. */
enum { SUM = 0, PROD = 1, MAX = 2, MIN = 3, REDUCTIONS = 4 };

/* HcclDataType. */
enum {
    INT8 = 0, INT16 = 1, INT32 = 2, FP16 = 3, FP32 = 4, INT64 = 5, UINT64 = 6, UINT8 = 7, UINT16 = 8, UINT32 = 9, FP64 = 10,
    BF16 = 11, INT128 = 12, HIF8 = 14, E4M3 = 15, E5M2 = 16, E8M0 = 17, DTYPES = 18
};

typedef enum {
    ALL_REDUCE, ALL_GATHER, ALL_GATHER_V, REDUCE_SCATTER, REDUCE_SCATTER_V, BROADCAST, REDUCE, SCATTER, ALL_TO_ALL,
    ALL_TO_ALL_V, BARRIER, MESSAGES
} operation_t;

/* Where the memory of a communicator is: what HcclGetRootInfo gives, and others get by another way. */
typedef struct {
    uint64_t magic;
    int32_t process;
    int32_t file;
    uint8_t token[TOKEN_BYTES];
} root_t;

/* What a rank asks of a collective, in the words of HCCL's functions. */
typedef struct {
    uint64_t count; /* elements; in a form with counts, nothing */
    int32_t operation, dtype, reduction, root;
    uint64_t sends[MOST_RANKS], receives[MOST_RANKS]; /* elements to and from each rank, in a form with counts */
} posted_t;

/* What a rank writes, and others read. */
typedef struct {
    pthread_mutex_t life;   /* held by the rank as long as it is there; the system lets go of it when its process ends */
    _Atomic uint32_t state; /* one of the below */
    int32_t process;
    int32_t world;             /* its number in the whole program, or -1 */
    _Atomic uint64_t calls;    /* collectives that it has begun */
    _Atomic uint64_t arrived;  /* rounds of collectives for which its part is there */
    posted_t posted[2];        /* by the number of the call */
    char doing[TEXT_BYTES];    /* for messages only: what it began last */
    _Atomic uint32_t failed;   /* whether it gave up */
    char failure[TEXT_BYTES];
} member_t;

enum { FREE, CLAIMED, ATTACHED, LEFT };

/* Messages from one rank to another. */
typedef struct {
    _Atomic uint64_t offered, taken, refused; /* numbers of messages */
    _Atomic uint64_t written, read;           /* bytes of the offered one */
    uint64_t count, expected_count;
    int32_t dtype, expected_dtype;
    unsigned char bytes[MAILBOX_BYTES];
} mailbox_t;

/* A group of some ranks of a communicator. */
typedef struct {
    _Atomic uint64_t key;
    _Atomic uint32_t ready;
    root_t root;
} subgroup_t;

/* The memory of a communicator. After it come the stages of all ranks, and the mailboxes of all pairs. */
typedef struct {
    uint64_t magic;
    uint8_t token[TOKEN_BYTES];
    _Atomic uint32_t ranks; /* 0 until the first rank says it */
    _Atomic uint32_t bell;  /* moved on when somebody may go on */
    subgroup_t subgroups[SUBGROUPS];
    member_t members[MOST_RANKS];
} region_t;

/* regions.c: memory that is there as long as a process has it, and no longer. */
result_t make_root(root_t *root);
result_t open_region(const root_t *root, uint32_t ranks, region_t **region);
void close_region(region_t *region, uint32_t ranks);
void forget_root(const root_t *root); /* when all ranks have the memory */
unsigned char *stage_of(region_t *region, uint32_t rank, uint64_t round);
mailbox_t *mailbox_of(region_t *region, uint32_t from, uint32_t to);
void ring(region_t *region);
void listen_for(region_t *region, uint32_t heard, int milliseconds); /* until the bell is not as it was heard */
int is_gone(member_t *member); /* whether the process of a rank that was there has ended */
double seconds_now(void);

typedef struct call call_t;

typedef struct communicator {
    char name[COMMUNICATOR_NAME_BYTES];
    uint32_t rank, ranks;
    int32_t device;
    int32_t process;     /* which made it: after a fork there are two that think they have it */
    root_t root;
    region_t *region;
    uint64_t calls;      /* collectives that were begun */
    uint64_t rounds;     /* rounds of them */
    call_t *active;      /* the collective that is under way */
    uint64_t sent[MOST_RANKS], received[MOST_RANKS];          /* messages that were begun */
    const void *sending[MOST_RANKS], *receiving[MOST_RANKS]; /* that are under way */
    uint32_t waiting;    /* calls that cannot go on yet */
    double patience;     /* seconds that a call waits for others */
    result_t error;
    int destroyed;
    uint32_t references; /* the handle's, and those of calls */
    pthread_mutex_t lock;
    pthread_cond_t woken;
    int stopping, present; /* whether the watcher is to end, and whether it is there */
    struct communicator *next;
} communicator_t;

/* communicators.c */
communicator_t *known_communicator(void *handle);
void release_communicator(communicator_t *communicator);
double patience_of(const char *variable, double otherwise);

/* A message of a batch. */
typedef struct {
    int receives;
    unsigned char *buffer;
    uint64_t count, bytes, moved;
    int32_t dtype;
    uint32_t peer;
    uint64_t number; /* 0 until its turn comes */
    int done;
} item_t;

/* One call of one rank. It runs when its task does, as far as it can; a graph runs it again at each replay. */
struct call {
    communicator_t *communicator;
    posted_t posted;
    const unsigned char *send;
    unsigned char *receive;
    uint64_t out_bytes[MOST_RANKS], out_at[MOST_RANKS], in_bytes[MOST_RANKS], in_at[MOST_RANKS], fold_bytes;
    item_t *items;
    uint32_t item_count;
    int begun, waits;
    uint64_t step, steps; /* rounds of this call */
    double since;         /* when it began to wait for what it waits for; 0: it does not */
    double looked;        /* when the others were looked at last */
};

/* The state of a call that goes on: one of status_t, PENDING included, or this, with an explanation. */
enum { FAILED_CALL = -2 };

/* collectives.c, messages.c: go on with a call. The communicator's lock is held. */
void plan(call_t *call);
status_t advance_collective(call_t *call, char *why);
status_t advance_messages(call_t *call, char *why);

/* rank_calls.c */
size_t bytes_of(int32_t dtype);
void describe(const posted_t *posted, char *text, size_t room);
void describe_item(const item_t *item, char *text, size_t room);
void append(char *text, const char *format, ...);
result_t launch_call(call_t *call, void *stream); /* which has the call from then on */
void release_call(call_t *call);

/* reductions.c: out = parts[0] op parts[1] op ..., in this order, element by element. */
void fold(void *out, const void *const *parts, uint32_t count, uint64_t elements, int32_t dtype, int32_t reduction);
result_t check_reduction(int32_t dtype, int32_t reduction);

#endif
