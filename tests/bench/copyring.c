/* The C limit: copies blocks with the least code that does it, to measure dmcopy against.
 *
 *   copyring ring|plain BLOCK DEPTH COUNT LIST SOURCE DEST...
 *
 * ring:  DEPTH blocks in flight on one io_uring; each is read once, then written to every DEST.
 * plain: one block at a time with pread and pwrite.
 * LIST:  a file of COUNT pairs of u64, byte offsets in source and destination; "-" copies the first
 *        COUNT blocks in order, and flushes, as a whole copy does.
 * Prints one line of JSON. The time starts before the ring is made and ends with the last write.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { MAX_DESTS = 8, MAX_DEPTH = 256 };

struct pair {
    uint64_t from, to;
};

static struct pair *list;
static uint64_t count, next;
static size_t block;
static int source, dests[MAX_DESTS], n_dests;
static char *memory;

static void die(const char *what, int error)
{
    fprintf(stderr, "copyring: %s: %s\n", what, error ? strerror(error) : "bad value");
    exit(1);
}

static int open_direct(const char *path, int flags)
{
    int fd = open(path, flags | O_DIRECT | O_CLOEXEC);
    if (fd < 0)
        die(path, errno);
    return fd;
}

static void read_list(const char *path)
{
    list = malloc(count * sizeof *list);
    if (!list)
        die("list", ENOMEM);
    if (!strcmp(path, "-")) {
        for (uint64_t i = 0; i < count; i++)
            list[i].from = list[i].to = i * block;
        return;
    }
    FILE *file = fopen(path, "rb");
    if (!file)
        die(path, errno);
    if (fread(list, sizeof *list, count, file) != count)
        die(path, 0);
    fclose(file);
}

static void plain(void)
{
    for (; next < count; next++) {
        if (pread(source, memory, block, list[next].from) != (ssize_t)block)
            die("read", errno);
        for (int i = 0; i < n_dests; i++)
            if (pwrite(dests[i], memory, block, list[next].to) != (ssize_t)block)
                die("write", errno);
    }
}

/* A slot is a buffer with a block on its way. user_data: slot * 2, plus 1 for a write. */
static uint64_t target[MAX_DEPTH];
static int writes_left[MAX_DEPTH];

static struct io_uring_sqe *get_sqe(struct io_uring *ring)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
    if (!sqe)
        die("submission queue", ENOBUFS);
    return sqe;
}

static void start_read(struct io_uring *ring, unsigned slot)
{
    struct io_uring_sqe *sqe = get_sqe(ring);
    io_uring_prep_read(sqe, source, memory + slot * block, block, list[next].from);
    sqe->user_data = slot * 2;
    target[slot] = list[next++].to;
}

static void start_writes(struct io_uring *ring, unsigned slot)
{
    writes_left[slot] = n_dests;
    for (int i = 0; i < n_dests; i++) {
        struct io_uring_sqe *sqe = get_sqe(ring);
        io_uring_prep_write(sqe, dests[i], memory + slot * block, block, target[slot]);
        sqe->user_data = slot * 2 + 1;
    }
}

static void with_ring(unsigned depth)
{
    struct io_uring ring;
    uint64_t done = 0;
    int error = io_uring_queue_init(2 * depth * n_dests, &ring, 0);
    if (error)
        die("io_uring", -error);
    for (unsigned slot = 0; slot < depth && next < count; slot++)
        start_read(&ring, slot);
    while (done < count) {
        struct io_uring_cqe *cqe;
        unsigned head, seen = 0;
        error = io_uring_submit_and_wait(&ring, 1);
        if (error < 0 && error != -EINTR)
            die("submit", -error);
        io_uring_for_each_cqe(&ring, head, cqe) {
            unsigned slot = cqe->user_data >> 1;
            seen++;
            if (cqe->res != (int)block)
                die(cqe->user_data & 1 ? "write" : "read", cqe->res < 0 ? -cqe->res : 0);
            if (!(cqe->user_data & 1)) {
                start_writes(&ring, slot);
            } else if (--writes_left[slot] == 0) {
                done++;
                if (next < count)
                    start_read(&ring, slot);
            }
        }
        io_uring_cq_advance(&ring, seen);
    }
    io_uring_queue_exit(&ring);
}

static double seconds(struct timeval t)
{
    return t.tv_sec + t.tv_usec / 1e6;
}

int main(int argc, char **argv)
{
    struct timespec begin, end;
    struct rusage before, after;
    if (argc < 8 || argc > 7 + MAX_DESTS)
        die("usage: copyring ring|plain BLOCK DEPTH COUNT LIST SOURCE DEST...", EINVAL);
    block = strtoul(argv[2], NULL, 10);
    unsigned depth = strtoul(argv[3], NULL, 10);
    count = strtoull(argv[4], NULL, 10);
    if (!block || !depth || depth > MAX_DEPTH)
        die("block or depth", 0);
    read_list(argv[5]);
    source = open_direct(argv[6], O_RDONLY);
    for (n_dests = 0; 7 + n_dests < argc; n_dests++)
        dests[n_dests] = open_direct(argv[7 + n_dests], O_WRONLY);
    if (posix_memalign((void **)&memory, 4096, block * depth))
        die("memory", ENOMEM);
    memset(memory, 0, block * depth);

    getrusage(RUSAGE_SELF, &before);
    clock_gettime(CLOCK_MONOTONIC, &begin);
    if (!strcmp(argv[1], "plain"))
        plain();
    else
        with_ring(depth);
    for (int i = 0; i < n_dests; i++)
        if (!strcmp(argv[5], "-") && fdatasync(dests[i]))
            die("flush", errno);
    clock_gettime(CLOCK_MONOTONIC, &end);
    getrusage(RUSAGE_SELF, &after);
    printf("{\"seconds\": %.6f, \"cpu\": %.6f}\n",
           (end.tv_sec - begin.tv_sec) + (end.tv_nsec - begin.tv_nsec) / 1e9,
           seconds(after.ru_utime) - seconds(before.ru_utime) + seconds(after.ru_stime) -
               seconds(before.ru_stime));
    return 0;
}
