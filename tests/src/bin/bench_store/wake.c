/* What it costs on this machine to wake many processes at once: each waits for a word in shared memory and
 * then writes a head and 1,000 bytes to a pipe of its own. Prints when the first, the middle and the last of
 * them had written. */
#define _GNU_SOURCE
#include <limits.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { HEAD = 182, BODY = 1000, EVENTS = 256, DESCRIPTORS = 65536 };

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1e3 + time.tv_nsec / 1e6;
}

static void wait_and_write(volatile int *word, int to)
{
    static char bytes[HEAD + BODY];
    while (!*word)
        syscall(SYS_futex, word, FUTEX_WAIT, 0, NULL, NULL, 0);
    if (write(to, bytes, HEAD) != HEAD || write(to, bytes, BODY) != BODY)
        _exit(1);
    pause();
    _exit(0);
}

int main(int count, char **words)
{
    static int had[DESCRIPTORS];
    int processes = count > 1 ? atoi(words[1]) : 1000;
    int *word = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int events = epoll_create1(0);
    pid_t *children = calloc(processes, sizeof *children);
    for (int at = 0; at < processes; at++) {
        int ends[2];
        if (pipe(ends) != 0 || ends[0] >= DESCRIPTORS)
            return 1;
        if (!(children[at] = fork()))
            wait_and_write(word, ends[1]);
        close(ends[1]);
        struct epoll_event event = {EPOLLIN, {.fd = ends[0]}};
        epoll_ctl(events, EPOLL_CTL_ADD, ends[0], &event);
    }
    sleep(2);
    double begun = now(), first = 0, middle = 0, last = 0;
    *word = 1;
    syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
    for (int done = 0; done < processes;) {
        struct epoll_event ready[EVENTS];
        int found = epoll_wait(events, ready, EVENTS, -1);
        last = now() - begun;
        for (int at = 0; at < found; at++) {
            char bytes[HEAD + BODY];
            int from = ready[at].data.fd;
            had[from] += read(from, bytes, sizeof bytes);
            if (had[from] <= HEAD)
                continue;
            epoll_ctl(events, EPOLL_CTL_DEL, from, NULL);
            if (++done == 1)
                first = last;
            if (done == (processes + 1) / 2)
                middle = last;
        }
    }
    printf("%.1f %.1f %.1f\n", first, middle, last);
    for (int at = 0; at < processes; at++)
        kill(children[at], SIGKILL);
    return 0;
}
