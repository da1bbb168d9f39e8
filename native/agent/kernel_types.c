#include "kernel_types.h"
#include "cleanup.h"
#include <fcntl.h>
#include <linux/btf.h>
#include <string.h>
#include <sys/stat.h>

enum { MAX_SIZE = 256 << 20, MAX_FILES = 2, MAX_DEPTH = 4 };

/* One BTF file. Its type numbers and string offsets go on where those of the
 * file before it end: modules refer to vmlinux that way. */
struct file {
  uint8_t *data;
  const uint8_t *types;
  uint32_t types_size;
  const char *strings;
  uint32_t strings_size;
  uint32_t first_string;
  uint32_t first_type;
  uint32_t *offset; /* of each type, in `types` */
  uint32_t count;
};

struct kernel_types {
  struct file file[MAX_FILES];
  int count;
};

/* How much follows the struct btf_type of each kind; -1: not known. */
static int64_t tail_size(const struct btf_type *type) {
  uint32_t members = BTF_INFO_VLEN(type->info);
  switch (BTF_INFO_KIND(type->info)) {
  case BTF_KIND_PTR:
  case BTF_KIND_FWD:
  case BTF_KIND_TYPEDEF:
  case BTF_KIND_VOLATILE:
  case BTF_KIND_CONST:
  case BTF_KIND_RESTRICT:
  case BTF_KIND_FUNC:
  case BTF_KIND_FLOAT:
  case BTF_KIND_TYPE_TAG:
    return 0;
  case BTF_KIND_INT:
  case BTF_KIND_VAR:
  case BTF_KIND_DECL_TAG:
    return 4;
  case BTF_KIND_ARRAY:
    return sizeof(struct btf_array);
  case BTF_KIND_STRUCT:
  case BTF_KIND_UNION:
    return (int64_t)sizeof(struct btf_member) * members;
  case BTF_KIND_ENUM:
    return (int64_t)sizeof(struct btf_enum) * members;
  case BTF_KIND_FUNC_PROTO:
    return (int64_t)sizeof(struct btf_param) * members;
  case BTF_KIND_DATASEC:
    return (int64_t)sizeof(struct btf_var_secinfo) * members;
  case BTF_KIND_ENUM64:
    return (int64_t)sizeof(struct btf_enum64) * members;
  }
  return -1;
}

static uint8_t *read_whole(const char *path, size_t *size) {
  scoped_fd fd = open(path, O_RDONLY | O_CLOEXEC);
  struct stat status;
  if (fd < 0 || fstat(fd, &status) || status.st_size <= 0 ||
      status.st_size > MAX_SIZE)
    return NULL;
  uint8_t *data = malloc((size_t)status.st_size);
  size_t done = 0;
  while (data && done < (size_t)status.st_size) {
    ssize_t length = read(fd, data + done, (size_t)status.st_size - done);
    if (length <= 0) {
      free(data);
      return NULL;
    }
    done += (size_t)length;
  }
  *size = done;
  return data;
}

static bool index_types(struct file *file) {
  file->offset = calloc(file->types_size / sizeof(struct btf_type) + 1,
                        sizeof(*file->offset));
  if (!file->offset)
    return false;
  uint32_t at = 0;
  while (at < file->types_size) {
    if (file->types_size - at < sizeof(struct btf_type))
      return false;
    struct btf_type type;
    memcpy(&type, file->types + at, sizeof(type));
    int64_t tail = tail_size(&type);
    if (tail < 0 || tail > file->types_size - at - (int64_t)sizeof(type))
      return false;
    file->offset[file->count++] = at;
    at += (uint32_t)sizeof(type) + (uint32_t)tail;
  }
  return true;
}

static bool add_file(struct kernel_types *types, const char *path) {
  struct file *file = &types->file[types->count];
  const struct file *before = types->count ? file - 1 : NULL;
  size_t size;
  file->data = read_whole(path, &size);
  struct btf_header head;
  if (!file->data || size < sizeof(head))
    return false;
  memcpy(&head, file->data, sizeof(head));
  uint64_t start = head.hdr_len;
  if (head.magic != BTF_MAGIC || start < sizeof(head) ||
      start + head.type_off + head.type_len > size ||
      start + head.str_off + head.str_len > size || !head.str_len)
    return false;
  file->types = file->data + start + head.type_off;
  file->types_size = head.type_len;
  file->strings = (const char *)file->data + start + head.str_off;
  file->strings_size = head.str_len;
  if (file->strings[head.str_len - 1])
    return false;
  file->first_string = before ? before->first_string + before->strings_size : 0;
  file->first_type = before ? before->first_type + before->count : 1;
  if (!index_types(file))
    return false;
  types->count++;
  return true;
}

