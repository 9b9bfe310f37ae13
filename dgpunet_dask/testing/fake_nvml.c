/* Answers as libnvidia-ml.so.1 for cards that do not exist, so that the real NVML bindings and dask-cuda can be tested without a GPU.
 * FAKE_NVML_CARDS holds one card per ';': name,uuid,total MiB,used MiB,major,minor[,key=value]... with the keys
 *   limit, default (power, mW), pcie (generation/most/width/most), fan (%), ecc (0, 1), energy (1: counted), events (0: none are offered),
 *   mig (uuid:total MiB:profile, once for each instance; none at all: `mig=-`). Whatever is not here is not reported.
 * FAKE_NVML_STATE names a file that is read at each question, so that a card changes while it is watched: one line per card or instance,
 * "uuid used display word...", display -1 not reported, 0 none, 1 a desktop draws, 2 none, but the mode is enabled. A word is a process,
 * letter pid=MiB with c computes, g draws, b both, and MiB -1 where the driver hides it; or `lost` (the card fell off the bus); or key=value with the keys throttle (bits), power, limit (mW,
 * -1 not reported), temp, util, energy (mJ), recovery, pcie (generation/width), xids (all so far: a,b,c), grow (MiB a second@since when,
 * seconds since 1970; the first process that computes grows along).
 * A card without a line has one computing process, 4242, with all that is used.
 * FAKE_NVML_DRIVER and FAKE_NVML_CUDA are the driver's version and CUDA's; FAKE_NVML_OLD=1 lacks what drivers before 535 lack. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define NOT_SUPPORTED 3
#define NOT_FOUND 6
#define TOO_SMALL 7
#define TIMEOUT 10
#define NO_FUNCTION 13
#define LOST 15
#define CARDS_MAX 16
#define INSTANCES_MAX 32
#define EVENTS_MAX 64
#define RECOVERY_FIELD 230
#define MIB (1024ULL * 1024)

typedef struct card {
    char name[96], uuid[96];
    unsigned long long total, used;
    int major, minor, fan, ecc, energy, events, mig, pcie[4];
    long long limit, standard;
    struct card *whole; /* the card of an instance */
} card;
typedef struct { unsigned long long total, free, used; } memory;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2;
typedef struct { unsigned gpu, memory; } rates;
typedef struct { unsigned pid; unsigned long long used; unsigned gi, ci; } process;
typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char full[32]; } pci;
typedef struct { unsigned field, scope; long long at, latency; unsigned type, result; union { unsigned number; unsigned long long wide; } value; } field;
typedef struct { card *device; unsigned long long type, data; unsigned gi, ci; } event;
typedef struct { card *cards[CARDS_MAX]; int told[CARDS_MAX]; unsigned count; } event_set;

typedef struct {
    unsigned long long used, grown;
    int display, known, lost, temp, util, recovery, pcie[2], xids[EVENTS_MAX], xid_count;
    long long throttle, power, limit, energy;
    char words[2048];
} state;

static card cards[CARDS_MAX], instances[INSTANCES_MAX];
static unsigned count, instance_count;

static double clock_now(int which) { struct timespec t; clock_gettime(which, &t); return t.tv_sec + t.tv_nsec / 1e9; }

static void add_instance(card *whole, const char *text) {
    card *one = &instances[instance_count];
    char profile[64];
    whole->mig = 1;
    if (instance_count == INSTANCES_MAX || sscanf(text, "%95[^:]:%llu:%63s", one->uuid, &one->total, profile) != 3) return;
    snprintf(one->name, sizeof one->name, "%.64s MIG %.24s", whole->name, profile);
    one->major = whole->major; one->minor = whole->minor; one->whole = whole;
    instance_count++;
}
static void set_key(card *c, const char *word) {
    sscanf(word, "limit=%lld", &c->limit);
    sscanf(word, "default=%lld", &c->standard);
    sscanf(word, "pcie=%d/%d/%d/%d", &c->pcie[0], &c->pcie[1], &c->pcie[2], &c->pcie[3]);
    sscanf(word, "fan=%d", &c->fan);
    sscanf(word, "ecc=%d", &c->ecc);
    sscanf(word, "energy=%d", &c->energy);
    sscanf(word, "events=%d", &c->events);
    if (strncmp(word, "mig=", 4) == 0) add_instance(c, word + 4);
}
static int read_card(card *c, char *text) {
    int at = 0;
    char *word, *rest;
    memset(c, 0, sizeof *c);
    c->limit = c->standard = c->fan = c->ecc = -1; c->events = 1;
    if (sscanf(text, "%95[^,],%95[^,],%llu,%llu,%d,%d%n", c->name, c->uuid, &c->total, &c->used, &c->major, &c->minor, &at) < 6) return 999;
    for (rest = text + at; (word = strsep(&rest, ",")) != NULL;) set_key(c, word);
    return 0;
}
int nvmlInit_v2(void) {
    static char *seen; /* a second session of one process leaves the handles of the first as they are */
    const char *found = getenv("FAKE_NVML_CARDS");
    char *text, *rest, *one;
    int error = 0;
    if (seen && strcmp(seen, found ? found : "") == 0) return 0;
    count = instance_count = 0;
    rest = text = strdup(found ? found : "");
    while (!error && (one = strsep(&rest, ";")) != NULL)
        if (*one && count < CARDS_MAX) error = read_card(&cards[count++], one);
    free(text);
    free(seen);
    seen = error ? NULL : strdup(found ? found : "");
    return error;
}

