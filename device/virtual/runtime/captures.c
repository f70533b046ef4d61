/* Captures: tasks that are launched on a stream become those of a graph, instead of being run. */

#include "graphs.h"

#include <stdlib.h>

enum { MODE_GLOBAL = 0, MODE_THREAD_LOCAL = 1, MODE_RELAXED = 2 };
enum { STATUS_NONE = 0, STATUS_ACTIVE = 1 };

static _Thread_local int32_t thread_mode = MODE_GLOBAL;

/* For npudiff: the identity of the graph that captures a stream, or 0. */
uint32_t npudiff_captured_by(void *stream) {
    pthread_mutex_lock(&task_lock);
    const model_t *model = stream_of(stream)->capture;
    uint32_t identity = model == NULL ? 0 : model->identity;
    pthread_mutex_unlock(&task_lock);
    return identity;
}

status_t unseen(const char *function) {
    pthread_mutex_lock(&task_lock);
    int forbidden = 0;
    for (const model_t *model = models; model != NULL && thread_mode != MODE_RELAXED; model = model->next) {
        int whole = model->mode == MODE_GLOBAL || pthread_equal(model->thread, pthread_self());
        forbidden |= model->capturing && model->mode != MODE_RELAXED && whole;
    }
    pthread_mutex_unlock(&task_lock);
    if (forbidden) {
        remember("%s: not permitted while a stream is captured in a mode that is not relaxed", function);
    }
    return forbidden ? CAPTURE_MODE_NOT_SUPPORTED : SUCCESS;
}

/* For npudiff: the same for what it does itself. */
status_t npudiff_unseen(const char *function) { return unseen(function); }

status_t aclmdlRICaptureThreadExchangeMode(int32_t *mode) {
    int32_t before = thread_mode;
    if (*mode < MODE_GLOBAL || *mode > MODE_RELAXED) {
        return PARAM_INVALID;
    }
    thread_mode = *mode;
    *mode = before;
    return SUCCESS;
}

/* Let a stream be captured. The lock is held. */
static void join(stream_t *stream, model_t *model) {
    stream->capture = model;
    stream->launched = 0;
    stream->unjoined = 0;
    stream->group = NULL;
    mark_busy(stream);
}

static status_t begin(stream_t *stream, model_t *model, int32_t mode) {
    if (stream->identity < 0) {
        remember("the default stream cannot be captured");
        return DEFAULT_STREAM_CAPTURED;
    }
    if (stream->capture != NULL) {
        remember("stream %d is captured already", (int)stream->identity);
        return STREAM_CAPTURED;
    }
    if (stream->updating) {
        remember("stream %d updates a task group", (int)stream->identity);
        return TASK_GROUP_STATUS;
    }
    model = model == NULL ? make_model() : model;
    if (model == NULL) {
        return MEMORY_ALLOCATION;
    }
    model->capturing = 1;
    model->mode = mode;
    model->thread = pthread_self();
    model->origin = stream;
    join(stream, model);
    return SUCCESS;
}

status_t aclmdlRICaptureBegin(void *stream, int32_t mode) {
    ON_DEVICE();
    if (mode < MODE_GLOBAL || mode > MODE_RELAXED) {
        return PARAM_INVALID;
    }
    pthread_mutex_lock(&task_lock);
    status_t status = begin(stream_of(stream), NULL, mode);
    pthread_mutex_unlock(&task_lock);
    return status;
}

status_t aclmdlRICaptureGetInfo(void *stream, int32_t *status, void **model) {
    pthread_mutex_lock(&task_lock);
    model_t *found = stream_of(stream)->capture;
    pthread_mutex_unlock(&task_lock);
    if (status != NULL) {
        *status = found == NULL ? STATUS_NONE : STATUS_ACTIVE;
    }
    if (model != NULL) {
        *model = found;
    }
    return SUCCESS;
}

status_t aclmdlRICaptureToModelRIBegin(void *stream, void *handle, int32_t mode) {
    ON_DEVICE();
    model_t *model = handle;
    pthread_mutex_lock(&task_lock);
    int open = is_model(model) && model->first == NULL && !model->capturing;
    status_t status = open ? begin(stream_of(stream), model, mode) : PARAM_INVALID;
    pthread_mutex_unlock(&task_lock);
    return status;
}

/* Take all streams out of a capture, and say what is wrong with how it ends. The lock is held. */
static status_t leave(model_t *model) {
    status_t status = SUCCESS;
    for (stream_t *stream = next_stream(NULL); stream != NULL; stream = next_stream(stream)) {
        if (stream->capture != model) {
            continue;
        }
        if (stream->group != NULL) {
            remember("a task group of stream %d is open at the end of a capture", (int)stream->identity);
            status = TASK_GROUP_STATUS;
        } else if (stream->unjoined && status == SUCCESS) {
            remember("stream %d joined a capture, and the captured stream does not wait for it", (int)stream->identity);
            status = STREAM_UNJOINED;
        }
        stream->capture = NULL;
        stream->group = NULL;
        mark_busy(stream);
    }
    model->capturing = 0;
    return status;
}

