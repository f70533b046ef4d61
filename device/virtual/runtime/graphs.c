/* Graphs: tasks that were captured, and run together. */

#include "graphs.h"

#include <stdio.h>
#include <stdlib.h>

enum { CONDITION_IF = 0, ASSIGN_DEFAULT = 1 };
enum { NESTED = 16 };

/* A graph that runs: what comes next, in it and in the bodies of conditions that it is in. */
typedef struct {
    model_t *model;
    task_t *next[NESTED];
    int depth;
} execution_t;

model_t *models;
static uint32_t made_models;

void (*capture_ends)(uint32_t);
static void (*graph_starts)(uint32_t);

/* For npudiff: what is told before a capture ends, and before a graph runs, with the graph's identity. */
void npudiff_set_graph_hooks(void (*ends)(uint32_t), void (*starts)(uint32_t)) {
    capture_ends = ends;
    graph_starts = starts;
}

int is_model(const model_t *model) {
    const model_t *known = models;
    while (known != NULL && known != model) {
        known = known->next;
    }
    return known != NULL;
}

static group_t *group_of(const void *handle) {
    for (model_t *model = models; model != NULL; model = model->next) {
        for (group_t *group = model->groups; group != NULL; group = group->next) {
            if (group == handle) {
                return group;
            }
        }
    }
    return NULL;
}

model_t *capturing_model(uint32_t identity) {
    model_t *model = models;
    while (model != NULL && !(model->capturing && model->identity == identity)) {
        model = model->next;
    }
    return model;
}

model_t *make_model(void) {
    model_t *model = calloc(1, sizeof *model);
    if (model != NULL) {
        model->identity = ++made_models;
        model->references = 1;
        model->next = models;
        models = model;
    }
    return model;
}

static void release_model(model_t *model);

void disown(model_t *model) {
    model_t **place = &models;
    while (*place != model) {
        place = &(*place)->next;
    }
    *place = model->next;
    release_model(model);
}

static void release_model(model_t *model) {
    if (--model->references != 0) {
        return;
    }
    while (model->first != NULL) {
        task_t *task = model->first;
        model->first = task->next;
        release_task(task);
        free(task);
    }
    while (model->groups != NULL) {
        group_t *group = model->groups;
        model->groups = group->next;
        free(group->tasks);
        free(group);
    }
    while (model->conditions != NULL) {
        condition_t *condition = model->conditions;
        model->conditions = condition->next;
        if (condition->body != NULL) {
            disown(condition->body);
        }
        free(condition);
    }
    free(model);
}

status_t aclmdlRIGetId(void *model, uint32_t *identity) {
    *identity = ((model_t *)model)->identity;
    return SUCCESS;
}

status_t aclmdlRIExecuteAsync(void *handle, void *stream) {
    ON_DEVICE();
    model_t *model = handle;
    pthread_mutex_lock(&task_lock);
    int known = is_model(model);
    int capturing = known && model->capturing;
    uint32_t identity = known ? model->identity : 0;
    execution_t *execution = calloc(1, sizeof *execution);
    if (known && !capturing && execution != NULL) {
        execution->model = model;
        execution->next[0] = model->first;
        ++model->references;
    }
    pthread_mutex_unlock(&task_lock);
    if (execution == NULL || execution->model == NULL) {
        free(execution);
        remember("what is to run is %s", capturing ? "captured still" : "no graph");
        return capturing ? MODEL_CAPTURED : PARAM_INVALID;
    }
    if (graph_starts != NULL) {
        graph_starts(identity);
    }
    return submit(stream, (task_t){.kind = TASK_GRAPH, .object = execution});
}

void release_graph(const task_t *task) {
    execution_t *execution = task->object;
    release_model(execution->model);
    free(execution);
}

