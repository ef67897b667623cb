/*
 * MD5 of many inputs at once: one chain a SIMD lane.
 *
 * MD5 is a serial chain, so one stream runs at about 0.65 GB/s however wide the machine is. Files
 * are independent, though: one register holds one 32-bit word of W inputs, and W chains advance
 * with each instruction. Two interleaved groups hide the latency of the chain. The words of a
 * block are brought into that form by a transpose in registers.
 *
 * The kernel exists three times, from one source (lanes_kernel.h): 4 wide (SSE2, NEON), 8 wide
 * (AVX2) and 16 wide (AVX-512); the widest that the processor runs is chosen when the module is
 * loaded.
 *
 * On top of it stands a scheduler. Each lane owns an input: a file descriptor with a buffer, or a
 * buffer of the caller. A lane that has no whole block left is refilled, finished, or given the
 * next input, so that memory is bounded whatever the size of the files. When few lanes are left
 * alive, one stream after the other is faster, and the chains are handed over.
 *
 * The module keeps no state, and takes the GIL only to look at its arguments.
 */

#include <patchlevel.h>
#if PY_VERSION_HEX >= 0x030B0000
#define Py_LIMITED_API 0x030B0000 /* the first with the buffer protocol */
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#if !defined(__GNUC__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "needs GCC 12 or Clang, on a little-endian machine; hashlib serves instead"
#endif

#define BLOCK 64              /* bytes that one step of MD5 takes in */
#define BUFFER (128 * 1024)   /* bytes of a lane's buffer: whole blocks, and most files at once */
#define TAIL (2 * BLOCK)      /* room behind it for the padding */
#define MAX_LANES 32
#define MAX_WAITS 10000       /* milliseconds in all that a call waits for a free descriptor */
#define FEW_LANES 2           /* up to so many live chains, one after the other is faster */

static const uint32_t START[4] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476}; /* RFC 1321 */

typedef void (*kernel_fn)(uint32_t (*state)[MAX_LANES], const uint8_t **data, size_t blocks);

