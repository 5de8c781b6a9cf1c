// Threads that every kernel of a process shares: `parallel` runs tasks 0 to n - 1, each once, on the calling thread and on
// workers that would otherwise sleep. Which thread runs a task is left to chance, what a task computes is not.
//
// Calls from many threads at once share the workers; a child of a fork starts without any and makes its own.

#include <fenv.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>

typedef void (*Task)(void* context, int64_t task, int thread);

namespace {

// One call of `parallel`, on the caller's stack. `next` is the first task nobody took; the rest is under the lock.
struct Job {
    Task body;
    void* context;
    int64_t tasks;
    int64_t next;
    int helpers;
    int wanted;
    int working;
    fenv_t rounding;
    pthread_cond_t idle;
    Job* later;
};

pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
pthread_cond_t work = PTHREAD_COND_INITIALIZER;
Job* jobs = nullptr;
int workers = 0;

void run(Job& job, int thread) {
    for (;;) {
        int64_t task = __atomic_fetch_add(&job.next, 1, __ATOMIC_RELAXED);
        if (task >= job.tasks) return;
        job.body(job.context, task, thread);
    }
}

Job* waiting() {
    for (Job* job = jobs; job; job = job->later)
        if (job->helpers < job->wanted && __atomic_load_n(&job->next, __ATOMIC_RELAXED) < job->tasks) return job;
    return nullptr;
}

void* worker(void*) {
    pthread_mutex_lock(&lock);
    for (;;) {
        Job* job = waiting();
        if (!job) {
            pthread_cond_wait(&work, &lock);
            continue;
        }
        int thread = ++job->helpers;
        job->working++;
        pthread_mutex_unlock(&lock);
        fesetenv(&job->rounding);
        run(*job, thread);
        pthread_mutex_lock(&lock);
        if (--job->working == 0) pthread_cond_signal(&job->idle);
    }
}

// With the lock held. Where the system refuses another thread the caller does more itself.
void hire(int count) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_t detached;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    pthread_t thread;
    while (workers < count && pthread_create(&thread, &detached, worker, nullptr) == 0) workers++;
    pthread_attr_destroy(&detached);
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void before_fork() { pthread_mutex_lock(&lock); }
void in_parent() { pthread_mutex_unlock(&lock); }
void in_child() {
    pthread_mutex_init(&lock, nullptr);
    pthread_cond_init(&work, nullptr);
    jobs = nullptr;
    workers = 0;
}
__attribute__((constructor)) void watch_forks() { pthread_atfork(before_fork, in_parent, in_child); }

}  // namespace

extern "C" __attribute__((visibility("default"))) void parallel(Task body, void* context, int64_t tasks, int threads) {
    int wanted = int((tasks < threads ? tasks : threads) - 1);
    if (wanted < 1) {
        for (int64_t task = 0; task < tasks; task++) body(context, task, 0);
        return;
    }
    Job job = {body, context, tasks, 0, 0, wanted, 0, {}, PTHREAD_COND_INITIALIZER, nullptr};
    fegetenv(&job.rounding);
    pthread_mutex_lock(&lock);
    hire(wanted);
    Job** last = &jobs;
    while (*last) last = &(*last)->later;
    *last = &job;
    for (int i = 0; i < wanted; i++) pthread_cond_signal(&work);
    pthread_mutex_unlock(&lock);

    run(job, 0);

    pthread_mutex_lock(&lock);
    Job** link = &jobs;
    while (*link != &job) link = &(*link)->later;
    *link = job.later;
    while (job.working) pthread_cond_wait(&job.idle, &lock);
    pthread_mutex_unlock(&lock);
    pthread_cond_destroy(&job.idle);
}
