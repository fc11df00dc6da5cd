#if defined(__linux__)
#define _GNU_SOURCE
#endif
#include "team.h"

#include <pthread.h>
#include <sched.h>
#if !defined(_WIN32)
#include <signal.h>
#endif
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

/* How often a thread looks for what it waits for before it lets others have the core, and before it sleeps. */
enum { SPINS = 300, LOOKS = 1500 };

/* A caller that waited for a helper for so long (ns), and for more than twice the time of one of its own tasks, has
 * lost the helper to another process. Then calls do without the team for PATIENCE times as long as the wait, or twice as
 * long as the last break if that was not long ago and is longer. So lost helpers cost about 1 / PATIENCE of the time. */
enum { PATIENCE = 16, LONG_WAIT = 100000, LONGEST_BREAK = 2000000000 };

/* Each worker has a range of the tasks. Who has none left takes tasks of others. All take from the front of a range, so
 * tasks follow each other in order, and each can fetch the memory of the next one. A range is one word, for atomic
 * operations: number of the round (32 bits), first task and end (16 bits each). A worker that still has the number of
 * an earlier round cannot take anything. */
struct range {
    _Alignas(64) atomic_uint_least64_t word; /* each in its own cache line */
};
enum { MOST_TASKS = 0xffff };

struct team {
    int helpers;
    atomic_flag taken;
    atomic_uint round; /* another number whenever there is new work */
    atomic_int workers; /* those that take part in this round */
    atomic_size_t done; /* tasks */
    size_t first;       /* the task that ranges call 0 */
    task_function *function;
    const void *argument;
    atomic_int_least64_t resume; /* the end of the break, ns */
    int64_t pause;               /* its length */
    atomic_int sleepers, stop;
    int not_on; /* the core that helpers keep off, or -1 */
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    struct range *ranges;
    struct helper {
        struct team *team;
        int number;
        pthread_t thread;
    } helper[];
};

static void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* A task of a range, or -1 */
static int take(struct range *range, unsigned round) {
    uint64_t word = atomic_load(&range->word);
    for (;;) {
        const unsigned first = word >> 16 & 0xffff, end = word & 0xffff;
        if (word >> 32 != round || first >= end) return -1;
        if (atomic_compare_exchange_weak(&range->word, &word, word + 0x10000)) return (int)first;
    }
}

/* Do tasks until none is left. Return how many. */
static int work(struct team *team, unsigned round, int worker) {
    const int workers = team->helpers + 1;
    int count = 0;
    for (int of = worker, looked = 0; looked < workers; of = (of + 1) % workers, looked++)
        for (int task; (task = take(&team->ranges[of], round)) >= 0; count++) {
            team->function(team->argument, team->first + (size_t)task, worker);
            atomic_fetch_add(&team->done, 1);
        }
    return count;
}

static unsigned wait_for_round(struct team *team, unsigned seen) {
    unsigned round;
    for (int i = 0; i < LOOKS; i++) {
        if ((round = atomic_load(&team->round)) != seen) return round;
        if (i < SPINS) relax();
        else sched_yield();
    }
    pthread_mutex_lock(&team->mutex);
    atomic_fetch_add(&team->sleepers, 1);
    while ((round = atomic_load(&team->round)) == seen) pthread_cond_wait(&team->wake, &team->mutex);
    atomic_fetch_sub(&team->sleepers, 1);
    pthread_mutex_unlock(&team->mutex);
    return round;
}

/* Keep helpers off the caller's core: some schedulers wake a thread on the core of the thread that wakes it. */
static void make_way(struct team *team) {
#if defined(__linux__)
    const int cpu = sched_getcpu();
    cpu_set_t cores;
    if (cpu < 0 || cpu == team->not_on || sched_getaffinity(0, sizeof cores, &cores) || CPU_COUNT(&cores) < 2) return;
    CPU_CLR(cpu, &cores);
    for (int i = 0; i < team->helpers; i++) pthread_setaffinity_np(team->helper[i].thread, sizeof cores, &cores);
    team->not_on = cpu;
#else
    (void)team;
#endif
}

static void next_round(struct team *team, unsigned round) {
    atomic_store(&team->round, round);
    if (atomic_load(&team->sleepers)) {
        make_way(team);
        pthread_mutex_lock(&team->mutex);
        pthread_cond_broadcast(&team->wake);
        pthread_mutex_unlock(&team->mutex);
    }
}

static void *help(void *argument) {
    struct helper *self = argument;
    for (unsigned seen = 0;;) {
        seen = wait_for_round(self->team, seen);
        if (atomic_load(&self->team->stop)) return NULL;
        if (self->number < atomic_load(&self->team->workers)) work(self->team, seen, self->number);
    }
}