status_t aclmdlRICaptureEnd(void *handle, void **ended) {
    stream_t *stream = stream_of(handle);
    if (capture_ends != NULL && stream->capture != NULL && stream->capture->origin == stream) {
        capture_ends(stream->capture->identity);
    }
    pthread_mutex_lock(&task_lock);
    model_t *model = stream->capture;
    status_t status;
    if (model == NULL) {
        remember("stream %d is not captured", (int)stream->identity);
        status = STREAM_NOT_CAPTURED;
    } else if (model->origin != stream) {
        remember("the capture of stream %d did not begin on it", (int)stream->identity);
        status = CAPTURE_UNMATCHED;
    } else if (model->mode != MODE_RELAXED && !pthread_equal(model->thread, pthread_self())) {
        remember("the capture of stream %d began in another thread", (int)stream->identity);
        status = CAPTURE_WRONG_THREAD;
    } else {
        status = leave(model);
        if (status != SUCCESS) {
            disown(model);
            model = NULL;
        }
    }
    if (ended != NULL) {
        *ended = status == SUCCESS ? model : NULL;
    }
    pthread_mutex_unlock(&task_lock);
    return status;
}

status_t capture_task(stream_t *stream, const task_t *task) {
    model_t *model = stream->capture;
    if (task->kind == TASK_GRAPH) {
        remember("a graph cannot run on stream %d, which is captured", (int)stream->identity);
        return STREAM_CAPTURED;
    }
    group_t *group = stream->group;
    if (group != NULL && task->kind != TASK_KERNEL) {
        remember("a task group takes operators only");
        return TASK_TYPE_NOT_SUPPORTED;
    }
    task_t *made = malloc(sizeof *made);
    if (group != NULL && made != NULL && group->count == group->room) {
        size_t room = group->room == 0 ? 4 : 2 * group->room;
        task_t **larger = realloc(group->tasks, room * sizeof *larger);
        if (larger == NULL) {
            free(made);
            return MEMORY_ALLOCATION;
        }
        group->tasks = larger;
        group->room = room;
    }
    if (made == NULL) {
        return MEMORY_ALLOCATION;
    }
    *made = *task;
    made->next = NULL;
    made->stream = stream->identity;
    if (model->last == NULL) {
        model->first = made;
    } else {
        model->last->next = made;
    }
    model->last = made;
    if (group != NULL) {
        group->tasks[group->count++] = made;
    }
    ++stream->launched;
    stream->unjoined = stream != model->origin;
    return SUCCESS;
}

int is_captured(const event_t *event) { return event->captured_by != 0 && capturing_model(event->captured_by) != NULL; }

status_t capture_record(stream_t *stream, event_t *event, int *done) {
    *done = stream->capture != NULL;
    event->captured_by = stream->capture == NULL ? 0 : stream->capture->identity;
    event->captured_on = stream;
    event->captured_after = stream->launched;
    return SUCCESS;
}

status_t capture_wait(stream_t *stream, event_t *event, int *done) {
    model_t *model = event->captured_by == 0 ? NULL : capturing_model(event->captured_by);
    *done = model != NULL || stream->capture != NULL;
    if (!*done) {
        return SUCCESS;
    }
    if (model == NULL) {
        remember("stream %d is captured, and cannot wait for what is not", (int)stream->identity);
        return CAPTURE_DEPENDENCY;
    }
    if (stream->capture == NULL) {
        join(stream, model);
    } else if (stream->capture != model) {
        remember("stream %d and an event that it waits for belong to different captures", (int)stream->identity);
        return CAPTURE_CONFLICT;
    }
    stream_t *recorded = event->captured_on;
    if (recorded->launched == event->captured_after) {
        recorded->unjoined = 0;
    }
    ++stream->launched;
    stream->unjoined = stream != model->origin;
    return SUCCESS;
}

status_t aclmdlRICaptureTaskGrpBegin(void *handle) {
    stream_t *stream = stream_of(handle);
    status_t status = SUCCESS;
    pthread_mutex_lock(&task_lock);
    group_t *group = NULL;
    if (stream->capture == NULL) {
        remember("a task group begins on stream %d, which is not captured", (int)stream->identity);
        status = STREAM_NOT_CAPTURED;
    } else if (stream->group != NULL) {
        remember("a task group begins within another one");
        status = TASK_GROUP_STATUS;
    } else if ((group = calloc(1, sizeof *group)) == NULL) {
        status = MEMORY_ALLOCATION;
    } else {
        group->model = stream->capture;
        group->next = group->model->groups;
        group->model->groups = stream->group = group;
    }
    pthread_mutex_unlock(&task_lock);
    return status;
}

status_t aclmdlRICaptureTaskGrpEnd(void *handle, void **group) {
    stream_t *stream = stream_of(handle);
    pthread_mutex_lock(&task_lock);
    int open = stream->capture != NULL && stream->group != NULL;
    *group = open ? stream->group : NULL;
    if (open) {
        stream->group = NULL;
    }
    pthread_mutex_unlock(&task_lock);
    if (!open) {
        remember("no task group is open on stream %d", (int)stream->identity);
    }
    return open ? SUCCESS : TASK_GROUP_STATUS;
}
