/* Communicators: how ranks find each other, and that they are there. */

#include "ranks.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { TRY_EVERY = 50, ROOT_INFORMATION_BYTES = 4108, CONFIG_WITHOUT_NAME = 32, CAPABILITIES = 3 };

#define CONNECT_SECONDS 120.0 /* HCCL's own default */
#define CALL_SECONDS 600.0    /* HCCL's own is 1836 */

/* The head of HcclCommConfig, which is as long as it says. */
typedef struct {
    uint64_t size;
    uint32_t magic, version;
    uint64_t reserved;
    uint32_t buffer_size, deterministic;
    char name[COMMUNICATOR_NAME_BYTES];
} config_t;

static pthread_mutex_t list_lock = PTHREAD_MUTEX_INITIALIZER;
static communicator_t *communicators;

double patience_of(const char *variable, double otherwise) {
    const char *const names[] = {"NPUDIFF_VIRTUAL_RANK_TIMEOUT", variable};
    for (int place = 0; place < 2; ++place) {
        const char *text = getenv(names[place]);
        char *end = NULL;
        double seconds = text == NULL ? 0 : strtod(text, &end);
        if (seconds > 0 && *end == '\0') {
            return seconds;
        }
    }
    return otherwise;
}

communicator_t *known_communicator(void *handle) {
    pthread_mutex_lock(&list_lock);
    communicator_t *found = communicators;
    while (found != NULL && found != handle) {
        found = found->next;
    }
    pthread_mutex_unlock(&list_lock);
    return found;
}

/* For npudiff: the communicator of a name, which operators are given, with the rank of this process; or NULL. */
void *npudiff_communicator(const char *name, uint32_t *rank, uint32_t *ranks) {
    pthread_mutex_lock(&list_lock);
    communicator_t *found = communicators;
    while (found != NULL && strcmp(found->name, name) != 0) {
        found = found->next;
    }
    if (found != NULL) {
        *rank = found->rank;
        *ranks = found->ranks;
    }
    pthread_mutex_unlock(&list_lock);
    return found;
}

void release_communicator(communicator_t *communicator) {
    pthread_mutex_lock(&communicator->lock);
    uint32_t left = --communicator->references;
    pthread_mutex_unlock(&communicator->lock);
    if (left == 0) {
        close_region(communicator->region, communicator->ranks);
        pthread_mutex_destroy(&communicator->lock);
        pthread_cond_destroy(&communicator->woken);
        free(communicator);
    }
}

/* The life of a rank: hold its mutex, and let calls be tried again that wait, when something may have changed. */
static void *watch(void *given) {
    communicator_t *communicator = given;
    region_t *region = communicator->region;
    member_t *self = &region->members[communicator->rank];
    pthread_mutex_lock(&self->life);
    atomic_store(&self->state, ATTACHED);
    ring(region);
    pthread_mutex_lock(&communicator->lock);
    while (!communicator->stopping) {
        if (communicator->waiting == 0) {
            pthread_cond_wait(&communicator->woken, &communicator->lock);
            continue;
        }
        uint32_t heard = atomic_load(&region->bell);
        pthread_mutex_unlock(&communicator->lock);
        something_changed();
        listen_for(region, heard, TRY_EVERY);
        pthread_mutex_lock(&communicator->lock);
    }
    pthread_mutex_unlock(&communicator->lock);
    atomic_store(&self->state, LEFT);
    pthread_mutex_unlock(&self->life);
    ring(region);
    pthread_mutex_lock(&communicator->lock);
    communicator->present = 0;
    pthread_mutex_unlock(&communicator->lock);
    release_communicator(communicator);
    return NULL;
}

static void stop_watching(communicator_t *communicator) {
    pthread_mutex_lock(&communicator->lock);
    communicator->stopping = 1;
    pthread_cond_signal(&communicator->woken);
    pthread_mutex_unlock(&communicator->lock);
    ring(communicator->region);
}

static void unlist(communicator_t *communicator) {
    pthread_mutex_lock(&list_lock);
    communicator_t **place = &communicators;
    while (*place != NULL && *place != communicator) {
        place = &(*place)->next;
    }
    if (*place == communicator) {
        *place = communicator->next;
    }
    pthread_mutex_unlock(&list_lock);
}

