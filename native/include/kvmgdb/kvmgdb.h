/*
 * kvmgdb: the part of guest access that has to be fast.
 *
 * Contract of every function here:
 *  - it returns enum kvmgdb_status, and on anything but KVMGDB_OK fills the
 *    struct kvmgdb_error that is its last parameter (which may be NULL);
 *  - it never prints, exits, blocks on the guest or calls Python (a callback
 *    region calls what its owner gave it, nothing else);
 *  - addresses and lengths are hostile input: ranges that overflow 64 bits are
 *    refused with KVMGDB_ERR_INVALID;
 *  - objects come in create/destroy pairs; destroy accepts NULL;
 *  - several threads may use one kvmgdb_memory at once, except that nothing
 *    else may use it while it is cleared, destroyed or given a region.
 *
 * The declarations between the two cffi markers are what the Python side is
 * told: it is generated from this file, nothing is declared twice.
 */
#ifndef KVMGDB_KVMGDB_H
#define KVMGDB_KVMGDB_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/* cffi: begin */

enum kvmgdb_status {
  KVMGDB_OK = 0,
  KVMGDB_ERR_NO_MEMORY = 1,  /* the host has no memory for us */
  KVMGDB_ERR_INVALID = 2,    /* an argument is wrong: the caller's mistake */
  KVMGDB_ERR_NOT_MAPPED = 3, /* guest-virtual address without a translation */
  KVMGDB_ERR_NO_RAM = 4,     /* guest-physical address without RAM behind it */
  KVMGDB_ERR_GONE = 5,       /* the process that holds the memory has exited */
  KVMGDB_ERR_PERMISSION = 6, /* the host refuses access to that process */
  KVMGDB_ERR_READ_ONLY = 7,  /* write to a region that was added read-only */
  KVMGDB_ERR_IO = 8,         /* anything else; os_error says what */
  KVMGDB_ERR_NOT_FOUND = 9,  /* what was asked for is not there */
  KVMGDB_ERR_MALFORMED = 10, /* guest data that is not what it should be */
};

struct kvmgdb_error {
  enum kvmgdb_status status;
  int os_error; /* errno, or 0 */
  /*
   * Where it failed, in the terms of the function that was called: the
   * guest-physical address for kvmgdb_memory_*, the guest-virtual one for
   * whatever takes a kvmgdb_paging, the offset into the payload for
   * kvmgdb_rsp_unescape.
   */
  uint64_t address;
  /* Level (5..1) of the page-table entry that is absent (NOT_MAPPED) or could
   * not be read (any other status); 0 where it was not for an entry. */
  int level;
  /* NOT_MAPPED: that entry as read. Otherwise the guest-physical address that
   * could not be accessed: of the data, or of the entry where level is set. */
  uint64_t entry;
};

/* ---- guest-physical memory ------------------------------------------- */

struct kvmgdb_memory;

/* Fills `buffer` with `length` bytes from guest-physical `gpa`; 0 or -errno. */
typedef int (*kvmgdb_read_fn)(void *context, uint64_t gpa, void *buffer,
                              size_t length);
typedef int (*kvmgdb_write_fn)(void *context, uint64_t gpa, const void *buffer,
                               size_t length);

/*
 * `pid` owns what kvmgdb_memory_add_process names; 0 where there is none. It
 * is held on to by descriptors: when the process has exited, every access is
 * KVMGDB_ERR_GONE, also when its PID has been given to another. Should it call
 * execve between the two system calls of one large read, that read may see
 * memory of the new program; later ones are GONE.
 */
enum kvmgdb_status kvmgdb_memory_create(pid_t pid, struct kvmgdb_memory **out,
                                        struct kvmgdb_error *error);
void kvmgdb_memory_destroy(struct kvmgdb_memory *memory);

/*
 * Three kinds of backing for [gpa, gpa + size). Regions must not overlap
 * (INVALID, os_error EEXIST). At most 4096 regions (INVALID, ENOSPC).
 *  process:  `hva` in the address space of `pid`. Private anonymous pages that
 *            the process never touched are zero and are not touched by reading
 *            (asked from /proc/PID/pagemap; memory that userfaultfd has yet to
 *            fill is zero likewise). Pages of a file that is mapped there are
 *            read whether touched or not, which allocates holes of a shared
 *            one: give its descriptor instead.
 *  file:     a file descriptor that the library duplicates (memfd, tmpfs,
 *            hugetlbfs, /proc/PID/mem), at `offset`. Reading a hole with
 *            pread does not allocate it, except through /proc/PID/mem. What
 *            lies past the end of the file is NO_RAM. A descriptor that is not
 *            open for writing makes the region read-only.
 *  callback: a function of the caller, for memory that is only reachable
 *            through somebody else's protocol. `write` may be NULL. -EFAULT
 *            says that not all of the range is RAM; the library then asks page
 *            by page for the bytes before. Any other failure ends the access.
 */