#define STEPS(F1, F2, F3, F4, STEP)                                                              \
    STEP(F1, a, b, c, d, 0, 7, 0xd76aa478) STEP(F1, d, a, b, c, 1, 12, 0xe8c7b756)               \
    STEP(F1, c, d, a, b, 2, 17, 0x242070db) STEP(F1, b, c, d, a, 3, 22, 0xc1bdceee)              \
    STEP(F1, a, b, c, d, 4, 7, 0xf57c0faf) STEP(F1, d, a, b, c, 5, 12, 0x4787c62a)               \
    STEP(F1, c, d, a, b, 6, 17, 0xa8304613) STEP(F1, b, c, d, a, 7, 22, 0xfd469501)              \
    STEP(F1, a, b, c, d, 8, 7, 0x698098d8) STEP(F1, d, a, b, c, 9, 12, 0x8b44f7af)               \
    STEP(F1, c, d, a, b, 10, 17, 0xffff5bb1) STEP(F1, b, c, d, a, 11, 22, 0x895cd7be)            \
    STEP(F1, a, b, c, d, 12, 7, 0x6b901122) STEP(F1, d, a, b, c, 13, 12, 0xfd987193)             \
    STEP(F1, c, d, a, b, 14, 17, 0xa679438e) STEP(F1, b, c, d, a, 15, 22, 0x49b40821)            \
    STEP(F2, a, b, c, d, 1, 5, 0xf61e2562) STEP(F2, d, a, b, c, 6, 9, 0xc040b340)                \
    STEP(F2, c, d, a, b, 11, 14, 0x265e5a51) STEP(F2, b, c, d, a, 0, 20, 0xe9b6c7aa)             \
    STEP(F2, a, b, c, d, 5, 5, 0xd62f105d) STEP(F2, d, a, b, c, 10, 9, 0x02441453)               \
    STEP(F2, c, d, a, b, 15, 14, 0xd8a1e681) STEP(F2, b, c, d, a, 4, 20, 0xe7d3fbc8)             \
    STEP(F2, a, b, c, d, 9, 5, 0x21e1cde6) STEP(F2, d, a, b, c, 14, 9, 0xc33707d6)               \
    STEP(F2, c, d, a, b, 3, 14, 0xf4d50d87) STEP(F2, b, c, d, a, 8, 20, 0x455a14ed)              \
    STEP(F2, a, b, c, d, 13, 5, 0xa9e3e905) STEP(F2, d, a, b, c, 2, 9, 0xfcefa3f8)               \
    STEP(F2, c, d, a, b, 7, 14, 0x676f02d9) STEP(F2, b, c, d, a, 12, 20, 0x8d2a4c8a)             \
    STEP(F3, a, b, c, d, 5, 4, 0xfffa3942) STEP(F3, d, a, b, c, 8, 11, 0x8771f681)               \
    STEP(F3, c, d, a, b, 11, 16, 0x6d9d6122) STEP(F3, b, c, d, a, 14, 23, 0xfde5380c)            \
    STEP(F3, a, b, c, d, 1, 4, 0xa4beea44) STEP(F3, d, a, b, c, 4, 11, 0x4bdecfa9)               \
    STEP(F3, c, d, a, b, 7, 16, 0xf6bb4b60) STEP(F3, b, c, d, a, 10, 23, 0xbebfbc70)             \
    STEP(F3, a, b, c, d, 13, 4, 0x289b7ec6) STEP(F3, d, a, b, c, 0, 11, 0xeaa127fa)              \
    STEP(F3, c, d, a, b, 3, 16, 0xd4ef3085) STEP(F3, b, c, d, a, 6, 23, 0x04881d05)              \
    STEP(F3, a, b, c, d, 9, 4, 0xd9d4d039) STEP(F3, d, a, b, c, 12, 11, 0xe6db99e5)              \
    STEP(F3, c, d, a, b, 15, 16, 0x1fa27cf8) STEP(F3, b, c, d, a, 2, 23, 0xc4ac5665)             \
    STEP(F4, a, b, c, d, 0, 6, 0xf4292244) STEP(F4, d, a, b, c, 7, 10, 0x432aff97)               \
    STEP(F4, c, d, a, b, 14, 15, 0xab9423a7) STEP(F4, b, c, d, a, 5, 21, 0xfc93a039)             \
    STEP(F4, a, b, c, d, 12, 6, 0x655b59c3) STEP(F4, d, a, b, c, 3, 10, 0x8f0ccc92)              \
    STEP(F4, c, d, a, b, 10, 15, 0xffeff47d) STEP(F4, b, c, d, a, 1, 21, 0x85845dd1)             \
    STEP(F4, a, b, c, d, 8, 6, 0x6fa87e4f) STEP(F4, d, a, b, c, 15, 10, 0xfe2ce6e0)              \
    STEP(F4, c, d, a, b, 6, 15, 0xa3014314) STEP(F4, b, c, d, a, 13, 21, 0x4e0811a1)             \
    STEP(F4, a, b, c, d, 4, 6, 0xf7537e82) STEP(F4, d, a, b, c, 11, 10, 0xbd3af235)              \
    STEP(F4, c, d, a, b, 2, 15, 0x2ad7d2bb) STEP(F4, b, c, d, a, 9, 21, 0xeb86d391)

/* Adding the round functions of RFC 1321 to w. Of x, y and z, x is there last: what needs it comes
 * last. In ADD_F2 no bit is set twice, so that the two parts may be added one by one. */
