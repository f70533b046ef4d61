/* A graph, and what belongs to it. */

#ifndef NPUDIFF_GRAPHS_H
#define NPUDIFF_GRAPHS_H

#include "runtime.h"

typedef struct condition {
    uint64_t value, initial;
    model_t *body;
    struct condition *next;
} condition_t;

struct group {
    model_t *model;
    task_t **tasks;
    size_t count, room, updated;
    int updating;
    struct group *next;
};

struct model {
    uint32_t identity;
    int references; /* its owner, and tasks that have to do with it */
    int capturing;
    int32_t mode;
    pthread_t thread;
    stream_t *origin;
    task_t *first, *last;
    group_t *groups;
    condition_t *conditions;
    struct model *next;
};

/* All graphs that somebody owns. */
extern model_t *models;

/* Told before a capture ends, with the graph's identity; or NULL. */
extern void (*capture_ends)(uint32_t);

/* Make a graph that somebody owns, and give it up. The lock is held. */
model_t *make_model(void);
void disown(model_t *model);

/* Whether there is such a graph. The lock is held. */
int is_model(const model_t *model);

/* Return the graph with an identity if it captures, or NULL. The lock is held. */
model_t *capturing_model(uint32_t identity);

#endif