static void name_communicator(communicator_t *communicator, const config_t *config) {
    if (config != NULL && config->size > CONFIG_WITHOUT_NAME && config->name[0] != '\0') {
        snprintf(communicator->name, sizeof communicator->name, "%.*s", COMMUNICATOR_NAME_BYTES - 1, config->name);
        return;
    }
    char text[TEXT_BYTES] = "group_";
    for (int place = 0; place < TOKEN_BYTES / 2; ++place) {
        append(text, "%02x", communicator->root.token[place]);
    }
    snprintf(communicator->name, sizeof communicator->name, "%.*s", COMMUNICATOR_NAME_BYTES - 1, text);
}

static result_t take_place(communicator_t *communicator) {
    member_t *self = &communicator->region->members[communicator->rank];
    uint32_t before = FREE;
    if (!atomic_compare_exchange_strong(&self->state, &before, CLAIMED)) {
        remember("two ranks of a communicator say that they are rank %u", (unsigned)communicator->rank);
        return HCCL_PARAMETER;
    }
    const char *world = getenv("RANK");
    self->process = (int32_t)getpid();
    self->world = world == NULL ? -1 : atoi(world);
    pthread_attr_t detached;
    pthread_t thread;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    communicator->present = 1;
    int failed = pthread_create(&thread, &detached, watch, communicator);
    pthread_attr_destroy(&detached);
    if (failed) {
        remember("no thread for a communicator");
        return HCCL_SYSTEM_CALL;
    }
    return HCCL_SUCCESS;
}

/* Make a communicator, whose ranks are not all there yet. */
static result_t enter(const root_t *root, uint32_t ranks, uint32_t rank, const config_t *config,
                      communicator_t **made) {
    communicator_t *communicator = calloc(1, sizeof *communicator);
    if (communicator == NULL) {
        return HCCL_MEMORY;
    }
    communicator->rank = rank;
    communicator->ranks = ranks;
    communicator->device = this_device();
    communicator->process = (int32_t)getpid();
    communicator->root = *root;
    communicator->references = 2; /* the handle, and the watcher */
    communicator->patience = patience_of("HCCL_EXEC_TIMEOUT", CALL_SECONDS);
    name_communicator(communicator, config);
    pthread_mutex_init(&communicator->lock, NULL);
    pthread_cond_init(&communicator->woken, NULL);
    result_t result = open_region(root, ranks, &communicator->region);
    if (result != HCCL_SUCCESS) {
        free(communicator);
        return result;
    }
    result = take_place(communicator);
    if (result != HCCL_SUCCESS) {
        close_region(communicator->region, ranks);
        free(communicator);
        return result;
    }
    pthread_mutex_lock(&list_lock);
    communicator->next = communicators;
    communicators = communicator;
    pthread_mutex_unlock(&list_lock);
    *made = communicator;
    return HCCL_SUCCESS;
}

static void leave(communicator_t *communicator) {
    unlist(communicator);
    pthread_mutex_lock(&communicator->lock);
    communicator->destroyed = 1;
    pthread_mutex_unlock(&communicator->lock);
    stop_watching(communicator);
    something_changed(); /* calls that wait end */
    release_communicator(communicator);
}

/* Say which ranks have not come, or have ended: how many. */
static uint32_t missing(communicator_t *communicator, int *ended, char *text) {
    uint32_t count = 0;
    *ended = 0;
    text[0] = '\0';
    for (uint32_t rank = 0; rank < communicator->ranks; ++rank) {
        member_t *member = &communicator->region->members[rank];
        uint32_t state = atomic_load(&member->state);
        int gone = is_gone(member);
        if (state < ATTACHED || gone) {
            append(text, "%s%u%s", count == 0 ? "" : ", ", (unsigned)rank, gone ? " (has ended)" : "");
            ++count;
            *ended |= gone;
        }
    }
    return count;
}

/* Wait until all ranks are there. */
static result_t await(communicator_t *communicator) {
    double patience = patience_of("HCCL_CONNECT_TIMEOUT", CONNECT_SECONDS), begin = seconds_now();
    char text[TEXT_BYTES];
    int ended;
    for (;;) {
        uint32_t heard = atomic_load(&communicator->region->bell);
        if (missing(communicator, &ended, text) == 0) {
            return HCCL_SUCCESS;
        }
        double waited = seconds_now() - begin;
        if (ended || waited > patience) {
            remember("HCCL, communicator %s of %u ranks: rank %u has waited %.1f s for rank %s", communicator->name,
                     (unsigned)communicator->ranks, (unsigned)communicator->rank, waited, text);
            return ended ? HCCL_REMOTE : HCCL_TIMEOUT;
        }
        listen_for(communicator->region, heard, TRY_EVERY);
    }
}