#define ADD_F1(w, x, y, z) w += (z) ^ ((x) & ((y) ^ (z)));
#define ADD_F2(w, x, y, z) w += ~(z) & (y), w += (z) & (x);
#define ADD_F2_AT_ONCE(w, x, y, z) w += ((z) & (x)) | (~(z) & (y)); /* one instruction of AVX-512 */
#define ADD_F3(w, x, y, z) w += (x) ^ ((y) ^ (z));
#define ADD_F4(w, x, y, z) w += (y) ^ ((x) | ~(z));

/* ---- one stream ---- */

static void one_stream(uint32_t state[4], const uint8_t *data, size_t blocks) {
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3], m[16];
#define ONE(F, w, x, y, z, i, s, k)                                                              \
    w += m[i] + UINT32_C(k);                                                                     \
    F(w, x, y, z)                                                                                \
    w = ((w << s) | (w >> (32 - s))) + x;
    for (; blocks; blocks--, data += BLOCK) {
        const uint32_t a0 = a, b0 = b, c0 = c, d0 = d;
        memcpy(m, data, BLOCK);
        STEPS(ADD_F1, ADD_F2, ADD_F3, ADD_F4, ONE)
        a += a0, b += b0, c += c0, d += d0;
    }
#undef ONE
    state[0] = a, state[1] = b, state[2] = c, state[3] = d;
}

/* ---- many lanes ---- */

#define WIDTH 4
#define KERNEL md5_x4
#define TARGET
#include "lanes_kernel.h"

#if defined(__x86_64__)
#define WIDTH 8
#define KERNEL md5_x8
#define TARGET __attribute__((target("avx2")))
#include "lanes_kernel.h"

#define WIDTH 16
#define KERNEL md5_x16
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl")))
#include "lanes_kernel.h"
#endif

typedef struct {
    const char *name;
    kernel_fn run;
    int lanes;
} kernel;

static const kernel KERNELS[] = {
    {"portable", md5_x4, 8},
#if defined(__x86_64__)
    {"avx2", md5_x8, 16},
    {"avx512", md5_x16, 32},
#endif
};

static int runs_here(const kernel *k) {
#if defined(__x86_64__)
    if (k->run == md5_x8) return __builtin_cpu_supports("avx2");
    if (k->run == md5_x16)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl");
#endif
    return k->lanes == 8;
}

/* ---- inputs ---- */

typedef struct { /* mirrored by RECORD in dvc_integrity/hashing.py */
    int64_t device, inode, size, mtime_ns, ctime_ns, mode;
} file_state;

typedef struct { /* mirrored by RECORD in dvc_integrity/hashing.py */
    uint8_t digest[16];
    int64_t size; /* bytes that were read */
    file_state before, after;
    int64_t error; /* errno, or one of the two below; 0 if the digest is set */
} record;

#define SPECIAL_FILE (-1) /* a FIFO or a device, where errno would say too little */
#define PUT_ASIDE (-2)    /* not smaller than the limit: nothing was read */

typedef struct { /* shared by the threads of one call, and read by Python while they work */
    int64_t next, files, bytes, stop;
} control;

typedef struct {
    const uint8_t *data;
    Py_ssize_t size;
} memory;

typedef struct {
    /* files */
    const char *names;
    const int64_t *offsets;
    int folder; /* descriptor that relative names start from */
    int cold;
    int open_flags;
    int64_t limit; /* files of so many bytes or more are put aside; 0: none */
    record *records;
    /* or buffers */
    const memory *memories;
    uint8_t *digests;
    int resumed; /* the chains begin at what digests holds, and get no padding */
    /* both */
    int64_t count;
    control *shared;
    const kernel *kernel;
    int lanes;
} job;

typedef struct {
    int64_t index;       /* of its input; -1: idle */
    int file;            /* descriptor; -1 if the input is a buffer */
    int padded;          /* the end of the message is in the buffer */
    const uint8_t *data; /* whole blocks that wait */
    size_t blocks;       /* how many */
    size_t rest;         /* bytes behind them, fewer than a block */
    uint64_t total;      /* bytes of the input so far */
    uint8_t *buffer;     /* BUFFER + TAIL bytes; TAIL where the caller's buffers are hashed */
} lane;