/* Return the next task of a graph, or NULL; of a condition, go into its body or past it. The lock is not held. */
static task_t *next_task(execution_t *execution, task_t *copy) {
    pthread_mutex_lock(&task_lock);
    task_t *task = execution->next[execution->depth];
    while (task == NULL || task->kind == TASK_CONDITION) {
        if (task == NULL && execution->depth == 0) {
            break;
        }
        if (task == NULL) {
            --execution->depth;
        } else {
            const condition_t *condition = task->object;
            execution->next[execution->depth] = task->next;
            if (*(const volatile uint64_t *)&condition->value != 0 && execution->depth + 1 < NESTED) {
                execution->next[++execution->depth] = condition->body->first;
            }
        }
        task = execution->next[execution->depth];
    }
    if (task != NULL) {
        *copy = *task;
    }
    pthread_mutex_unlock(&task_lock);
    return task;
}

status_t run_graph(task_t *task) {
    execution_t *execution = task->object;
    if (execution->depth == 0 && execution->next[0] == execution->model->first) {
        for (condition_t *condition = execution->model->conditions; condition != NULL; condition = condition->next) {
            condition->value = condition->initial;
        }
    }
    task_t copy;
    for (task_t *next = next_task(execution, &copy); next != NULL; next = next_task(execution, &copy)) {
        status_t status = run_task(&copy);
        if (status != SUCCESS) {
            return status;
        }
        execution->next[execution->depth] = next->next;
    }
    return SUCCESS;
}

status_t aclmdlRIDestroy(void *model) {
    pthread_mutex_lock(&task_lock);
    int known = is_model(model) && !((model_t *)model)->capturing;
    if (known) {
        disown(model);
    }
    pthread_mutex_unlock(&task_lock);
    return known ? SUCCESS : PARAM_INVALID;
}

status_t aclmdlRICaptureTaskUpdateBegin(void *handle, void *group_handle) {
    stream_t *stream = stream_of(handle);
    status_t status = SUCCESS;
    pthread_mutex_lock(&task_lock);
    group_t *group = group_of(group_handle);
    if (stream->capture != NULL) {
        remember("stream %d is captured, and cannot update a task group", (int)stream->identity);
        status = STREAM_CAPTURED;
    } else if (group == NULL || group->model->capturing) {
        remember("what is to be updated is no task group of a graph");
        status = PARAM_INVALID;
    } else if (stream->updating || group->updating) {
        remember("the update of a task group begins within another one");
        status = TASK_GROUP_STATUS;
    } else {
        group->updated = 0;
        group->updating = stream->updating = 1;
        stream->group = group;
        mark_busy(stream);
    }
    pthread_mutex_unlock(&task_lock);
    return status;
}

status_t replace_task(stream_t *stream, task_t *task) {
    group_t *group = stream->group;
    if (task->kind != TASK_KERNEL) {
        remember("a task group is updated with something that is no operator");
        return TASK_TYPE_NOT_SUPPORTED;
    }
    if (group->updated == group->count) {
        remember("a task group of %llu operators is updated with more", (unsigned long long)group->count);
        return INTERNAL_ERROR;
    }
    task->kind = TASK_REPLACE;
    task->object = group;
    task->count = group->updated++;
    ++group->model->references;
    return SUCCESS;
}

void run_replacement(const task_t *task) {
    const group_t *group = task->object;
    pthread_mutex_lock(&task_lock);
    task_t *captured = group->tasks[task->count];
    task_t before = *captured;
    captured->number = task->number;
    for (int place = 0; place < NAME_BYTES; ++place) {
        captured->name[place] = task->name[place];
    }
    release_task(&before);
    pthread_mutex_unlock(&task_lock);
}

void release_replacement(const task_t *task) { release_model(((const group_t *)task->object)->model); }

status_t aclmdlRICaptureTaskUpdateEnd(void *handle) {
    stream_t *stream = stream_of(handle);
    status_t status = SUCCESS;
    pthread_mutex_lock(&task_lock);
    if (!stream->updating) {
        remember("no task group is updated on stream %d", (int)stream->identity);
        status = TASK_GROUP_STATUS;
    } else {
        group_t *group = stream->group;
        if (group->updated != group->count) {
            remember("a task group of %llu operators is updated with %llu", (unsigned long long)group->count,
                     (unsigned long long)group->updated);
            status = INTERNAL_ERROR;
        }
        group->updating = stream->updating = 0;
        stream->group = NULL;
        mark_busy(stream);
    }
    pthread_mutex_unlock(&task_lock);
    return status;
}