static result_t initialized(uint32_t ranks, const root_t *root, uint32_t rank, const config_t *config, void **handle) {
    if (root == NULL || handle == NULL) {
        return HCCL_NULL;
    }
    if (ranks == 0 || ranks > MOST_RANKS || rank >= ranks) {
        remember("rank %u of %u: the virtual NPU has communicators of 1 to %d ranks", (unsigned)rank, (unsigned)ranks,
                 MOST_RANKS);
        return HCCL_PARAMETER;
    }
    communicator_t *communicator = NULL;
    result_t result = enter(root, ranks, rank, config, &communicator);
    if (result != HCCL_SUCCESS) {
        return result;
    }
    result = await(communicator);
    forget_root(root);
    if (result != HCCL_SUCCESS) {
        leave(communicator);
        return result;
    }
    *handle = communicator;
    return HCCL_SUCCESS;
}

result_t HcclGetRootInfo(void *information) {
    if (information == NULL) {
        return HCCL_NULL;
    }
    root_t root;
    result_t result = make_root(&root);
    memset(information, 0, ROOT_INFORMATION_BYTES);
    if (result == HCCL_SUCCESS) {
        memcpy(information, &root, sizeof root);
    }
    return result;
}

/* Root information may lie anywhere, as bytes do. */
static root_t root_in(const void *information) {
    root_t root = {0};
    if (information != NULL) {
        memcpy(&root, information, sizeof root);
    }
    return root;
}

result_t HcclCommInitRootInfoConfig(uint32_t ranks, const void *information, uint32_t rank, const void *config,
                                    void **handle) {
    root_t root = root_in(information);
    return initialized(ranks, information == NULL ? NULL : &root, rank, config, handle);
}

result_t HcclCommInitRootInfo(uint32_t ranks, const void *information, uint32_t rank, void **handle) {
    return HcclCommInitRootInfoConfig(ranks, information, rank, NULL, handle);
}

/* Several devices of this process, one rank each. */
result_t HcclCommInitAll(uint32_t count, const int32_t *devices, void **handles) {
    if (devices == NULL || handles == NULL) {
        return HCCL_NULL;
    }
    if (count == 0 || count > MOST_RANKS) {
        return HCCL_PARAMETER;
    }
    root_t root;
    result_t result = make_root(&root);
    communicator_t *made[MOST_RANKS];
    uint32_t entered = 0;
    int32_t before = this_device();
    while (result == HCCL_SUCCESS && entered < count) {
        int known = devices[entered] >= 0 && devices[entered] < device_count();
        exchange_device(known ? devices[entered] : before);
        result = known ? enter(&root, count, entered, NULL, &made[entered]) : HCCL_PARAMETER;
        entered += result == HCCL_SUCCESS;
    }
    exchange_device(before);
    for (uint32_t rank = 0; result == HCCL_SUCCESS && rank < count; ++rank) {
        result = await(made[rank]);
    }
    forget_root(&root);
    for (uint32_t rank = 0; rank < entered; ++rank) {
        handles[rank] = made[rank];
        if (result != HCCL_SUCCESS) {
            leave(made[rank]);
        }
    }
    return result;
}

/* A number for a group of ranks, never 0. */
static uint64_t key_of(uint64_t identity, const uint32_t *ranks, uint32_t count) {
    uint64_t key = UINT64_C(14695981039346656037) ^ identity;
    for (uint32_t place = 0; place < count; ++place) {
        key = (key ^ (ranks[place] + 1)) * UINT64_C(1099511628211);
    }
    return key | 1;
}

/* Find or take the place where the first rank of a group leaves its root information for the others. */
static subgroup_t *subgroup_of(region_t *region, uint64_t key) {
    for (int place = 0; place < SUBGROUPS; ++place) {
        uint64_t found = 0;
        if (atomic_compare_exchange_strong(&region->subgroups[place].key, &found, key) || found == key) {
            return &region->subgroups[place];
        }
    }
    return NULL;
}

