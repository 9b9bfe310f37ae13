/* Answers as libnvidia-ml.so.1 for cards that do not exist, so that the real NVML bindings and dask-cuda can be tested without a GPU.
 * FAKE_NVML_CARDS holds one card per ';': name,uuid,total MiB,used MiB,major,minor. Whatever is not here is not reported. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NOT_SUPPORTED 3
#define NOT_FOUND 6
#define CARDS_MAX 16
#define MIB (1024ULL * 1024)

typedef struct { char name[96], uuid[96]; unsigned long long total, used; int major, minor; } card;
typedef struct { unsigned long long total, free, used; } memory;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2;
typedef struct { unsigned gpu, memory; } rates;
typedef struct { unsigned pid; unsigned long long used; unsigned gi, ci; } process;

static card cards[CARDS_MAX];
static unsigned count;

int nvmlInit_v2(void) {
    const char *text = getenv("FAKE_NVML_CARDS");
    for (count = 0; text && *text && count < CARDS_MAX; count++) {
        card *c = &cards[count];
        memset(c, 0, sizeof *c);
        if (sscanf(text, "%95[^,],%95[^,],%llu,%llu,%d,%d", c->name, c->uuid, &c->total, &c->used, &c->major, &c->minor) != 6) return 999;
        text = strchr(text, ';');
        if (text) text++;
    }
    return 0;
}
int nvmlInitWithFlags(unsigned flags) { (void)flags; return nvmlInit_v2(); }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *out, unsigned n) { snprintf(out, n, "550.54.14"); return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = count; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, card **c) { if (i >= count) return 2; *c = &cards[i]; return 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, card **c) {
    for (unsigned i = 0; i < count; i++)
        if (strncmp(cards[i].uuid, uuid, strlen(uuid)) == 0) { *c = &cards[i]; return 0; }
    return NOT_FOUND;
}
int nvmlDeviceGetIndex(card *c, unsigned *i) { *i = (unsigned)(c - cards); return 0; }
int nvmlDeviceGetName(card *c, char *out, unsigned n) { snprintf(out, n, "%s", c->name); return 0; }
int nvmlDeviceGetUUID(card *c, char *out, unsigned n) { snprintf(out, n, "%s", c->uuid); return 0; }
int nvmlDeviceGetMemoryInfo(card *c, memory *m) { m->total = c->total * MIB; m->used = c->used * MIB; m->free = m->total - m->used; return 0; }
int nvmlDeviceGetMemoryInfo_v2(card *c, memory_v2 *m) { m->total = c->total * MIB; m->reserved = 0; m->used = c->used * MIB; m->free = m->total - m->used; return 0; }
int nvmlDeviceGetCudaComputeCapability(card *c, int *major, int *minor) { if (!c->major) return NOT_SUPPORTED; *major = c->major; *minor = c->minor; return 0; }
int nvmlDeviceGetUtilizationRates(card *c, rates *r) { (void)c; r->gpu = 7; r->memory = 3; return 0; }
int nvmlDeviceGetPowerUsage(card *c, unsigned *mw) { (void)c; *mw = 12500; return 0; }
int nvmlDeviceGetTemperature(card *c, int sensor, unsigned *t) { (void)c; (void)sensor; *t = 41; return 0; }
int nvmlDeviceGetTemperatureV(card *c, int *t) { (void)c; t[2] = 41; return 0; }
int nvmlDeviceGetMigMode(card *c, unsigned *now, unsigned *pending) { (void)c; (void)now; (void)pending; return NOT_SUPPORTED; }
int nvmlDeviceGetCpuAffinity(card *c, unsigned n, unsigned long *set) { (void)c; memset(set, 0, n * sizeof *set); set[0] = 1; return 0; }
int nvmlDeviceGetComputeRunningProcesses_v3(card *c, unsigned *n, process *p) {
    if (!c->used) { *n = 0; return 0; }
    if (*n < 1) { *n = 1; return 7; }
    *n = 1; p->pid = 4242; p->used = c->used * MIB; p->gi = p->ci = 0xFFFFFFFF;
    return 0;
}
