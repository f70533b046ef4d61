/* The devices themselves: always there, and what they answer when they are asked about themselves. */

#include "runtime.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Numbers of the public headers of CANN: aclCannAttr, aclCANNPackageName, aclDeviceInfo, aclSysParamOpt. */
enum { CANN_INF_NAN = 0, CANN_BF16 = 1 };
enum { PACKAGE_DRIVER = 7, VERSION_BYTES = 128 };
enum { INFO_AI_CORES = 0, INFO_VECTOR_CORES = 1, INFO_L2_SIZE = 2 };

enum { MESSAGE_BYTES = 2048, SYSTEM_PARAMETERS = 16, CUBE_CORES = 24, VECTOR_CORES = 48 };

static atomic_int lost_with[MOST_DEVICES]; /* SUCCESS, which is 0, for each */
static char lost_why[MESSAGE_BYTES];
static pthread_mutex_t message_lock = PTHREAD_MUTEX_INITIALIZER;
static char message[MESSAGE_BYTES];
static _Thread_local char answer[MESSAGE_BYTES];
static _Thread_local int32_t current_device = -1;
static atomic_llong system_parameters[SYSTEM_PARAMETERS];
static int contexts[MOST_DEVICES];
static pthread_once_t counted = PTHREAD_ONCE_INIT;
static int32_t count_of_devices;

void remember(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    pthread_mutex_lock(&message_lock);
    vsnprintf(message, sizeof message, format, arguments);
    pthread_mutex_unlock(&message_lock);
    va_end(arguments);
}

status_t device_status(int32_t device) { return atomic_load(&lost_with[device]); }

void lose_device(int32_t device, status_t code, const char *why) {
    remember("%s", why);
    pthread_mutex_lock(&message_lock);
    snprintf(lost_why, sizeof lost_why, "%s", why);
    pthread_mutex_unlock(&message_lock);
    atomic_store(&lost_with[device], code);
}

/* For npudiff: from now on every task of this device fails with this code, as on a card after an exception; SUCCESS
 * heals all devices. */
void npudiff_lose_device(status_t code, const char *why) {
    lose_device(this_device(), code, why);
    for (int32_t device = 0; code == SUCCESS && device < MOST_DEVICES; ++device) {
        atomic_store(&lost_with[device], SUCCESS);
    }
}

/* For npudiff: say why a kernel failed. */
void npudiff_remember(const char *why) { remember("%s", why); }

status_t npudiff_device_status(void) { return device_status(this_device()); }

/* The message is taken: a second call has none, as with CANN, unless a device is lost: whoever asks is told why. */
const char *aclGetRecentErrMsg(void) {
    int lost = 0;
    for (int32_t device = 0; device < MOST_DEVICES; ++device) {
        lost |= device_status(device) != SUCCESS;
    }
    pthread_mutex_lock(&message_lock);
    memcpy(answer, lost && message[0] == '\0' ? lost_why : message, sizeof answer);
    message[0] = '\0';
    pthread_mutex_unlock(&message_lock);
    return answer;
}

status_t aclInit(const char *config) {
    (void)config;
    return SUCCESS;
}

status_t aclFinalize(void) { return SUCCESS; }

static const char *said(const char *variable, const char *otherwise) {
    const char *value = getenv(variable);
    return value == NULL || value[0] == '\0' ? otherwise : value;
}

const char *aclrtGetSocName(void) { return said("NPUDIFF_VIRTUAL_SOC", "Ascend910B3"); }

/* Every package is of one version. There is no driver. */
static status_t version_of_cann(int is_driver, char *version) {
    if (is_driver) {
        remember("the virtual NPU has no driver");
        return FEATURE_NOT_SUPPORTED;
    }
    snprintf(version, VERSION_BYTES, "%s", said("NPUDIFF_VIRTUAL_CANN_VERSION", "8.5.0"));
    return SUCCESS;
}

/* The version is the first member of aclCANNPackageVersion; nobody reads its parts. */
status_t aclsysGetCANNVersion(int package, char *version) { return version_of_cann(package == PACKAGE_DRIVER, version); }

status_t aclsysGetVersionStr(const char *package, char *version) {
    return version_of_cann(strcmp(package, "DRIVER") == 0, version);
}

/* Return how many devices a list of visible ones names, of those that there are: up to the first that is no number, is
 * not there, or is not larger than the one before. */
