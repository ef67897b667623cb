/* Counts the calls of this process that change a file system, and makes one of them fail or fatal.

   Preloaded (LD_PRELOAD), it stands before the C library. Until `arm` is called it does nothing.
   Calls count only below some folders, over all threads, one at a time. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum fault { COUNT, KILL_BEFORE, KILL_AFTER, FAIL, FAIL_FROM, FULL_FROM, SHORT, STOP };

static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;
static char roots[4096];
static enum fault fault;
static long turn, counted;
static int number, log_descriptor = -1, armed;

/* `below`: paths, one a line. `which`: the call that the fault befalls, from 1; of SHORT, the most
   bytes that a call writes. */
void arm(const char *below, int what, long which, int error, int log) {
  snprintf(roots, sizeof roots, "%s", below);
  fault = what, turn = which, number = error, log_descriptor = log, counted = 0;
  __atomic_store_n(&armed, 1, __ATOMIC_SEQ_CST);
}

long disarm(void) {
  __atomic_store_n(&armed, 0, __ATOMIC_SEQ_CST);
  return counted;
}

/* ---------------------------------------------------------------- where a call acts */

static void of_descriptor(int descriptor, char *path) {
  char link[64];
  ssize_t length = -1;
  if (descriptor == AT_FDCWD) {
    if (getcwd(path, PATH_MAX)) return;
  } else {
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    length = readlink(link, path, PATH_MAX - 1);
  }
  path[length < 0 ? 0 : length] = 0;
}

static void of_name(int folder, const char *name, char *path) {
  if (!name || name[0] == '/') {
    snprintf(path, PATH_MAX, "%s", name ? name : "");
    return;
  }
  of_descriptor(folder, path);
  size_t length = strlen(path);
  snprintf(path + length, PATH_MAX - length, "/%s", name);
}

static int is_below(const char *path) {
  for (const char *root = roots; *root;) {
    size_t length = strcspn(root, "\n");
    if (!strncmp(path, root, length) && (path[length] == '/' || !path[length])) return 1;
    root += length + (root[length] == '\n');
  }
  return 0;
}

/* ---------------------------------------------------------------- what becomes of it */

struct call {
  const char *name;
  char path[PATH_MAX], other[PATH_MAX];
  unsigned flags;
  int takes_space, counts, fails;
  struct stat what;
};

static void start(struct call *call) {
  int before = errno;
  call->counts = __atomic_load_n(&armed, __ATOMIC_SEQ_CST) &&
                 (is_below(call->path) || (call->other[0] && is_below(call->other)));
  call->fails = 0;
  if (!call->counts) return;
  pthread_mutex_lock(&one_at_a_time);
  counted++;
  if (fault == KILL_BEFORE && counted == turn) kill(getpid(), SIGKILL), pause();
  if (fault == STOP && counted == turn) kill(getpid(), SIGSTOP);
  call->fails = (fault == FAIL && counted == turn) || (fault == FAIL_FROM && counted >= turn) ||
                (fault == FULL_FROM && counted >= turn && call->takes_space);
  errno = before;
}

static long end(struct call *call, long result) {
  int after = errno;
  if (!call->counts) return result;
  if (log_descriptor >= 0) {
    char line[2 * PATH_MAX + 200];
    int length = snprintf(line, sizeof line, "%s\t%lld:%lld\t%u\t%ld\t%s\t%s\n", call->name,
                          (long long)call->what.st_dev, (long long)call->what.st_ino, call->flags,
                          result, call->path, call->other);
    syscall(SYS_write, log_descriptor, line, (size_t)length);
  }
  if (fault == KILL_AFTER && counted == turn) kill(getpid(), SIGKILL), pause();
  pthread_mutex_unlock(&one_at_a_time);
  errno = after;
  return result;
}

static int idle(void) { return !__atomic_load_n(&armed, __ATOMIC_SEQ_CST); }

#define REAL(name, type, ...)                                                  \
  static type (*real)(__VA_ARGS__);                                            \
  if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

#define RUN(call, type, ...)                                                   \
  start(&(call));                                                              \
  type result = (call).fails ? (errno = number, -1) : real(__VA_ARGS__);       \
  return (type)end(&(call), result)

