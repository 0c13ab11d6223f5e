/* The C limit of a snapshot: writes that have their chunk copied out first, with the least code.
 *
 *   cowring CHUNK DEPTH COUNT LIST ORIGIN COW
 *
 * DEPTH writes of one page in flight on one io_uring, at the byte offsets of LIST, a file of COUNT
 * u64; no chunk is there twice. Each chunk is read from ORIGIN and written to the next place of COW;
 * what has been copied when the last batch is durable becomes the next batch: COW is flushed, a page
 * of metadata is written and made durable; then the pages are written to ORIGIN.
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

enum { MAX_DEPTH = 256, PAGE = 4096, ENTRIES = PAGE / 16 };
enum step { READ, COPY, FLUSH, COMMIT, WRITE };

static struct io_uring ring;
static int origin, cow;
static size_t chunk;
static uint64_t *list, count, next, done;
static char *memory, *area, *page;

/* A slot is a write on its way; `waiting` are those whose chunk is copied, `batch` is committed. */
static uint64_t offset[MAX_DEPTH], place[MAX_DEPTH], used, committed;
static unsigned waiting[MAX_DEPTH], n_waiting, batch[MAX_DEPTH], n_batch;

static void die(const char *what, int error)
{
    fprintf(stderr, "cowring: %s: %s\n", what, error ? strerror(error) : "bad value");
    exit(1);
}

static struct io_uring_sqe *get_sqe(unsigned slot, enum step step)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
    if (!sqe)
        die("submission queue", ENOBUFS);
    sqe->user_data = slot * 8 + step;
    return sqe;
}

/* user_data is set by get_sqe, and cleared by the prep functions: put it back. */
#define PREPARE(slot, step, call, ...)                      \
    do {                                                    \
        struct io_uring_sqe *sqe = get_sqe(slot, step);     \
        io_uring_prep_##call(sqe, __VA_ARGS__);             \
        sqe->user_data = (slot) * 8 + (step);               \
    } while (0)

static void start(unsigned slot)
{
    offset[slot] = list[next++];
    /* Behind the header and an area, and behind an area for every ENTRIES chunks. */
    place[slot] = (2 + used + used / ENTRIES) * chunk;
    used++;
    PREPARE(slot, READ, read, origin, memory + slot * chunk, chunk, offset[slot] / chunk * chunk);
}

static void begin_batch(void)
{
    if (n_batch || !n_waiting)
        return;
    memcpy(batch, waiting, n_waiting * sizeof *waiting);
    n_batch = n_waiting;
    n_waiting = 0;
    for (unsigned i = 0; i < n_batch; i++) {
        uint64_t *entry = (uint64_t *)area + 2 * (committed++ % ENTRIES);
        entry[0] = offset[batch[i]] / chunk;
        entry[1] = place[batch[i]] / chunk;
    }
    PREPARE(0u, FLUSH, fsync, cow, IORING_FSYNC_DATASYNC);
}

static void write_area(void)
{
    uint64_t number = (committed - 1) / ENTRIES;
    struct io_uring_sqe *sqe = get_sqe(0, COMMIT);
    io_uring_prep_write(sqe, cow, area, PAGE, (1 + number * (ENTRIES + 1)) * chunk);
    sqe->rw_flags = RWF_DSYNC;
    sqe->user_data = COMMIT;
}

static void write_origin(void)
{
    for (unsigned i = 0; i < n_batch; i++)
        PREPARE(batch[i], WRITE, write, origin, page, PAGE, offset[batch[i]]);
    n_batch = 0;
}

static void completed(unsigned slot, enum step step)
{
    switch (step) {
    case READ:
        PREPARE(slot, COPY, write, cow, memory + slot * chunk, chunk, place[slot]);
        break;
    case COPY:
        waiting[n_waiting++] = slot;
        break;
    case FLUSH:
        write_area();
        break;
    case COMMIT:
        write_origin();
        break;
    case WRITE:
        done++;
        if (next < count)
            start(slot);
        break;
    }
}

static void run(unsigned depth)
{
    int error = io_uring_queue_init(2 * depth + 4, &ring, 0);
    if (error)
        die("io_uring", -error);
    for (unsigned slot = 0; slot < depth && next < count; slot++)
        start(slot);
    while (done < count) {
        struct io_uring_cqe *cqe;
        unsigned head, seen = 0;
        error = io_uring_submit_and_wait(&ring, 1);
        if (error < 0 && error != -EINTR)
            die("submit", -error);
        io_uring_for_each_cqe(&ring, head, cqe) {
            seen++;
            if (cqe->res < 0)
                die("I/O", -cqe->res);
            completed(cqe->user_data / 8, cqe->user_data % 8);
        }
        io_uring_cq_advance(&ring, seen);
        begin_batch();
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
    if (argc != 7)
        die("usage: cowring CHUNK DEPTH COUNT LIST ORIGIN COW", EINVAL);
    chunk = strtoul(argv[1], NULL, 10);
    unsigned depth = strtoul(argv[2], NULL, 10);
    count = strtoull(argv[3], NULL, 10);
    if (chunk < PAGE || !depth || depth > MAX_DEPTH)
        die("chunk or depth", 0);
    list = malloc(count * sizeof *list);
    FILE *file = fopen(argv[4], "rb");
    if (!list || !file || fread(list, sizeof *list, count, file) != count)
        die(argv[4], errno);
    origin = open(argv[5], O_RDWR | O_DIRECT | O_CLOEXEC);
    cow = open(argv[6], O_RDWR | O_DIRECT | O_CLOEXEC);
    if (origin < 0 || cow < 0)
        die("open", errno);
    if (posix_memalign((void **)&memory, PAGE, chunk * depth) ||
        posix_memalign((void **)&area, PAGE, PAGE) || posix_memalign((void **)&page, PAGE, PAGE))
        die("memory", ENOMEM);
    memset(memory, 0, chunk * depth);
    memset(area, 0, PAGE);
    memset(page, 0, PAGE);

    getrusage(RUSAGE_SELF, &before);
    clock_gettime(CLOCK_MONOTONIC, &begin);
    run(depth);
    clock_gettime(CLOCK_MONOTONIC, &end);
    getrusage(RUSAGE_SELF, &after);
    printf("{\"seconds\": %.6f, \"cpu\": %.6f}\n",
           (end.tv_sec - begin.tv_sec) + (end.tv_nsec - begin.tv_nsec) / 1e9,
           seconds(after.ru_utime) - seconds(before.ru_utime) + seconds(after.ru_stime) -
               seconds(before.ru_stime));
    return 0;
}