static int32_t visible(const char *list, int32_t there) {
    int32_t seen = 0;
    long before = -1;
    for (char *end = NULL; *list != '\0'; list = *end == ',' ? end + 1 : end) {
        long device = strtol(list, &end, 10);
        if (end == list || (*end != ',' && *end != '\0') || device >= there || device < 0) {
            break;
        }
        if (device <= before) {
            return 0;
        }
        before = device;
        ++seen;
    }
    return seen;
}

static void count_devices(void) {
    int there = atoi(said("NPUDIFF_VIRTUAL_DEVICES", "1"));
    there = there < 1 ? 1 : there > MOST_DEVICES ? MOST_DEVICES : there;
    const char *list = getenv("ASCEND_RT_VISIBLE_DEVICES");
    count_of_devices = list == NULL ? there : visible(list, there);
}

int32_t device_count(void) {
    pthread_once(&counted, count_devices);
    return count_of_devices;
}

/* For npudiff. */
int32_t npudiff_device_count(void) { return device_count(); }

static int is_device(int32_t device) { return device >= 0 && device < device_count(); }

int32_t this_device(void) { return current_device < 0 ? 0 : current_device; }

int32_t exchange_device(int32_t device) {
    int32_t before = current_device;
    current_device = device;
    return before;
}

status_t aclrtGetDeviceCount(uint32_t *count) {
    *count = (uint32_t)device_count();
    return SUCCESS;
}

status_t aclrtSetDevice(int32_t device) {
    int32_t there = device_count();
    if (!is_device(device)) {
        if (there == 1) {
            remember("the virtual NPU has one device, 0; asked for %d", (int)device);
        } else {
            remember("the virtual NPU has %d devices; asked for %d", (int)there, (int)device);
        }
        return INVALID_DEVICE;
    }
    current_device = device;
    return SUCCESS;
}

status_t aclrtResetDevice(int32_t device) {
    (void)device;
    current_device = -1;
    return SUCCESS;
}

status_t aclrtGetDevice(int32_t *device) {
    *device = current_device;
    return current_device < 0 ? CONTEXT_NULL : SUCCESS;
}

status_t aclrtGetCurrentContext(void **current) {
    *current = current_device < 0 ? NULL : &contexts[current_device];
    return current_device < 0 ? CONTEXT_NULL : SUCCESS;
}

status_t aclrtSetCurrentContext(void *chosen) {
    for (int32_t device = 0; device < device_count(); ++device) {
        if (chosen == &contexts[device]) {
            current_device = device;
            return SUCCESS;
        }
    }
    return PARAM_INVALID;
}

status_t aclrtGetPrimaryCtxState(int32_t device, uint32_t *flags, int32_t *active) {
    if (flags != NULL) {
        *flags = 0;
    }
    *active = is_device(device);
    return is_device(device) ? SUCCESS : INVALID_DEVICE;
}

status_t aclrtDeviceCanAccessPeer(int32_t *can, int32_t device, int32_t peer) {
    (void)device;
    (void)peer;
    *can = 0;
    return SUCCESS;
}

status_t aclrtDeviceEnablePeerAccess(int32_t peer, uint32_t flags) {
    (void)peer;
    (void)flags;
    return FEATURE_NOT_SUPPORTED;
}

status_t aclGetDeviceCapability(uint32_t device, int32_t information, int64_t *value) {
    (void)device;
    switch (information) {
    case INFO_AI_CORES:
        *value = CUBE_CORES;
        return SUCCESS;
    case INFO_VECTOR_CORES:
        *value = VECTOR_CORES;
        return SUCCESS;
    case INFO_L2_SIZE:
        *value = INT64_C(192) << 20;
        return SUCCESS;
    default:
        remember("the virtual NPU does not know device information %d", (int)information);
        return PARAM_INVALID;
    }
}

status_t aclGetCannAttribute(int32_t attribute, int32_t *value) {
    *value = attribute == CANN_INF_NAN || attribute == CANN_BF16;
    return SUCCESS;
}

status_t aclGetCannAttributeList(const int32_t **attributes, size_t *count) {
    static const int32_t known[] = {CANN_INF_NAN, CANN_BF16};
    *attributes = known;
    *count = sizeof known / sizeof known[0];
    return SUCCESS;
}