typedef struct {
    job *job;
    lane lanes[MAX_LANES];
    uint32_t state[4][MAX_LANES];
    int64_t waiting; /* an input that found no descriptor free; -1: none */
    int live;
    uint8_t *buffers;
} scheduler;

static const uint8_t ZEROS[BUFFER + TAIL]; /* what idle lanes chew on */

static void put_state(scheduler *s, int i, const uint32_t value[4]) {
    for (int word = 0; word < 4; word++) s->state[word][i] = value[word];
}

static void get_state(const scheduler *s, int i, uint32_t value[4]) {
    for (int word = 0; word < 4; word++) value[word] = s->state[word][i];
}

/* Wraps for times past the year 2262, as the rest of the package does. */
static int64_t nanoseconds(const struct timespec *t) {
    return (int64_t)((uint64_t)t->tv_sec * UINT64_C(1000000000) + (uint64_t)t->tv_nsec);
}

static void keep_stat(file_state *to, const struct stat *from) {
    to->device = (int64_t)from->st_dev;
    to->inode = (int64_t)from->st_ino;
    to->size = (int64_t)from->st_size;
#if defined(__APPLE__)
    to->mtime_ns = nanoseconds(&from->st_mtimespec);
    to->ctime_ns = nanoseconds(&from->st_ctimespec);
#else
    to->mtime_ns = nanoseconds(&from->st_mtim);
    to->ctime_ns = nanoseconds(&from->st_ctim);
#endif
    to->mode = (int64_t)from->st_mode;
}

/* Append RFC 1321's padding to what waits in the buffer. */
static void pad(lane *l, size_t waiting) {
    uint8_t *end = l->buffer + waiting;
    const size_t blocks = (waiting + 9 + BLOCK - 1) / BLOCK;
    const uint64_t bits = l->total * 8;
    *end = 0x80;
    memset(end + 1, 0, blocks * BLOCK - waiting - 1);
    memcpy(l->buffer + blocks * BLOCK - 8, &bits, 8);
    l->data = l->buffer, l->blocks = blocks, l->rest = 0, l->padded = 1;
}

static int open_file(job *j, const char *name) {
    for (;;) {
        const int file = openat(j->folder, name, j->open_flags);
        if (file >= 0) return file;
#ifdef O_NOATIME
        if (errno == EPERM && (j->open_flags & O_NOATIME)) { /* for the owner only */
            j->open_flags &= ~O_NOATIME;
            continue;
        }
#endif
        if (errno != EINTR) return file;
    }
}

static void fail(scheduler *s, lane *l, int error) {
    if (l->file >= 0) close(l->file);
    s->job->records[l->index].error = error;
    s->job->records[l->index].size = (int64_t)l->total;
    __atomic_fetch_add(&s->job->shared->files, 1, __ATOMIC_RELAXED);
    l->index = -1;
}

/* Begin a file. Returns 0 if no descriptor is free and the file has to wait. */
static int begin_file(scheduler *s, int i, int64_t index) {
    job *j = s->job;
    lane *l = &s->lanes[i];
    struct stat found;
    l->index = index, l->total = 0, l->padded = 0, l->blocks = 0, l->rest = 0;
    l->file = open_file(j, j->names + j->offsets[index]);
    if (l->file < 0 && (errno == EMFILE || errno == ENFILE)) {
        l->index = -1;
        return 0;
    }
    if (l->file < 0 || fstat(l->file, &found) < 0) {
        fail(s, l, errno);
        return 1;
    }
    if (!S_ISREG(found.st_mode)) { /* a FIFO, a socket or a device has no content to hash */
        fail(s, l, S_ISDIR(found.st_mode) ? EISDIR : SPECIAL_FILE);
        return 1;
    }
    keep_stat(&j->records[index].before, &found);
    if (j->limit && found.st_size >= j->limit) {
        close(l->file);
        j->records[index].error = PUT_ASIDE;
        l->index = -1;
        return 1;
    }
    l->data = l->buffer;
#ifdef POSIX_FADV_DONTNEED
    if (j->cold) posix_fadvise(l->file, 0, 0, POSIX_FADV_DONTNEED);
#endif
    put_state(s, i, START);
    return 1;
}

