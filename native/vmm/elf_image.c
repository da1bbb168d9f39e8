#include "elf_image.h"

#include "boot.h"

#include <elf.h>
#include <string.h>

#define XEN_ELFNOTE_PHYS32_ENTRY 18

bool elf_image_is_elf(const uint8_t *file, size_t size) {
  return size >= EI_NIDENT && memcmp(file, ELFMAG, SELFMAG) == 0;
}

/* The two header layouts, read into one. */
struct header {
  uint16_t type;
  uint16_t machine;
  uint64_t entry;
  uint64_t phoff;
  uint16_t phentsize;
  uint16_t phnum;
};

static bool read_header(const uint8_t *file, size_t size, bool is_64bit,
                        struct header *header) {
  if (is_64bit) {
    Elf64_Ehdr raw;
    if (size < sizeof(raw))
      return false;
    memcpy(&raw, file, sizeof(raw));
    *header = (struct header){raw.e_type,  raw.e_machine,   raw.e_entry,
                              raw.e_phoff, raw.e_phentsize, raw.e_phnum};
  } else {
    Elf32_Ehdr raw;
    if (size < sizeof(raw))
      return false;
    memcpy(&raw, file, sizeof(raw));
    *header = (struct header){raw.e_type,  raw.e_machine,   raw.e_entry,
                              raw.e_phoff, raw.e_phentsize, raw.e_phnum};
  }
  return true;
}

static uint32_t read_segment(const uint8_t *at, bool is_64bit,
                             struct elf_segment *segment) {
  if (is_64bit) {
    Elf64_Phdr raw;
    memcpy(&raw, at, sizeof(raw));
    *segment = (struct elf_segment){raw.p_offset, raw.p_filesz, raw.p_vaddr,
                                    raw.p_paddr, raw.p_memsz};
    return raw.p_type;
  }
  Elf32_Phdr raw;
  memcpy(&raw, at, sizeof(raw));
  *segment = (struct elf_segment){raw.p_offset, raw.p_filesz, raw.p_vaddr,
                                  raw.p_paddr, raw.p_memsz};
  return raw.p_type;
}

bool elf_image_parse(const uint8_t *file, size_t size, struct elf_image *image,
                     struct vmm_error *error) {
  memset(image, 0, sizeof(*image));
  image->file = file;
  image->file_size = size;
  if (!elf_image_is_elf(file, size))
    return vmm_fail(error, "not an ELF file");
  if (file[EI_DATA] != ELFDATA2LSB ||
      (file[EI_CLASS] != ELFCLASS32 && file[EI_CLASS] != ELFCLASS64))
    return vmm_fail(error, "ELF file is not a little-endian one");
  image->is_64bit = file[EI_CLASS] == ELFCLASS64;

  struct header header;
  if (!read_header(file, size, image->is_64bit, &header))
    return vmm_fail(error, "ELF file is truncated: no whole header");
  if (header.machine != EM_386 && header.machine != EM_X86_64)
    return vmm_fail(error, "ELF file is for machine %u, not for x86",
                    header.machine);
  if (header.type != ET_EXEC && header.type != ET_DYN)
    return vmm_fail(error, "ELF file of type %u is no executable", header.type);
  image->entry = header.entry;

  size_t entry_size = image->is_64bit ? sizeof(Elf64_Phdr) : sizeof(Elf32_Phdr);
  if (header.phentsize != entry_size || header.phnum == 0 ||
      header.phnum > ELF_IMAGE_MAX_SEGMENTS)
    return vmm_fail(error,
                    "ELF file has a bad program header table (%u entries of "
                    "%u bytes)",
                    header.phnum, header.phentsize);
  if (header.phoff > size || header.phnum * entry_size > size - header.phoff)
    return vmm_fail(error, "ELF file is truncated: program headers lie "
                           "beyond its end");
  for (size_t i = 0; i < header.phnum; i++) {
    struct elf_segment segment;
    uint32_t type = read_segment(file + header.phoff + i * entry_size,
                                 image->is_64bit, &segment);
    if (type != PT_LOAD && type != PT_NOTE)
      continue;
    if (segment.offset > size || segment.file_size > size - segment.offset)
      return vmm_fail(error,
                      "ELF file is truncated: segment %zu lies beyond "
                      "its end",
                      i);
    if (type == PT_NOTE) {
      image->note[image->note_count++] = segment;
    } else if (segment.memory_size > 0) {
      if (segment.file_size > segment.memory_size)
        return vmm_fail(error,
                        "ELF segment %zu is larger in the file than in "
                        "memory",
                        i);
      image->load[image->load_count++] = segment;
    }
  }
  if (image->load_count == 0)
    return vmm_fail(error, "ELF file has nothing to load");
  return true;
}