result_t HcclCreateSubCommConfig(void **parent, uint32_t count, uint32_t *ranks, uint64_t identity, uint32_t rank,
                                 const void *config, void **handle) {
    if (parent == NULL || handle == NULL) {
        return HCCL_NULL;
    }
    *handle = NULL;
    if (ranks == NULL) { /* a rank that is not in the group */
        return HCCL_SUCCESS;
    }
    communicator_t *known = known_communicator(*parent);
    subgroup_t *place = known == NULL ? NULL : subgroup_of(known->region, key_of(identity, ranks, count));
    if (place == NULL || rank >= count) {
        remember("no communicator of these ranks: no parent, no rank %u of them, or too many groups", (unsigned)rank);
        return HCCL_PARAMETER;
    }
    if (rank == 0) {
        result_t result = make_root(&place->root);
        if (result != HCCL_SUCCESS) {
            return result;
        }
        atomic_store(&place->ready, 1);
        ring(known->region);
    }
    double patience = patience_of("HCCL_CONNECT_TIMEOUT", CONNECT_SECONDS), begin = seconds_now();
    while (!atomic_load(&place->ready)) {
        if (seconds_now() - begin > patience) {
            remember("the first rank of a group of ranks has not come");
            return HCCL_TIMEOUT;
        }
        listen_for(known->region, atomic_load(&known->region->bell), TRY_EVERY);
    }
    root_t root = place->root;
    result_t result = initialized(count, &root, rank, config, handle);
    if (rank == 0) { /* all have it: the place is free for a group of another time */
        atomic_store(&place->ready, 0);
        atomic_store(&place->key, 0);
    }
    return result;
}

result_t HcclCommDestroy(void *handle) {
    communicator_t *communicator = known_communicator(handle);
    if (communicator == NULL) {
        return HCCL_PARAMETER;
    }
    if (communicator->process == (int32_t)getpid()) {
        leave(communicator);
    }
    return HCCL_SUCCESS;
}

/* For npudiff: leave all communicators, at the end of a process. No kernel of Python runs in a thread of theirs then. */
void npudiff_stop_ranks(void) {
    pthread_mutex_lock(&list_lock);
    for (communicator_t *one = communicators; one != NULL; one = one->next) {
        if (one->process == (int32_t)getpid()) {
            stop_watching(one);
        }
    }
    int present = 1;
    for (double begin = seconds_now(); present && seconds_now() - begin < 2;) {
        present = 0;
        for (communicator_t *one = communicators; one != NULL; one = one->next) {
            pthread_mutex_lock(&one->lock);
            present |= one->process == (int32_t)getpid() && one->present;
            pthread_mutex_unlock(&one->lock);
        }
        nanosleep(&(struct timespec){.tv_nsec = present ? 1000000L : 0}, NULL);
    }
    pthread_mutex_unlock(&list_lock);
}

uint32_t HcclGetCommConfigCapability(void) { return CAPABILITIES; }

result_t HcclGetCommName(void *handle, char *name) {
    const communicator_t *communicator = known_communicator(handle);
    if (communicator == NULL || name == NULL) {
        return HCCL_NULL;
    }
    memcpy(name, communicator->name, sizeof communicator->name);
    return HCCL_SUCCESS;
}

result_t HcclGetCommAsyncError(void *handle, result_t *error) {
    const communicator_t *communicator = known_communicator(handle);
    if (communicator == NULL || error == NULL) {
        return HCCL_NULL;
    }
    *error = communicator->error;
    return HCCL_SUCCESS;
}

result_t HcclGetRankSize(void *handle, uint32_t *ranks) {
    const communicator_t *communicator = known_communicator(handle);
    if (communicator == NULL || ranks == NULL) {
        return HCCL_NULL;
    }
    *ranks = communicator->ranks;
    return HCCL_SUCCESS;
}

result_t HcclGetRankId(void *handle, uint32_t *rank) {
    const communicator_t *communicator = known_communicator(handle);
    if (communicator == NULL || rank == NULL) {
        return HCCL_NULL;
    }
    *rank = communicator->rank;
    return HCCL_SUCCESS;
}

/* Settings are taken, and change nothing: a sum is the same each time whether it is asked for or not. */
result_t HcclSetConfig(int32_t what, int32_t value) {
    (void)what;
    (void)value;
    return HCCL_SUCCESS;
}

const char *HcclGetErrorString(result_t result) {
    switch (result) {
    case HCCL_SUCCESS:
        return "success";
    case HCCL_PARAMETER:
        return "parameter error";
    case HCCL_NULL:
        return "empty pointer";
    case HCCL_NOT_SUPPORTED:
        return "not support feature";
    case HCCL_TIMEOUT:
        return "timeout";
    case HCCL_REMOTE:
        return "remote error";
    default:
        return "error";
    }
}
