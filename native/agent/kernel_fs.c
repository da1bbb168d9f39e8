#include "kernel_fs.h"
#include "cleanup.h"
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/syscall.h>

static int open_mounted(const char *type) {
  scoped_stream mounts = fopen("/proc/self/mounts", "re");
  if (!mounts)
    return -errno;
  char line[4096], path[1024], found[64];
  while (fgets(line, sizeof(line), mounts)) {
    if (sscanf(line, "%*s %1023s %63s", path, found) != 2 ||
        strcmp(found, type))
      continue;
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0)
      return fd;
  }
  return -ENOENT;
}

int kernel_fs_open(const char *type) {
  int mounted = open_mounted(type);
  if (mounted >= 0)
    return mounted;
  scoped_fd context = (int)syscall(SYS_fsopen, type, FSOPEN_CLOEXEC);
  if (context < 0)
    return -errno;
  if (syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0))
    return -errno;
  int fd = (int)syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, 0);
  return fd >= 0 ? fd : -errno;
}

int64_t kernel_fs_number(int root, const char *path) {
  scoped_fd fd = openat(root, path, O_RDONLY | O_CLOEXEC);
  if (fd < 0)
    return -errno;
  char text[32];
  ssize_t length = read(fd, text, sizeof(text) - 1);
  if (length <= 0)
    return length ? -errno : -ENODATA;
  text[length] = 0;
  char *end;
  errno = 0;
  long long number = strtoll(text, &end, 10);
  if (end == text || errno || number < 0)
    return -EBADMSG;
  return number;
}