static void begin_memory(scheduler *s, int i, int64_t index) {
    lane *l = &s->lanes[i];
    const memory *m = &s->job->memories[index];
    uint32_t value[4];
    l->index = index, l->file = -1, l->padded = s->job->resumed;
    l->data = m->data, l->blocks = (size_t)m->size / BLOCK, l->rest = (size_t)m->size % BLOCK;
    l->total = (uint64_t)m->size;
    memcpy(value, s->job->resumed ? s->job->digests + 16 * index : (const uint8_t *)START, 16);
    put_state(s, i, value);
}

static void finish(scheduler *s, int i) {
    job *j = s->job;
    lane *l = &s->lanes[i];
    uint32_t value[4];
    get_state(s, i, value);
    if (!j->records) {
        memcpy(j->digests + 16 * l->index, value, 16);
    } else {
        record *r = &j->records[l->index];
        struct stat found;
        if (fstat(l->file, &found) < 0) {
            fail(s, l, errno);
            return;
        }
        close(l->file);
        keep_stat(&r->after, &found);
        memcpy(r->digest, value, 16);
        r->size = (int64_t)l->total;
        r->error = 0;
        __atomic_fetch_add(&j->shared->files, 1, __ATOMIC_RELAXED);
    }
    l->index = -1;
}

/* Give a lane without whole blocks its next ones, from its file. */
static void refill_file(scheduler *s, lane *l) {
    const record *r = &s->job->records[l->index];
    ssize_t count;
    memmove(l->buffer, l->data, l->rest);
    do {
        count = read(l->file, l->buffer + l->rest, BUFFER - l->rest);
    } while (count < 0 && errno == EINTR);
    if (count < 0) {
        fail(s, l, errno);
        return;
    }
    const size_t waiting = l->rest + (size_t)count;
    l->total += (uint64_t)count;
    __atomic_fetch_add(&s->job->shared->bytes, count, __ATOMIC_RELAXED);
    /* At the size that fstat gave, the next read could only say 0, or go on for as long as somebody
     * appends; the fstat at the end notices a file that grew meanwhile. A file of size 0 may be one
     * whose size is not known (procfs). */
    if (count == 0 || (r->before.size > 0 && (int64_t)l->total >= r->before.size)) {
        pad(l, waiting);
        return;
    }
    l->data = l->buffer, l->blocks = waiting / BLOCK, l->rest = waiting % BLOCK;
}

static void refill_memory(lane *l) {
    memcpy(l->buffer, l->data, l->rest);
    pad(l, l->rest);
}

static int64_t take(scheduler *s) {
    job *j = s->job;
    if (s->waiting >= 0) {
        const int64_t index = s->waiting;
        s->waiting = -1;
        return index;
    }
    const int64_t next = __atomic_fetch_add(&j->shared->next, 1, __ATOMIC_RELAXED);
    return next < j->count ? next : -1;
}

/* Make every lane that can work ready: with whole blocks, or idle. Returns how many work. */
static int feed(scheduler *s, int *exhausted) {
    job *j = s->job;
    int live = 0, blocked = 0;
    for (int i = 0; i < j->lanes; i++) {
        lane *l = &s->lanes[i];
        for (;;) {
            if (l->index < 0) {
                if (*exhausted || blocked) break;
                const int64_t index = take(s);
                if (index < 0) {
                    *exhausted = 1;
                    break;
                }
                if (j->records) {
                    if (!begin_file(s, i, index)) {
                        s->waiting = index; /* until a lane gives a descriptor back */
                        blocked = 1;
                        break;
                    }
                } else {
                    begin_memory(s, i, index);
                }
            } else if (l->blocks) {
                live++;
                break;
            } else if (l->padded) {
                finish(s, i);
            } else if (j->records) {
                refill_file(s, l);
            } else {
                refill_memory(l);
            }
        }
    }
    return live;
}