status_t aclmdlRICondHandleCreate(void *handle, unsigned int initial, uint32_t flag, void **made) {
    model_t *model = handle;
    status_t status = PARAM_INVALID;
    pthread_mutex_lock(&task_lock);
    condition_t *condition = calloc(1, sizeof *condition);
    if (condition != NULL && flag == ASSIGN_DEFAULT && is_model(model) && model->capturing) {
        condition->value = condition->initial = initial;
        condition->next = model->conditions;
        model->conditions = condition;
        *made = condition;
        status = SUCCESS;
    } else {
        free(condition);
    }
    pthread_mutex_unlock(&task_lock);
    return status;
}

status_t aclmdlRICondHandleGetCondPtr(void *condition, uint64_t **value) {
    *value = &((condition_t *)condition)->value;
    return SUCCESS;
}

typedef struct {
    void *handle;
    int32_t type;
    uint32_t size;
    void **bodies;
} condition_parameters_t;

status_t aclmdlRIAddCondTask(condition_parameters_t parameters, void *stream, uint32_t flags) {
    (void)flags;
    if (parameters.type != CONDITION_IF || parameters.size != 1) {
        remember("the virtual NPU has conditions with one body, that run it or do not");
        return FEATURE_NOT_SUPPORTED;
    }
    condition_t *condition = parameters.handle;
    pthread_mutex_lock(&task_lock);
    int captured = stream_of(stream)->capture != NULL;
    condition->body = captured ? make_model() : NULL;
    *parameters.bodies = condition->body;
    pthread_mutex_unlock(&task_lock);
    if (!captured) {
        return STREAM_NOT_CAPTURED;
    }
    return submit(stream, (task_t){.kind = TASK_CONDITION, .object = condition});
}

static const char *name_of(const task_t *task) {
    switch (task->kind) {
    case TASK_KERNEL:
        return task->name;
    case TASK_COPY:
        return "MEMCPY_ASYNC";
    case TASK_SET:
        return "MEMSET_ASYNC";
    case TASK_HOST:
        return "HOST_FUNC";
    case TASK_RANKS:
        return name_of_ranks(task);
    case TASK_WRITE_VALUE:
        return "MEM_WRITE_VALUE";
    case TASK_WAIT_VALUE:
        return "MEM_WAIT_VALUE";
    default:
        return "CONDITION";
    }
}

/* Write a graph as a trace, whose times are the order of its tasks. */
status_t aclmdlRIDebugJsonPrint(void *handle, const char *path, uint32_t flags) {
    (void)flags;
    const model_t *model = handle;
    FILE *file = fopen(path, "w");
    if (file == NULL) {
        remember("%s cannot be written", path);
        return PARAM_INVALID;
    }
    pthread_mutex_lock(&task_lock);
    fputc('[', file);
    int place = 0;
    for (const task_t *task = model->first; task != NULL; task = task->next, ++place) {
        fprintf(file, "%s\n{\"name\": \"%s", place == 0 ? "" : ",", name_of(task));
        if (task->kind == TASK_WRITE_VALUE || task->kind == TASK_WAIT_VALUE) {
            fprintf(file, "_%llx", (unsigned long long)(uintptr_t)task->object);
        }
        fprintf(file,
                "\", \"ph\": \"X\", \"pid\": \"model%u\", \"tid\": \"stream%d\", \"ts\": %d, \"dur\": 1, "
                "\"args\": {\"Stream Id\": %d, \"Task Id\": %d}}",
                model->identity, (int)task->stream, place, (int)task->stream, place);
    }
    fputs("\n]\n", file);
    pthread_mutex_unlock(&task_lock);
    return fclose(file) == 0 ? SUCCESS : PARAM_INVALID;
}