static void read_word(state *s, card *c, const char *word) {
    double rate, since;
    int number, at;
    if (strcmp(word, "lost") == 0) s->lost = 1;
    sscanf(word, "throttle=%lld", &s->throttle);
    sscanf(word, "power=%lld", &s->power);
    sscanf(word, "limit=%lld", &s->limit);
    sscanf(word, "energy=%lld", &s->energy);
    sscanf(word, "temp=%d", &s->temp);
    sscanf(word, "util=%d", &s->util);
    sscanf(word, "recovery=%d", &s->recovery);
    sscanf(word, "pcie=%d/%d", &s->pcie[0], &s->pcie[1]);
    if (strncmp(word, "xids=", 5) == 0)
        for (word += 5; s->xid_count < EVENTS_MAX && sscanf(word, "%d%n", &number, &at) == 1; word += at + (word[at] == ','))
            s->xids[s->xid_count++] = number;
    else if (sscanf(word, "grow=%lf@%lf", &rate, &since) == 2 && clock_now(CLOCK_REALTIME) > since) {
        double grown = rate * (clock_now(CLOCK_REALTIME) - since), room = (double)c->total - (double)s->used;
        s->grown = (unsigned long long)(grown < room ? grown : room);
    }
}
static state now(card *c) {
    state s = { .used = c->used, .display = -1, .temp = 41, .util = 7, .recovery = -1, .power = 12500, .limit = c->limit, .energy = -1 };
    char line[2048], copy[2048], uuid[96], *rest, *word;
    const char *path = getenv("FAKE_NVML_STATE");
    FILE *file = path ? fopen(path, "r") : NULL;
    s.pcie[0] = c->pcie[0]; s.pcie[1] = c->pcie[2];
    while (file && fgets(line, sizeof line, file)) {
        unsigned long long used; int display, at = 0;
        if (sscanf(line, "%95s %llu %d %n", uuid, &used, &display, &at) < 3 || strcmp(uuid, c->uuid) != 0) continue;
        s.used = used; s.display = display; s.known = 1;
        snprintf(s.words, sizeof s.words, "%s", line + at);
        snprintf(copy, sizeof copy, "%s", s.words);
        for (rest = copy; (word = strsep(&rest, " \n")) != NULL;) read_word(&s, c, word);
    }
    if (file) fclose(file);
    s.used += s.grown;
    if (c->whole && now(c->whole).lost) s.lost = 1;
    return s;
}
/* Each question but those for versions and counts begins so. */
#define SEEN(c) state s = now(c); if (s.lost) return LOST
#define WHOLE(c) SEEN(c); if ((c)->whole) return NOT_SUPPORTED