static void step_lanes(scheduler *s) {
    const uint8_t *data[MAX_LANES];
    const int lanes = s->job->kernel->lanes;
    size_t blocks = sizeof ZEROS / BLOCK;
    for (int i = 0; i < lanes; i++) {
        const lane *l = &s->lanes[i];
        data[i] = l->index < 0 ? ZEROS : l->data;
        if (l->index >= 0 && l->blocks < blocks) blocks = l->blocks;
    }
    s->job->kernel->run(s->state, data, blocks);
    for (int i = 0; i < lanes; i++) {
        lane *l = &s->lanes[i];
        if (l->index < 0) continue;
        l->data += blocks * BLOCK, l->blocks -= blocks;
    }
}

static void step_streams(scheduler *s) {
    for (int i = 0; i < s->job->lanes; i++) {
        lane *l = &s->lanes[i];
        if (l->index < 0) continue;
        uint32_t value[4];
        get_state(s, i, value);
        one_stream(value, l->data, l->blocks);
        put_state(s, i, value);
        l->data += l->blocks * BLOCK, l->blocks = 0;
    }
}

/* Work until the inputs are used up or somebody says stop. Runs without the GIL. Returns 0, or -1
 * if there is no memory. */
static int work(job *j) {
    scheduler *s = calloc(1, sizeof *s);
    const size_t room = j->records ? BUFFER + TAIL : TAIL;
    int exhausted = 0, waits = 0;
    if (!s) return -1;
    s->buffers = malloc((size_t)j->lanes * room);
    if (!s->buffers) {
        free(s);
        return -1;
    }
    s->job = j, s->waiting = -1;
    for (int i = 0; i < MAX_LANES; i++) {
        s->lanes[i].index = -1;
        if (i < j->lanes) s->lanes[i].buffer = s->buffers + (size_t)i * room;
    }
    for (;;) {
        if (j->shared && __atomic_load_n(&j->shared->stop, __ATOMIC_RELAXED)) break;
        const int live = feed(s, &exhausted);
        if (live > FEW_LANES) {
            step_lanes(s);
        } else if (live) {
            step_streams(s);
        } else if (s->waiting >= 0 && waits < MAX_WAITS) {
            waits++;
            usleep(1000); /* every descriptor is in use elsewhere; they come back */
        } else if (s->waiting >= 0) {
            s->lanes[0].index = s->waiting, s->lanes[0].file = -1, s->waiting = -1;
            fail(s, &s->lanes[0], EMFILE);
        } else {
            break;
        }
    }
    for (int i = 0; i < j->lanes; i++)
        if (s->lanes[i].index >= 0 && s->lanes[i].file >= 0) close(s->lanes[i].file);
    free(s->buffers);
    free(s);
    return 0;
}

/* ---- Python ---- */

static const kernel *choose(int wanted) {
    const int known = (int)(sizeof KERNELS / sizeof *KERNELS);
    if (wanted >= 0) return wanted < known && runs_here(&KERNELS[wanted]) ? &KERNELS[wanted] : NULL;
    for (int i = known - 1; i > 0; i--)
        if (runs_here(&KERNELS[i])) return &KERNELS[i];
    return &KERNELS[0];
}

static const kernel *checked_kernel(int wanted) {
    const kernel *k = choose(wanted);
    if (!k) PyErr_Format(PyExc_ValueError, "kernel %d does not run on this processor", wanted);
    return k;
}

PyDoc_STRVAR(kernels_doc, "kernels() -> list[str | None]\n\n"
"Names of the kernels, None where the processor lacks the instructions; the last is the default.");

