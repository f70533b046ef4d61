/* What the parts of the stand-in runtime share. Portable C11, POSIX threads; nothing of it depends on a machine. */

#ifndef NPUDIFF_RUNTIME_H
#define NPUDIFF_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

typedef int32_t status_t;

/* Status codes of CANN (acl/error_codes/rt_error_codes.h). */
enum {
    SUCCESS = 0,
    PARAM_INVALID = 107000,
    INVALID_DEVICE = 107001,
    CONTEXT_NULL = 107002,
    TIMESTAMP_INVALID = 107006,
    FEATURE_NOT_SUPPORTED = 207000,
    MEMORY_ALLOCATION = 207001
};

/* Code with which the device fails since something went wrong on it, or SUCCESS. */
status_t device_status(void);

/* Remember why a call fails, for aclGetRecentErrMsg. */
void remember(const char *format, ...);

/* Run a task on the device: the status with which every call fails once the device is lost. */
#define ON_DEVICE()                     \
    do {                                \
        status_t lost = device_status(); \
        if (lost != SUCCESS) {          \
            return lost;                \
        }                               \
    } while (0)

#endif