enum kvmgdb_status kvmgdb_memory_add_process(struct kvmgdb_memory *memory,
                                             uint64_t gpa, uint64_t size,
                                             uint64_t hva, int read_only,
                                             struct kvmgdb_error *error);
enum kvmgdb_status kvmgdb_memory_add_file(struct kvmgdb_memory *memory,
                                          uint64_t gpa, uint64_t size, int fd,
                                          uint64_t offset, int read_only,
                                          struct kvmgdb_error *error);
enum kvmgdb_status kvmgdb_memory_add_callback(struct kvmgdb_memory *memory,
                                              uint64_t gpa, uint64_t size,
                                              kvmgdb_read_fn read,
                                              kvmgdb_write_fn write,
                                              void *context,
                                              struct kvmgdb_error *error);
void kvmgdb_memory_clear(struct kvmgdb_memory *memory);

/*
 * Copies up to `length` bytes; *done is how many were copied before the first
 * one that could not be. OK when all were; otherwise the error of the first
 * byte that failed, and error->address is its guest-physical address.
 */
enum kvmgdb_status kvmgdb_memory_read(struct kvmgdb_memory *memory,
                                      uint64_t gpa, void *buffer, size_t length,
                                      size_t *done, struct kvmgdb_error *error);
enum kvmgdb_status kvmgdb_memory_write(struct kvmgdb_memory *memory,
                                       uint64_t gpa, const void *buffer,
                                       size_t length, size_t *done,
                                       struct kvmgdb_error *error);

/* ---- page tables (SDM volume 3, chapter 4) ---------------------------- */

/* The control registers of one vCPU that decide how it translates. */
struct kvmgdb_paging {
  uint64_t cr0;
  uint64_t cr3;
  uint64_t cr4;
  uint64_t efer;
};

enum kvmgdb_paging_mode {
  KVMGDB_PAGING_NONE = 0,   /* CR0.PG clear: GPA = GVA */
  KVMGDB_PAGING_32BIT = 2,  /* two levels, 4 KiB and (CR4.PSE) 4 MiB pages */
  KVMGDB_PAGING_PAE = 3,    /* three levels, 4 KiB and 2 MiB pages */
  KVMGDB_PAGING_4LEVEL = 4, /* 4 KiB, 2 MiB, 1 GiB pages */
  KVMGDB_PAGING_5LEVEL = 5,
};

struct kvmgdb_translation {
  uint64_t gpa;
  uint64_t page_size;    /* bytes */
  int mode;              /* enum kvmgdb_paging_mode */
  int levels;            /* entries used below: leaf is entry[levels - 1] */
  uint64_t entry_gpa[5]; /* where each entry lies, root first */
  uint64_t entry[5];     /* each entry as read */
  int writable;          /* all levels allow writing */
  int user;              /* all levels allow user mode */
  int executable;        /* no level forbids it (EFER.NXE considered) */
};

enum kvmgdb_paging_mode kvmgdb_paging_mode(const struct kvmgdb_paging *paging);

/*
 * A non-canonical address is NOT_MAPPED at level 0; so is one above 4 GiB in
 * the modes that have 32-bit linear addresses. A table that does not lie in
 * RAM is NO_RAM.
 */
enum kvmgdb_status kvmgdb_translate(struct kvmgdb_memory *memory,
                                    const struct kvmgdb_paging *paging,
                                    uint64_t gva,
                                    struct kvmgdb_translation *translation,
                                    struct kvmgdb_error *error);

/*
 * As kvmgdb_memory_read and _write, through the page tables; error->address is
 * the guest-virtual address of the first byte that failed. A range may end at
 * 2^64 but not run past it (INVALID). Permission bits of the page tables are
 * not enforced: this is a debugger.
 */
enum kvmgdb_status kvmgdb_virtual_read(struct kvmgdb_memory *memory,
                                       const struct kvmgdb_paging *paging,
                                       uint64_t gva, void *buffer,
                                       size_t length, size_t *done,
                                       struct kvmgdb_error *error);
enum kvmgdb_status kvmgdb_virtual_write(struct kvmgdb_memory *memory,
                                        const struct kvmgdb_paging *paging,
                                        uint64_t gva, const void *buffer,
                                        size_t length, size_t *done,
                                        struct kvmgdb_error *error);

/*
 * The next extent at or above `from` and below `end` (exclusive; 0 means 2^64)
 * that is mapped with one translation's contiguity: adjacent pages are merged
 * while both GVA and GPA are contiguous. Absent upper levels are skipped
 * whole, so the cost follows what is mapped, not the distance; tables that do
 * not lie in RAM are passed over as absent ones are. Looks at no more than
 * `budget` table entries, though at least at one, so that every call gets
 * further; *next is where to go on, and *size is 0 when nothing was found
 * before the budget or `end` was reached. *done_flag is 1 when nothing is left
 * before `end`, also when *size is not 0.
 */