static PyObject *kernels(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    const Py_ssize_t known = (Py_ssize_t)(sizeof KERNELS / sizeof *KERNELS);
    PyObject *names = PyList_New(known);
    for (Py_ssize_t i = 0; names && i < known; i++) {
        PyObject *name = runs_here(&KERNELS[i]) ? PyUnicode_FromString(KERNELS[i].name)
                                                : Py_NewRef(Py_None);
        if (!name || PyList_SetItem(names, i, name) < 0) Py_CLEAR(names);
    }
    return names;
}

PyDoc_STRVAR(hash_files_doc,
"hash_files(names, offsets, records, control, folder, cold, limit, lanes, kernel)\n\n"
"Hash files, together with every other thread that is called with the same ``control``.\n\n"
"names: paths, each followed by NUL. offsets: int64[n], where each begins. records: writable, 128\n"
"bytes for each file. control: writable int64[4]: the next file, files done, bytes read, and a\n"
"flag that stops every thread. folder: a descriptor that relative paths start from (-1: here). limit: files\n"
"of so many bytes or more are put aside (0: none). lanes: chains at most. kernel: an index into\n"
"kernels(), -1 for the best.");

static int is_aligned(const Py_buffer *view) { return (uintptr_t)view->buf % sizeof(int64_t) == 0; }

static PyObject *hash_files(PyObject *self, PyObject *args) {
    (void)self;
    Py_buffer names, offsets, records, shared;
    int folder, cold, lanes, wanted, status = -1;
    long long limit;
    if (!PyArg_ParseTuple(args, "y*y*w*w*ipLii", &names, &offsets, &records, &shared, &folder,
                          &cold, &limit, &lanes, &wanted))
        return NULL;
    const int64_t count = offsets.len / (Py_ssize_t)sizeof(int64_t);
    const kernel *k = checked_kernel(wanted);
    if (!k) goto done;
    if (records.len != count * (Py_ssize_t)sizeof(record) ||
        shared.len != (Py_ssize_t)sizeof(control) || !is_aligned(&offsets) ||
        !is_aligned(&records) || !is_aligned(&shared)) {
        PyErr_SetString(PyExc_ValueError, "the buffers do not fit each other");
        goto done;
    }
    const int64_t *start = offsets.buf;
    for (int64_t i = 0; i < count; i++) {
        if (start[i] < 0 || start[i] >= names.len) {
            PyErr_SetString(PyExc_ValueError, "an offset lies outside of the names");
            goto done;
        }
    }
    if (count && ((const char *)names.buf)[names.len - 1] != 0) {
        PyErr_SetString(PyExc_ValueError, "the last name does not end");
        goto done;
    }
    job j = {.names = names.buf, .offsets = start, .cold = cold,
             .folder = folder < 0 ? AT_FDCWD : folder,
             .open_flags = O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, .records = records.buf,
             .limit = limit, .count = count, .shared = shared.buf, .kernel = k,
             .lanes = lanes < 1 || lanes > k->lanes ? k->lanes : lanes};
#ifdef O_NOATIME
    j.open_flags |= O_NOATIME;
#endif
    Py_BEGIN_ALLOW_THREADS
    status = work(&j);
    Py_END_ALLOW_THREADS
    if (status < 0) PyErr_NoMemory();
done:
    PyBuffer_Release(&names), PyBuffer_Release(&offsets), PyBuffer_Release(&records);
    PyBuffer_Release(&shared);
    if (status < 0) return NULL;
    Py_RETURN_NONE;
}

/* Buffers of the caller, held for as long as they are hashed. */
typedef struct {
    Py_ssize_t count;
    Py_buffer *views;
    memory *memories;
} inputs;

static void release(inputs *in) {
    while (in->count) PyBuffer_Release(&in->views[--in->count]);
    PyMem_Free(in->views);
    PyMem_Free(in->memories);
}