int nvmlInitWithFlags(unsigned flags) { (void)flags; return nvmlInit_v2(); }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *out, unsigned n) { const char *v = getenv("FAKE_NVML_DRIVER"); snprintf(out, n, "%s", v ? v : "550.54.14"); return 0; }
int nvmlSystemGetCudaDriverVersion_v2(int *v) { const char *text = getenv("FAKE_NVML_CUDA"); *v = text ? atoi(text) : 12040; return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = count; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, card **c) { if (i >= count) return 2; *c = &cards[i]; return now(*c).lost ? LOST : 0; }
static card *find(card *list, unsigned n, const char *uuid) {
    for (unsigned i = 0; i < n; i++)
        if (strncmp(list[i].uuid, uuid, strlen(uuid)) == 0) return &list[i];
    return NULL;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, card **c) {
    *c = find(cards, count, uuid);
    if (!*c) *c = find(instances, instance_count, uuid);
    if (!*c) return NOT_FOUND;
    return now(*c).lost ? LOST : 0;
}
int nvmlDeviceGetIndex(card *c, unsigned *i) { WHOLE(c); *i = (unsigned)(c - cards); return 0; }
int nvmlDeviceGetName(card *c, char *out, unsigned n) { SEEN(c); snprintf(out, n, "%s", c->name); return 0; }
int nvmlDeviceGetUUID(card *c, char *out, unsigned n) { SEEN(c); snprintf(out, n, "%s", c->uuid); return 0; }
int nvmlDeviceGetMemoryInfo(card *c, memory *m) { SEEN(c); m->total = c->total * MIB; m->used = s.used * MIB; m->free = m->total - m->used; return 0; }
int nvmlDeviceGetMemoryInfo_v2(card *c, memory_v2 *m) { SEEN(c); m->total = c->total * MIB; m->reserved = 0; m->used = s.used * MIB; m->free = m->total - m->used; return 0; }
int nvmlDeviceGetCudaComputeCapability(card *c, int *major, int *minor) { SEEN(c); if (!c->major) return NOT_SUPPORTED; *major = c->major; *minor = c->minor; return 0; }
int nvmlDeviceGetUtilizationRates(card *c, rates *r) { WHOLE(c); r->gpu = (unsigned)s.util; r->memory = 3; return 0; }
int nvmlDeviceGetPowerUsage(card *c, unsigned *mw) { WHOLE(c); *mw = (unsigned)s.power; return 0; }
int nvmlDeviceGetPowerManagementLimit(card *c, unsigned *mw) { WHOLE(c); if (s.limit < 0) return NOT_SUPPORTED; *mw = (unsigned)s.limit; return 0; }
int nvmlDeviceGetEnforcedPowerLimit(card *c, unsigned *mw) { return nvmlDeviceGetPowerManagementLimit(c, mw); }
int nvmlDeviceGetPowerManagementDefaultLimit(card *c, unsigned *mw) { WHOLE(c); if (c->standard < 0) return NOT_SUPPORTED; *mw = (unsigned)c->standard; return 0; }
int nvmlDeviceGetTotalEnergyConsumption(card *c, unsigned long long *mj) {
    WHOLE(c);
    if (!c->energy && s.energy < 0) return NOT_SUPPORTED;
    *mj = s.energy >= 0 ? (unsigned long long)s.energy : (unsigned long long)((double)s.power * clock_now(CLOCK_MONOTONIC));
    return 0;
}
int nvmlDeviceGetTemperature(card *c, int sensor, unsigned *t) { (void)sensor; WHOLE(c); *t = (unsigned)s.temp; return 0; }
int nvmlDeviceGetTemperatureV(card *c, int *t) { WHOLE(c); t[2] = s.temp; return 0; }
int nvmlDeviceGetFanSpeed(card *c, unsigned *fan) { WHOLE(c); if (c->fan < 0) return NOT_SUPPORTED; *fan = (unsigned)c->fan; return 0; }
int nvmlDeviceGetEccMode(card *c, unsigned *on, unsigned *next) { WHOLE(c); if (c->ecc < 0) return NOT_SUPPORTED; *on = *next = (unsigned)c->ecc; return 0; }
int nvmlDeviceGetClockInfo(card *c, int domain, unsigned *mhz) { WHOLE(c); *mhz = domain == 2 ? 9501 : 2205; return 0; }
int nvmlDeviceGetCurrentClocksThrottleReasons(card *c, unsigned long long *bits) { WHOLE(c); *bits = (unsigned long long)s.throttle; return 0; }
int nvmlDeviceGetCurrentClocksEventReasons(card *c, unsigned long long *bits) {
    if (getenv("FAKE_NVML_OLD")) return NO_FUNCTION;
    return nvmlDeviceGetCurrentClocksThrottleReasons(c, bits);
}
static int link_is(card *c, int value, unsigned *out) { SEEN(c); if (!c->pcie[1]) return NOT_SUPPORTED; *out = (unsigned)value; return 0; }
int nvmlDeviceGetCurrPcieLinkGeneration(card *c, unsigned *g) { return link_is(c, now(c).pcie[0], g); }
int nvmlDeviceGetMaxPcieLinkGeneration(card *c, unsigned *g) { return link_is(c, c->pcie[1], g); }
int nvmlDeviceGetCurrPcieLinkWidth(card *c, unsigned *w) { return link_is(c, now(c).pcie[1], w); }
int nvmlDeviceGetMaxPcieLinkWidth(card *c, unsigned *w) { return link_is(c, c->pcie[3], w); }
int nvmlDeviceGetPciInfo_v3(card *c, pci *p) {
    WHOLE(c);
    memset(p, 0, sizeof *p);
    p->bus = (unsigned)(c - cards) + 1;
    snprintf(p->legacy, sizeof p->legacy, "0000:%02X:00.0", p->bus);
    snprintf(p->full, sizeof p->full, "00000000:%02X:00.0", p->bus);
    return 0;
}
int nvmlDeviceGetFieldValues(card *c, int n, field *f) {
    SEEN(c);
    for (int i = 0; i < n; i++) {
        f[i].result = f[i].field == RECOVERY_FIELD && s.recovery >= 0 ? 0 : NOT_SUPPORTED;
        f[i].value.number = (unsigned)s.recovery;
    }
    return 0;
}
int nvmlDeviceGetMigMode(card *c, unsigned *on, unsigned *pending) { WHOLE(c); if (!c->mig) return NOT_SUPPORTED; *on = *pending = 1; return 0; }
int nvmlDeviceGetMaxMigDeviceCount(card *c, unsigned *n) { WHOLE(c); *n = c->mig ? 7 : 0; return 0; }
int nvmlDeviceGetMigDeviceHandleByIndex(card *c, unsigned n, card **out) {
    SEEN(c);
    for (unsigned i = 0; i < instance_count; i++)
        if (instances[i].whole == c && n-- == 0) { *out = &instances[i]; return 0; }
    return NOT_FOUND;
}
int nvmlDeviceIsMigDeviceHandle(card *c, unsigned *is) { *is = c->whole != NULL; return 0; }
int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(card *c, card **whole) { SEEN(c); if (!c->whole) return 2; *whole = c->whole; return 0; }
int nvmlDeviceGetCpuAffinity(card *c, unsigned n, unsigned long *set) { SEEN(c); memset(set, 0, n * sizeof *set); set[0] = 1; return 0; }
int nvmlDeviceGetDisplayMode(card *c, int *on) { SEEN(c); if (s.display < 0) return NOT_SUPPORTED; *on = s.display != 0; return 0; }
int nvmlDeviceGetDisplayActive(card *c, int *on) { SEEN(c); if (s.display < 0) return NOT_SUPPORTED; *on = s.display == 1; return 0; }

