/* A wall clock that a test can move: preloaded into the processes of a cluster.
 *
 * The first eight bytes of the file named by BRIDLE_TEST_CLOCK are how far off the clock is, in nanoseconds, and can change at any moment. Monotonic
 * clocks are left alone. (libfaketime does the same, but its start calls malloc, which is jemalloc, which asks for the time: it never returns.)
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const int64_t none;
static const volatile int64_t *off_ns = &none;

__attribute__((constructor)) static void begin(void) {
    const char *name = getenv("BRIDLE_TEST_CLOCK");
    int file = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *page = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (page != MAP_FAILED) off_ns = page;
}

static void move(struct timespec *at, int64_t by_ns) {
    int64_t ns = at->tv_nsec + by_ns % 1000000000;
    at->tv_sec += by_ns / 1000000000 + (ns >= 1000000000) - (ns < 0);
    at->tv_nsec = ns + (ns < 0 ? 1000000000 : 0) - (ns >= 1000000000 ? 1000000000 : 0);
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    int result = (int)syscall(SYS_clock_gettime, clock, at);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) move(at, *off_ns);
    return result;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec now;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &now) != 0) return -1;
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now) != 0) return (time_t)-1;
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}

/* Deadlines are on the moved clock, and the kernel knows the real one. Those of monotonic clocks are small: seconds since the machine's start. */
int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex, const struct timespec *restrict deadline) {
    struct timespec real = *deadline;
    if (real.tv_sec < 1000000000) return pthread_cond_clockwait(condition, mutex, CLOCK_MONOTONIC, &real);
    move(&real, -*off_ns);
    return pthread_cond_clockwait(condition, mutex, CLOCK_REALTIME, &real);
}
