#include "memory.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

bool guest_ram_create(uint64_t size, struct guest_ram *ram,
                      struct vmm_error *error) {
  *ram = (struct guest_ram){.hva = NULL, .size = size, .fd = -1};
  if (size < RAM_MINIMUM)
    return vmm_fail(error, "memory too small; give at least %lluM",
                    RAM_MINIMUM >> 20);
  if (size > RAM_MAXIMUM)
    return vmm_fail(error, "memory too large; give at most %lluG",
                    RAM_MAXIMUM >> 30);
  if (size % (1 << 20) != 0)
    return vmm_fail(error, "memory must be whole MiB");
  ram->fd = memfd_create("kvmgdb-ram", MFD_CLOEXEC);
  if (ram->fd < 0)
    return vmm_fail(error, "cannot create guest memory: %s", strerror(errno));
  if (ftruncate(ram->fd, (off_t)size) < 0) {
    int reason = errno;
    guest_ram_destroy(ram);
    return vmm_fail(error, "cannot size guest memory to %llu MiB: %s",
                    (unsigned long long)size >> 20, strerror(reason));
  }
  /* The guest decides which pages it touches: reserve nothing in advance. */
  void *hva = mmap(NULL, size, PROT_READ | PROT_WRITE,
                   MAP_SHARED | MAP_NORESERVE, ram->fd, 0);
  if (hva == MAP_FAILED) {
    int reason = errno;
    guest_ram_destroy(ram);
    return vmm_fail(error, "cannot map %llu MiB of guest memory: %s",
                    (unsigned long long)size >> 20, strerror(reason));
  }
  ram->hva = hva;
  return true;
}

void guest_ram_destroy(struct guest_ram *ram) {
  if (ram->hva)
    munmap(ram->hva, ram->size);
  if (ram->fd >= 0)
    close(ram->fd);
  ram->hva = NULL;
  ram->fd = -1;
}

bool guest_ram_clear(struct guest_ram *ram, struct vmm_error *error) {
  if (fallocate(ram->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
                (off_t)ram->size) < 0)
    return vmm_fail(error, "cannot clear guest memory: %s", strerror(errno));
  return true;
}

uint64_t guest_ram_low_size(const struct guest_ram *ram) {
  return ram->size < RAM_LOW_LIMIT ? ram->size : RAM_LOW_LIMIT;
}

uint64_t guest_ram_high_size(const struct guest_ram *ram) {
  return ram->size - guest_ram_low_size(ram);
}

/* True if [start, start + length) lies in [0, size); never overflows. */
static bool range_within(uint64_t start, uint64_t length, uint64_t size) {
  return start <= size && length <= size - start;
}

void *guest_ram_at(const struct guest_ram *ram, uint64_t gpa, uint64_t length) {
  uint64_t low = guest_ram_low_size(ram);
  if (range_within(gpa, length, low))
    return ram->hva + gpa;
  if (gpa >= RAM_HIGH_BASE &&
      range_within(gpa - RAM_HIGH_BASE, length, guest_ram_high_size(ram)))
    return ram->hva + low + (gpa - RAM_HIGH_BASE);
  return NULL;
}

bool guest_ram_write(struct guest_ram *ram, uint64_t gpa, const void *data,
                     uint64_t length, const char *what,
                     struct vmm_error *error) {
  void *destination = guest_ram_at(ram, gpa, length);
  if (!destination)
    return vmm_fail(error,
                    "%s does not fit into guest memory (%llu bytes at %#llx); "
                    "give the guest more with --memory",
                    what, (unsigned long long)length, (unsigned long long)gpa);
  if (length > 0)
    memcpy(destination, data, length);
  return true;
}

size_t guest_ram_map(const struct guest_ram *ram,
                     struct memory_map_entry entries[MEMORY_MAP_MAX]) {
  size_t count = 0;
  entries[count++] =
      (struct memory_map_entry){0, RAM_CONVENTIONAL_END, MEMORY_MAP_RAM};
  entries[count++] = (struct memory_map_entry){RAM_CONVENTIONAL_END,
                                               0xa0000 - RAM_CONVENTIONAL_END,
                                               MEMORY_MAP_RESERVED};
  entries[count++] = (struct memory_map_entry){
      RAM_FIRMWARE_START, RAM_FIRMWARE_END - RAM_FIRMWARE_START,
      MEMORY_MAP_RESERVED};
  entries[count++] = (struct memory_map_entry){
      RAM_FIRMWARE_END, guest_ram_low_size(ram) - RAM_FIRMWARE_END,
      MEMORY_MAP_RAM};
  if (guest_ram_high_size(ram) > 0)
    entries[count++] = (struct memory_map_entry){
        RAM_HIGH_BASE, guest_ram_high_size(ram), MEMORY_MAP_RAM};
  return count;
}