static int processes(card *c, char kind, unsigned *n, process *p) {
    SEEN(c);
    process found[32];
    unsigned count = 0;
    char *words = s.words, *word;
    if (!s.known && s.used && kind == 'c') found[count++] = (process){ 4242, s.used * MIB, 0xFFFFFFFF, 0xFFFFFFFF };
    while (count < 32 && (word = strsep(&words, " \n")) != NULL) {
        char letter; unsigned pid; long long mib;
        if (sscanf(word, "%c%u=%lld", &letter, &pid, &mib) != 3 || (letter != kind && letter != 'b')) continue;
        if (count == 0 && letter != 'g' && mib >= 0) mib += (long long)s.grown;
        found[count++] = (process){ pid, mib < 0 ? ~0ULL : (unsigned long long)mib * MIB, 0xFFFFFFFF, 0xFFFFFFFF };
    }
    if (count == 0) { *n = 0; return 0; }
    if (*n < count) { *n = count; return TOO_SMALL; }
    *n = count;
    memcpy(p, found, count * sizeof *p);
    return 0;
}
int nvmlDeviceGetComputeRunningProcesses_v3(card *c, unsigned *n, process *p) { return processes(c, 'c', n, p); }
int nvmlDeviceGetGraphicsRunningProcesses_v3(card *c, unsigned *n, process *p) { return processes(c, 'g', n, p); }

int nvmlDeviceGetSupportedEventTypes(card *c, unsigned long long *types) { WHOLE(c); *types = c->events ? 8 : 0; return 0; }
int nvmlEventSetCreate(event_set **set) { *set = calloc(1, sizeof **set); return 0; }
int nvmlEventSetFree(event_set *set) { free(set); return 0; }
int nvmlDeviceRegisterEvents(card *c, unsigned long long types, event_set *set) {
    (void)types;
    WHOLE(c);
    if (!c->events || set->count == CARDS_MAX) return NOT_SUPPORTED;
    set->told[set->count] = s.xid_count; /* what was before is told to nobody */
    set->cards[set->count++] = c;
    return 0;
}
int nvmlEventSetWait_v2(event_set *set, event *e, unsigned ms) {
    double until = clock_now(CLOCK_MONOTONIC) + ms / 1000.0;
    for (;;) {
        int lost = 0;
        for (unsigned i = 0; i < set->count; i++) {
            state s = now(set->cards[i]);
            if (set->told[i] < s.xid_count) {
                *e = (event){ set->cards[i], 8, (unsigned long long)s.xids[set->told[i]++], 0xFFFFFFFF, 0xFFFFFFFF };
                return 0;
            }
            lost |= s.lost;
        }
        if (lost) return LOST;
        if (clock_now(CLOCK_MONOTONIC) >= until) return TIMEOUT;
        nanosleep(&(struct timespec){ 0, 10000000 }, NULL);
    }
}