static size_t shortened(const struct call *call, size_t size) {
  size_t most = fault == SHORT && is_below(call->path) ? (size_t)turn : size;
  return size < most ? size : most;
}

static void on_file(struct call *call, const char *name, int descriptor, int takes_space) {
  call->name = name, call->other[0] = 0, call->flags = 0, call->takes_space = takes_space;
  memset(&call->what, 0, sizeof call->what);
  of_descriptor(descriptor, call->path);
  fstat(descriptor, &call->what);
}

static void on_name(struct call *call, const char *name, int folder, const char *path,
                    int takes_space) {
  call->name = name, call->other[0] = 0, call->flags = 0, call->takes_space = takes_space;
  memset(&call->what, 0, sizeof call->what);
  of_name(folder, path, call->path);
  lstat(call->path, &call->what);
}

/* ---------------------------------------------------------------- bytes */

#define WRITES(symbol, parameters, arguments, shorter)                         \
  ssize_t symbol parameters {                                                  \
    REAL(#symbol, ssize_t, UNPACK parameters);                                 \
    if (idle()) return real arguments;                                         \
    struct call call;                                                          \
    on_file(&call, #symbol, descriptor, 1);                                    \
    shorter;                                                                   \
    RUN(call, ssize_t, UNPACK arguments);                                      \
  }
#define UNPACK(...) __VA_ARGS__

WRITES(write, (int descriptor, const void *data, size_t size), (descriptor, data, size),
       size = shortened(&call, size))
WRITES(pwrite, (int descriptor, const void *data, size_t size, off_t offset),
       (descriptor, data, size, offset), size = shortened(&call, size))
WRITES(pwrite64, (int descriptor, const void *data, size_t size, off64_t offset),
       (descriptor, data, size, offset), size = shortened(&call, size))
WRITES(sendfile, (int descriptor, int source, off_t *offset, size_t size),
       (descriptor, source, offset, size), size = shortened(&call, size))
WRITES(sendfile64, (int descriptor, int source, off64_t *offset, size_t size),
       (descriptor, source, offset, size), size = shortened(&call, size))
WRITES(copy_file_range,
       (int source, off64_t *from, int descriptor, off64_t *to, size_t size, unsigned flags),
       (source, from, descriptor, to, size, flags), size = shortened(&call, size))
WRITES(writev, (int descriptor, const struct iovec *parts, int count),
       (descriptor, parts, count), count = fault == SHORT && count > 1 ? 1 : count)
WRITES(pwritev, (int descriptor, const struct iovec *parts, int count, off_t offset),
       (descriptor, parts, count, offset), count = fault == SHORT && count > 1 ? 1 : count)

#define ON_FILE(symbol, takes_space, parameters, arguments)                    \
  int symbol parameters {                                                      \
    REAL(#symbol, int, UNPACK parameters);                                     \
    if (idle()) return real arguments;                                         \
    struct call call;                                                          \
    on_file(&call, #symbol, descriptor, takes_space);                          \
    RUN(call, int, UNPACK arguments);                                          \
  }

ON_FILE(fsync, 0, (int descriptor), (descriptor))
ON_FILE(fdatasync, 0, (int descriptor), (descriptor))
ON_FILE(syncfs, 0, (int descriptor), (descriptor))
ON_FILE(fchmod, 0, (int descriptor, mode_t mode), (descriptor, mode))
ON_FILE(ftruncate, 1, (int descriptor, off_t size), (descriptor, size))
ON_FILE(ftruncate64, 1, (int descriptor, off64_t size), (descriptor, size))
ON_FILE(posix_fallocate, 1, (int descriptor, off_t from, off_t size), (descriptor, from, size))

int ioctl(int descriptor, unsigned long request, ...) {
  va_list rest;
  va_start(rest, request);
  void *argument = va_arg(rest, void *);
  va_end(rest);
  REAL("ioctl", int, int, unsigned long, ...);
  if (request != FICLONE || idle()) return real(descriptor, request, argument);
  struct call call;
  on_file(&call, "ficlone", descriptor, 1);
  RUN(call, int, descriptor, request, argument);
}

/* ---------------------------------------------------------------- names */

#define ON_NAME(symbol, takes_space, folder, path, parameters, arguments)      \
  int symbol parameters {                                                      \
    REAL(#symbol, int, UNPACK parameters);                                     \
    if (idle()) return real arguments;                                         \
    struct call call;                                                          \
    on_name(&call, #symbol, folder, path, takes_space);                        \
    RUN(call, int, UNPACK arguments);                                          \
  }

ON_NAME(unlink, 0, AT_FDCWD, path, (const char *path), (path))
ON_NAME(unlinkat, 0, folder, path, (int folder, const char *path, int flags),
        (folder, path, flags))
ON_NAME(rmdir, 0, AT_FDCWD, path, (const char *path), (path))
ON_NAME(mkdir, 1, AT_FDCWD, path, (const char *path, mode_t mode), (path, mode))
ON_NAME(mkdirat, 1, folder, path, (int folder, const char *path, mode_t mode),
        (folder, path, mode))
ON_NAME(symlink, 1, AT_FDCWD, path, (const char *target, const char *path), (target, path))
ON_NAME(symlinkat, 1, folder, path, (const char *target, int folder, const char *path),
        (target, folder, path))
ON_NAME(chmod, 0, AT_FDCWD, path, (const char *path, mode_t mode), (path, mode))
ON_NAME(fchmodat, 0, folder, path, (int folder, const char *path, mode_t mode, int flags),
        (folder, path, mode, flags))

#define ON_TWO(symbol, first, second, with, parameters, arguments)             \
  int symbol parameters {                                                      \
    REAL(#symbol, int, UNPACK parameters);                                     \
    if (idle()) return real arguments;                                         \
    struct call call;                                                          \
    on_name(&call, #symbol, first, from, 1);                                   \
    of_name(second, to, call.other);                                           \
    call.flags = with;                                                         \
    RUN(call, int, UNPACK arguments);                                          \
  }

ON_TWO(rename, AT_FDCWD, AT_FDCWD, 0, (const char *from, const char *to), (from, to))
ON_TWO(renameat, first, second, 0, (int first, const char *from, int second, const char *to),
       (first, from, second, to))
ON_TWO(renameat2, first, second, flags,
       (int first, const char *from, int second, const char *to, unsigned flags),
       (first, from, second, to, flags))
ON_TWO(link, AT_FDCWD, AT_FDCWD, 0, (const char *from, const char *to), (from, to))
ON_TWO(linkat, first, second, 0,
       (int first, const char *from, int second, const char *to, int flags),
       (first, from, second, to, flags))

#define MODE                                                                   \
  mode_t mode = 0;                                                             \
  if (flags & (O_CREAT | O_TMPFILE)) {                                         \
    va_list rest;                                                              \
    va_start(rest, flags);                                                     \
    mode = va_arg(rest, mode_t);                                               \
    va_end(rest);                                                              \
  }
#define CHANGES(flags)                                                         \
  ((flags) & (O_CREAT | O_TRUNC) || ((flags) & O_TMPFILE) == O_TMPFILE)

#define OPENS(symbol)                                                          \
  int symbol(const char *path, int flags, ...) {                               \
    MODE REAL(#symbol, int, const char *, int, ...);                           \
    if (idle() || !CHANGES(flags)) return real(path, flags, mode);             \
    struct call call;                                                          \
    on_name(&call, #symbol, AT_FDCWD, path, 1);                                \
    RUN(call, int, path, flags, mode);                                         \
  }
#define OPENS_AT(symbol)                                                       \
  int symbol(int folder, const char *path, int flags, ...) {                   \
    MODE REAL(#symbol, int, int, const char *, int, ...);                      \
    if (idle() || !CHANGES(flags)) return real(folder, path, flags, mode);     \
    struct call call;                                                          \
    on_name(&call, #symbol, folder, path, 1);                                  \
    RUN(call, int, folder, path, flags, mode);                                 \
  }

OPENS(open)
OPENS(open64)
OPENS_AT(openat)
OPENS_AT(openat64)