/*
 * Notes are (name size, descriptor size, type, name, descriptor), name and
 * descriptor padded to 4 bytes (to 8 in segments aligned to 8, but the one
 * looked for has a 4-byte name, after which both paddings agree).
 */
static bool find_pvh_note(const uint8_t *notes, uint64_t size,
                          uint32_t *entry) {
  uint64_t at = 0;
  while (size - at >= 12) {
    uint32_t word[3];
    memcpy(word, notes + at, sizeof(word));
    uint64_t name = at + 12;
    uint64_t descriptor = name + (((uint64_t)word[0] + 3) & ~3ULL);
    uint64_t next = descriptor + (((uint64_t)word[1] + 3) & ~3ULL);
    if (descriptor > size || word[1] > size - descriptor)
      return false;
    if (word[2] == XEN_ELFNOTE_PHYS32_ENTRY && word[0] == 4 &&
        memcmp(notes + name, "Xen", 4) == 0 && (word[1] == 4 || word[1] == 8)) {
      uint64_t value = 0;
      memcpy(&value, notes + descriptor, word[1]);
      *entry = (uint32_t)value;
      return value <= UINT32_MAX;
    }
    if (next > size)
      return false;
    at = next;
  }
  return false;
}

bool elf_image_pvh_entry(const struct elf_image *image, uint32_t *entry) {
  for (size_t i = 0; i < image->note_count; i++)
    if (find_pvh_note(image->file + image->note[i].offset,
                      image->note[i].file_size, entry))
      return true;
  return false;
}

bool elf_image_load(const struct elf_image *image, struct guest_ram *ram,
                    uint64_t *end, struct vmm_error *error) {
  *end = 0;
  for (size_t i = 0; i < image->load_count; i++) {
    const struct elf_segment *segment = &image->load[i];
    /* The whole of it, including what stays zero, has to be RAM. */
    if (!guest_ram_at(ram, segment->paddr, segment->memory_size))
      return vmm_fail(error,
                      "ELF segment of %llu bytes at %#llx does not fit into "
                      "guest memory; give the guest more with --memory",
                      (unsigned long long)segment->memory_size,
                      (unsigned long long)segment->paddr);
    uint64_t segment_end = segment->paddr + segment->memory_size;
    if (segment->paddr < BOOT_AREA_END && segment_end > BOOT_AREA_START)
      return vmm_fail(error,
                      "ELF segment at %#llx lies over the boot information "
                      "(%#llx to %#llx)",
                      (unsigned long long)segment->paddr, BOOT_AREA_START,
                      BOOT_AREA_END);
    if (segment->paddr < RAM_FIRMWARE_END && segment_end > RAM_CONVENTIONAL_END)
      return vmm_fail(error,
                      "ELF segment at %#llx lies over the firmware's memory "
                      "(%#llx to %#llx)",
                      (unsigned long long)segment->paddr, RAM_CONVENTIONAL_END,
                      RAM_FIRMWARE_END);
    if (!guest_ram_write(ram, segment->paddr, image->file + segment->offset,
                         segment->file_size, "ELF segment", error))
      return false;
    if (segment_end > *end)
      *end = segment_end;
  }
  return true;
}

bool elf_image_physical(const struct elf_image *image, uint64_t address,
                        uint64_t *physical) {
  for (size_t i = 0; i < image->load_count; i++)
    if (address - image->load[i].paddr < image->load[i].memory_size) {
      *physical = address;
      return true;
    }
  for (size_t i = 0; i < image->load_count; i++)
    if (address - image->load[i].vaddr < image->load[i].memory_size) {
      *physical = image->load[i].paddr + (address - image->load[i].vaddr);
      return true;
    }
  return false;
}