enum kvmgdb_status kvmgdb_next_extent(
    struct kvmgdb_memory *memory, const struct kvmgdb_paging *paging,
    uint64_t from, uint64_t end, uint64_t budget, uint64_t *gva, uint64_t *gpa,
    uint64_t *size, uint64_t *next, int *done_flag, struct kvmgdb_error *error);

/*
 * One slice of a search for `pattern` (1..65536 bytes) in [from, end), 0 for an
 * end of 2^64; what is unmapped or has no RAM is skipped, and a match may cross
 * pages that are adjacent in guest-virtual space. Reads no more than about
 * `budget` bytes, table entries included, though always enough to get further.
 * *found: 1 with *match the lowest address; 0 with *done_flag 1 when `end` was
 * reached. *next is where to go on.
 */
enum kvmgdb_status kvmgdb_virtual_search(
    struct kvmgdb_memory *memory, const struct kvmgdb_paging *paging,
    uint64_t from, uint64_t end, const void *pattern, size_t pattern_length,
    uint64_t budget, int *found, uint64_t *match, uint64_t *next,
    int *done_flag, struct kvmgdb_error *error);

/* ---- remote protocol (GDB manual, appendix E) -------------------------- */

/* Sum of all bytes, modulo 256. */
uint8_t kvmgdb_rsp_checksum(const void *data, size_t length);

/*
 * A whole frame "$payload#cc". `binary` escapes # $ } * (every byte of the
 * payload is data); otherwise the payload must be free of them and runs are
 * length-encoded when `runs` is set (count bytes '#', '$', '+' and '-' are
 * never produced). Returns the length of the frame, or 0 for a payload that is
 * not free of them; `out` must hold 2 * length + 4 bytes.
 */
size_t kvmgdb_rsp_frame(const void *payload, size_t length, int binary,
                        int runs, void *out);

/*
 * A whole frame whose payload is `prefix` (printable, not escaped) followed by
 * the data as hex or as escaped binary, run-length encoded when `runs` is set:
 * GDB takes a frame apart byte by byte, and most of a guest's memory is zeros.
 * `out` must hold prefix_length + 2 * length + 4 bytes.
 */
size_t kvmgdb_rsp_frame_hex(const void *prefix, size_t prefix_length,
                            const void *data, size_t length, int runs,
                            void *out);
size_t kvmgdb_rsp_frame_binary(const void *prefix, size_t prefix_length,
                               const void *data, size_t length, int runs,
                               void *out);

/*
 * Undoes escapes and, when `runs` is set, run lengths, in a payload taken from
 * a frame. A run counts bytes as they were sent, escapes included, as GDB has
 * it. *out_length is at most `capacity`; a run or escape that is cut off, a run
 * that repeats nothing or has no printable count, and a result longer than
 * `capacity` are KVMGDB_ERR_INVALID.
 */
enum kvmgdb_status kvmgdb_rsp_unescape(const void *payload, size_t length,
                                       int runs, void *out, size_t capacity,
                                       size_t *out_length,
                                       struct kvmgdb_error *error);

/* The longest memory read (bytes) that kvmgdb_rsp_attend answers, and room for
 * the longest frame that does it. */
enum { KVMGDB_RSP_READ_MAX = 4096, KVMGDB_RSP_REPLY_MAX = 8197 };

/*
 * Waits, awake, for what a debugger sends on a stream socket while the guest
 * stands: `awake_ns` for the next packet, `turn_ns` in all. A memory read
 * ("m", "x") that comes alone and that all bytes are there for is answered,
 * without an acknowledgement, by what lies at that guest-virtual address; each
 * page is translated once. The first that is anything else is left in `buffer`:
 * *received bytes of it. 0 where nothing came, or the stream has ended or
 * failed, which the caller's own next read says, too. *unsent bytes at the
 * start of `reply`, of KVMGDB_RSP_REPLY_MAX, are those of an answer that the
 * socket did not take: the caller sends them. *preempted is 1 where it gave up
 * because something else needed its CPU. Nothing is answered without `memory`,
 * or where a callback gives some of it.
 */
enum kvmgdb_status
kvmgdb_rsp_attend(struct kvmgdb_memory *memory,
                  const struct kvmgdb_paging *paging, int socket,
                  uint64_t awake_ns, uint64_t turn_ns, void *buffer,
                  size_t capacity, size_t *received, void *reply,
                  size_t *unsent, int *preempted, struct kvmgdb_error *error);

/*
 * CRC of qCRC: polynomial 0x04c11db7, most significant bit first, no final
 * inversion. Start with crc = 0xffffffff; feed pieces in order.
 */
uint32_t kvmgdb_rsp_crc(uint32_t crc, const void *data, size_t length);

/* cffi: end */

#ifdef __cplusplus
}
#endif

#endif