struct kernel_types *kernel_types_open(void) {
  struct kernel_types *types = calloc(1, sizeof(*types));
  if (types && add_file(types, "/sys/kernel/btf/vmlinux")) {
    add_file(types, "/sys/kernel/btf/kvm"); /* not there: KVM is built in */
    return types;
  }
  kernel_types_close(types);
  return NULL;
}

void kernel_types_close(struct kernel_types *types) {
  for (int i = 0; types && i < MAX_FILES; i++) {
    free(types->file[i].data);
    free(types->file[i].offset);
  }
  free(types);
}

static const char *string_at(const struct kernel_types *types,
                             uint32_t offset) {
  for (int i = 0; i < types->count; i++) {
    const struct file *file = &types->file[i];
    if (offset >= file->first_string &&
        offset - file->first_string < file->strings_size)
      return file->strings + (offset - file->first_string);
  }
  return "";
}

/* The type of a number, with its members behind it; NULL: none. */
static const uint8_t *type_at(const struct kernel_types *types,
                              uint32_t number) {
  for (int i = 0; i < types->count; i++) {
    const struct file *file = &types->file[i];
    if (number >= file->first_type && number - file->first_type < file->count)
      return file->types + file->offset[number - file->first_type];
  }
  return NULL;
}

static bool is_aggregate(const struct btf_type *type) {
  return BTF_INFO_KIND(type->info) == BTF_KIND_STRUCT ||
         BTF_INFO_KIND(type->info) == BTF_KIND_UNION;
}

static const uint8_t *find_structure(const struct kernel_types *types,
                                     const char *name) {
  for (int i = 0; i < types->count; i++) {
    const struct file *file = &types->file[i];
    for (uint32_t k = 0; k < file->count; k++) {
      const uint8_t *at = file->types + file->offset[k];
      struct btf_type type;
      memcpy(&type, at, sizeof(type));
      if (BTF_INFO_KIND(type.info) == BTF_KIND_STRUCT &&
          !strcmp(string_at(types, type.name_off), name))
        return at;
    }
  }
  return NULL;
}

static int64_t member_offset(const struct kernel_types *types,
                             const uint8_t *structure, const char *name,
                             int depth) {
  struct btf_type type;
  memcpy(&type, structure, sizeof(type));
  for (uint32_t i = 0; i < BTF_INFO_VLEN(type.info); i++) {
    struct btf_member member;
    memcpy(&member, structure + sizeof(type) + i * sizeof(member),
           sizeof(member));
    uint32_t bits = BTF_INFO_KFLAG(type.info)
                        ? BTF_MEMBER_BIT_OFFSET(member.offset)
                        : member.offset;
    const char *found = string_at(types, member.name_off);
    if (!strcmp(found, name))
      return bits / 8;
    const uint8_t *inner = *found ? NULL : type_at(types, member.type);
    struct btf_type inner_type;
    if (!inner || depth == MAX_DEPTH)
      continue;
    memcpy(&inner_type, inner, sizeof(inner_type));
    int64_t offset = is_aggregate(&inner_type)
                         ? member_offset(types, inner, name, depth + 1)
                         : -1;
    if (offset >= 0)
      return bits / 8 + offset;
  }
  return -1;
}

int64_t kernel_types_offset(const struct kernel_types *types,
                            const char *structure, const char *member) {
  const uint8_t *found = find_structure(types, structure);
  return found ? member_offset(types, found, member, 0) : -1;
}

int64_t kernel_types_size(const struct kernel_types *types,
                          const char *structure) {
  const uint8_t *found = find_structure(types, structure);
  if (!found)
    return -1;
  struct btf_type type;
  memcpy(&type, found, sizeof(type));
  return type.size;
}
