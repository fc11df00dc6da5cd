/* Threads that help with one call at a time. They are made once. They wait for work, first awake, then asleep. */
#ifndef MB_TEAM_H
#define MB_TEAM_H

#include <stddef.h>

typedef void task_function(const void *argument, size_t task, int worker);

struct team;

struct team *team_new(int workers); /* the caller is one of them; NULL if it cannot be made, or for one worker */
void team_free(struct team *);      /* no other thread may use it */
int team_size(const struct team *); /* 1 for NULL */

/* The team, or NULL while it has a break. It has one for a while after a caller waited for helpers that had lost their
 * cores to another process: then one thread is faster. */
struct team *team_ready(struct team *);

/* Call function(argument, task, worker) once for each task, and return when all calls have returned. At most `workers`
 * workers take part. Of T tasks, worker w of W begins with tasks T w / W to T (w + 1) / W, in order; a worker without
 * tasks takes those of others. If the team works for another caller, the caller does all tasks itself, as worker 0. */
void team_run(struct team *, int workers, size_t tasks, task_function *, const void *argument);

#endif