struct team *team_new(int workers) {
    if (workers < 2) return NULL;
    const size_t helpers = (size_t)workers - 1;
    struct team *team = calloc(1, sizeof *team + helpers * sizeof *team->helper);
    void *ranges = NULL;
#if defined(_WIN32)
    if (team) ranges = _aligned_malloc((size_t)workers * sizeof *team->ranges, 64);
#else
    if (team && posix_memalign(&ranges, 64, (size_t)workers * sizeof *team->ranges)) ranges = NULL;
#endif
    if (!ranges) return free(team), NULL;
    team->ranges = ranges;
    for (int i = 0; i < workers; i++) atomic_init(&team->ranges[i].word, 0);
    team->not_on = -1;
    atomic_flag_clear(&team->taken);
    pthread_mutex_init(&team->mutex, NULL);
    pthread_cond_init(&team->wake, NULL);
    for (size_t i = 0; i < helpers; i++) team->helper[i] = (struct helper){.team = team, .number = (int)i + 1};
#if !defined(_WIN32) /* helpers take no signals that are for the program; those of errors stay with who made them */
    sigset_t signals, before;
    sigfillset(&signals);
    sigdelset(&signals, SIGSEGV), sigdelset(&signals, SIGBUS), sigdelset(&signals, SIGFPE), sigdelset(&signals, SIGILL);
    pthread_sigmask(SIG_BLOCK, &signals, &before);
#endif
    int made = 0;
    while (made < workers - 1 && !pthread_create(&team->helper[made].thread, NULL, help, &team->helper[made])) made++;
#if !defined(_WIN32)
    pthread_sigmask(SIG_SETMASK, &before, NULL);
#endif
    team->helpers = made; /* helpers read it only after the first round */
    return team;
}

void team_free(struct team *team) {
    if (!team) return;
    atomic_store(&team->stop, 1);
    next_round(team, atomic_load(&team->round) + 1);
    for (int i = 0; i < team->helpers; i++) pthread_join(team->helper[i].thread, NULL);
    pthread_mutex_destroy(&team->mutex);
    pthread_cond_destroy(&team->wake);
#if defined(_WIN32)
    _aligned_free(team->ranges);
#else
    free(team->ranges);
#endif
    free(team);
}

struct team *team_ready(struct team *team) { return team && now() >= atomic_load(&team->resume) ? team : NULL; }

int team_size(const struct team *team) { return team ? team->helpers + 1 : 1; }

/* Wait for the helpers' last tasks. If that takes long, begin a break. The caller did `count` tasks since `start`. */
static void wait_for_done(struct team *team, size_t tasks, int64_t start, int count) {
    int i = 0;
    for (; i < SPINS && atomic_load(&team->done) < tasks; i++) relax();
    if (i < SPINS) return;
    const int64_t ready = now();
    while (atomic_load(&team->done) < tasks) sched_yield();
    const int64_t end = now(), waited = end - ready;
    if (waited < LONG_WAIT || (count && waited < 2 * (ready - start) / count)) return;
    const int again = end < atomic_load(&team->resume) + team->pause; /* the last break was not long ago */
    team->pause = again && team->pause > PATIENCE * waited / 2 ? 2 * team->pause : PATIENCE * waited;
    if (team->pause > LONGEST_BREAK) team->pause = LONGEST_BREAK;
    atomic_store(&team->resume, end + team->pause);
}

void team_run(struct team *team, int workers, size_t tasks, task_function *function, const void *argument) {
    if (!team || workers < 2 || tasks < 2 || atomic_flag_test_and_set(&team->taken)) {
        for (size_t task = 0; task < tasks; task++) function(argument, task, 0);
        return;
    }
    const int all = team->helpers + 1, some_workers = workers < all ? workers : all;
    for (size_t first = 0; first < tasks; first += MOST_TASKS) {
        const int64_t start = now();
        const uint64_t some = tasks - first < MOST_TASKS ? tasks - first : MOST_TASKS;
        const unsigned round = atomic_load(&team->round) + 1;
        team->function = function;
        team->argument = argument;
        team->first = first;
        atomic_store(&team->workers, some_workers);
        atomic_store(&team->done, 0);
        for (uint64_t i = 0, of = (uint64_t)some_workers; i < (uint64_t)all; i++) {
            const uint64_t from = i < of ? some * i / of : some, to = i < of ? some * (i + 1) / of : some;
            atomic_store(&team->ranges[i].word, (uint64_t)round << 32 | from << 16 | to);
        }
        next_round(team, round);
        wait_for_done(team, some, start, work(team, round, 0));
    }
    atomic_flag_clear(&team->taken);
}