status_t aclrtSetSysParamOpt(int32_t option, int64_t value) {
    if (option < 0 || option >= SYSTEM_PARAMETERS) {
        return PARAM_INVALID;
    }
    atomic_store(&system_parameters[option], value);
    return SUCCESS;
}

status_t aclrtCtxSetSysParamOpt(int32_t option, int64_t value) { return aclrtSetSysParamOpt(option, value); }

status_t aclrtGetSysParamOpt(int32_t option, int64_t *value) {
    if (option < 0 || option >= SYSTEM_PARAMETERS) {
        return PARAM_INVALID;
    }
    *value = atomic_load(&system_parameters[option]);
    return SUCCESS;
}

status_t aclrtSetDeviceSatMode(int32_t mode) {
    (void)mode;
    return SUCCESS;
}

/* Options of the operator compiler, which is not there: any value is taken, and none is remembered. */
size_t aclGetCompileoptSize(int32_t option) {
    (void)option;
    return 1;
}

status_t aclGetCompileopt(int32_t option, char *value, size_t length) {
    (void)option;
    if (length == 0) {
        return PARAM_INVALID;
    }
    value[0] = '\0';
    return SUCCESS;
}

/* Limits of cores are kept and asked for; kernels do not run on any. */
static const uint32_t cores[LIMITS] = {CUBE_CORES, VECTOR_CORES};
static _Atomic uint32_t device_limits[MOST_DEVICES][LIMITS]; /* 0: all cores */

static uint32_t limit_of(int32_t device, uint32_t kind) {
    uint32_t limit = device_limits[device][kind];
    return limit == 0 ? cores[kind] : limit;
}

uint32_t device_limit(uint32_t kind) { return limit_of(this_device(), kind); }

int is_limit(uint32_t kind, uint32_t value) { return kind < LIMITS && value > 0 && value <= cores[kind]; }

status_t aclrtSetDeviceResLimit(int32_t device, uint32_t kind, uint32_t value) {
    if (!is_device(device) || !is_limit(kind, value)) {
        return PARAM_INVALID;
    }
    device_limits[device][kind] = value;
    return SUCCESS;
}

status_t aclrtGetDeviceResLimit(int32_t device, uint32_t kind, uint32_t *value) {
    if (!is_device(device) || kind >= LIMITS) {
        return PARAM_INVALID;
    }
    *value = limit_of(device, kind);
    return SUCCESS;
}

status_t aclrtResetDeviceResLimit(int32_t device) {
    if (!is_device(device)) {
        return PARAM_INVALID;
    }
    for (uint32_t kind = 0; kind < LIMITS; ++kind) {
        device_limits[device][kind] = 0;
    }
    return SUCCESS;
}

status_t aclSetCompileopt(int32_t option, const char *value) {
    (void)option;
    (void)value;
    return SUCCESS;
}

status_t aclrtSetOpWaitTimeout(uint32_t seconds) {
    (void)seconds;
    return SUCCESS;
}

status_t aclrtSetOpExecuteTimeOut(uint32_t seconds) {
    (void)seconds;
    return SUCCESS;
}

status_t aclrtSetOpExecuteTimeOutV2(uint64_t microseconds, uint64_t *actual) {
    *actual = microseconds;
    return SUCCESS;
}

/* Profiling and logs: nobody listens. */
void aclAppLog(int32_t level, const char *function, const char *file, uint32_t line, const char *format, ...) {
    (void)level;
    (void)function;
    (void)file;
    (void)line;
    (void)format;
}

uint64_t MsprofSysCycleTime(void) { return 0; }

uint64_t MsprofGetHashId(const char *text, size_t length) {
    (void)text;
    (void)length;
    return 0;
}

int32_t MsprofRegisterCallback(uint32_t module, void *callback) {
    (void)module;
    (void)callback;
    return 0;
}

int32_t MsprofReportApi(uint32_t ageing, const void *api) {
    (void)ageing;
    (void)api;
    return 0;
}

int32_t MsprofReportCompactInfo(uint32_t ageing, const void *data, uint32_t length) {
    (void)ageing;
    (void)data;
    (void)length;
    return 0;
}

int32_t MsprofReportAdditionalInfo(uint32_t ageing, const void *data, uint32_t length) {
    (void)ageing;
    (void)data;
    (void)length;
    return 0;
}
