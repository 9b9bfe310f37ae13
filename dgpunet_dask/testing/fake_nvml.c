/* Answers as libnvidia-ml.so.1 for cards that do not exist, so that the real NVML bindings and dask-cuda can be tested without a GPU.
 * FAKE_NVML_CARDS holds one card per ';': name,uuid,total MiB,used MiB,major,minor. Whatever is not here is not reported.
 * FAKE_NVML_STATE names a file that is read at each question, so that a card changes while it is watched: one line per card,
 * "uuid used display process...", display -1 not reported, 0 no, 1 yes; a process is letter pid=MiB with c computes, g draws, b both,
 * and MiB -1 where the driver hides it. A card without a line has one computing process, 4242, with all that is used. */
#define _GNU_SOURCE
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

typedef struct { unsigned long long used; int display, known; char processes[512]; } state;

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
static state now(card *c) {
    state s = { c->used, -1, 0, "" };
    char line[768], uuid[96];
    const char *path = getenv("FAKE_NVML_STATE");
    FILE *file = path ? fopen(path, "r") : NULL;
    while (file && fgets(line, sizeof line, file)) {
        unsigned long long used; int display, at = 0;
        if (sscanf(line, "%95s %llu %d %n", uuid, &used, &display, &at) < 3 || strcmp(uuid, c->uuid) != 0) continue;
        s.used = used; s.display = display; s.known = 1;
        snprintf(s.processes, sizeof s.processes, "%s", line + at);
    }
    if (file) fclose(file);
    return s;
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
int nvmlDeviceGetMemoryInfo(card *c, memory *m) { m->total = c->total * MIB; m->used = now(c).used * MIB; m->free = m->total - m->used; return 0; }
int nvmlDeviceGetMemoryInfo_v2(card *c, memory_v2 *m) { m->total = c->total * MIB; m->reserved = 0; m->used = now(c).used * MIB; m->free = m->total - m->used; return 0; }
int nvmlDeviceGetCudaComputeCapability(card *c, int *major, int *minor) { if (!c->major) return NOT_SUPPORTED; *major = c->major; *minor = c->minor; return 0; }
int nvmlDeviceGetUtilizationRates(card *c, rates *r) { (void)c; r->gpu = 7; r->memory = 3; return 0; }
int nvmlDeviceGetPowerUsage(card *c, unsigned *mw) { (void)c; *mw = 12500; return 0; }
int nvmlDeviceGetTemperature(card *c, int sensor, unsigned *t) { (void)c; (void)sensor; *t = 41; return 0; }
int nvmlDeviceGetTemperatureV(card *c, int *t) { (void)c; t[2] = 41; return 0; }
int nvmlDeviceGetMigMode(card *c, unsigned *now, unsigned *pending) { (void)c; (void)now; (void)pending; return NOT_SUPPORTED; }
int nvmlDeviceGetCpuAffinity(card *c, unsigned n, unsigned long *set) { (void)c; memset(set, 0, n * sizeof *set); set[0] = 1; return 0; }
int nvmlDeviceGetDisplayMode(card *c, int *on) { int display = now(c).display; if (display < 0) return NOT_SUPPORTED; *on = display; return 0; }
int nvmlDeviceGetDisplayActive(card *c, int *on) { return nvmlDeviceGetDisplayMode(c, on); }

static int processes(card *c, char kind, unsigned *n, process *p) {
    state s = now(c);
    process found[32];
    unsigned count = 0;
    char *words = s.processes, *word;
    if (!s.known && s.used && kind == 'c') found[count++] = (process){ 4242, s.used * MIB, 0xFFFFFFFF, 0xFFFFFFFF };
    while (count < 32 && (word = strsep(&words, " \n")) != NULL) {
        char letter; unsigned pid; long long mib;
        if (sscanf(word, "%c%u=%lld", &letter, &pid, &mib) != 3 || (letter != kind && letter != 'b')) continue;
        found[count++] = (process){ pid, mib < 0 ? ~0ULL : (unsigned long long)mib * MIB, 0xFFFFFFFF, 0xFFFFFFFF };
    }
    if (count == 0) { *n = 0; return 0; }
    if (*n < count) { *n = count; return 7; }
    *n = count;
    memcpy(p, found, count * sizeof *p);
    return 0;
}
int nvmlDeviceGetComputeRunningProcesses_v3(card *c, unsigned *n, process *p) { return processes(c, 'c', n, p); }
int nvmlDeviceGetGraphicsRunningProcesses_v3(card *c, unsigned *n, process *p) { return processes(c, 'g', n, p); }