static int hold(inputs *in, PyObject *list) {
    const Py_ssize_t count = PyList_Size(list);
    in->count = 0;
    in->views = PyMem_Calloc((size_t)count + 1, sizeof *in->views);
    in->memories = PyMem_Calloc((size_t)count + 1, sizeof *in->memories);
    if (!in->views || !in->memories) PyErr_NoMemory();
    for (; !PyErr_Occurred() && in->count < count; in->count++) {
        Py_buffer *view = &in->views[in->count];
        PyObject *item = PyList_GetItem(list, in->count); /* a __buffer__ may shorten the list */
        if (!item || PyObject_GetBuffer(item, view, PyBUF_SIMPLE) < 0) break;
        in->memories[in->count].data = view->buf, in->memories[in->count].size = view->len;
    }
    if (!PyErr_Occurred()) return 0;
    release(in);
    return -1;
}

/* Hash what is held; 16 bytes for each input go to digests. */
static int hash_held(const inputs *in, uint8_t *digests, int resumed, const kernel *k) {
    control own = {0};
    job j = {.memories = in->memories, .digests = digests, .resumed = resumed,
             .count = in->count, .shared = &own, .kernel = k, .lanes = k->lanes};
    int status;
    Py_BEGIN_ALLOW_THREADS
    status = work(&j);
    Py_END_ALLOW_THREADS
    if (status < 0) PyErr_NoMemory();
    return status;
}

PyDoc_STRVAR(hash_buffers_doc, "hash_buffers(buffers, kernel) -> bytes\n\n"
"Return the digests of a list of buffers, 16 bytes each.");

static PyObject *hash_buffers(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *list;
    inputs in;
    int wanted;
    if (!PyArg_ParseTuple(args, "O!i", &PyList_Type, &list, &wanted)) return NULL;
    const kernel *k = checked_kernel(wanted);
    if (!k || hold(&in, list) < 0) return NULL;
    PyObject *digests = PyBytes_FromStringAndSize(NULL, 16 * in.count);
    if (digests && hash_held(&in, (uint8_t *)PyBytes_AsString(digests), 0, k) < 0)
        Py_CLEAR(digests);
    release(&in);
    return digests;
}

PyDoc_STRVAR(advance_doc, "advance(states, buffers, kernel)\n\n"
"Advance MD5 chains, each by a buffer of whole 64-byte blocks. states: writable, 16 bytes for each\n"
"buffer: the chaining values, which are the digest once the caller has appended the padding.");

static PyObject *advance(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *list;
    Py_buffer states;
    inputs in;
    int wanted, status = -1;
    if (!PyArg_ParseTuple(args, "w*O!i", &states, &PyList_Type, &list, &wanted)) return NULL;
    const kernel *k = checked_kernel(wanted);
    if (k && hold(&in, list) == 0) {
        int fits = states.len == 16 * in.count;
        for (Py_ssize_t i = 0; i < in.count; i++) fits = fits && in.memories[i].size % BLOCK == 0;
        if (fits)
            status = hash_held(&in, states.buf, 1, k);
        else
            PyErr_SetString(PyExc_ValueError, "the buffers do not fit the states");
        release(&in);
    }
    PyBuffer_Release(&states);
    if (status < 0) return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"kernels", kernels, METH_NOARGS, kernels_doc},
    {"hash_files", hash_files, METH_VARARGS, hash_files_doc},
    {"hash_buffers", hash_buffers, METH_VARARGS, hash_buffers_doc},
    {"advance", advance, METH_VARARGS, advance_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, .m_name = "_lanes",
    .m_doc = "MD5 of many inputs at once, one chain a SIMD lane.", .m_size = 0,
    .m_methods = methods, .m_slots = slots,
};

PyMODINIT_FUNC PyInit__lanes(void) { return PyModuleDef_Init(&module); }
