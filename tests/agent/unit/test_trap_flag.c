#include "harness.h"
#include "trap_flag.h"
#include "two_pages.h"

enum { RFLAGS = 0x246, STEPPED_RFLAGS = RFLAGS | TRAP_FLAG };

/* A user program, interrupted: the frame lies at the top of the page. */
static const struct step_start user = {.rip = 0x401100,
                                       .rsp = 0x7ffe0000ff78,
                                       .rflags = RFLAGS,
                                       .cs = 0x33,
                                       .ss = 0x2b};
static const struct kvmgdb_agent_sregs long_mode = {.cr0 = 0x80000001,
                                                    .efer = 0xd01};
static const uint64_t handler = 0xffffffff81a00eb3;

static uint64_t push_frame(struct guest *guest, const struct step_start *from,
                           uint64_t top, uint64_t rflags) {
  const uint64_t words[] = {from->rip, from->cs, rflags, from->rsp, from->ss};
  for (size_t i = 0; i < 5; i++)
    put(guest, top - 40 + 8 * i, words[i], 8);
  return top - 40;
}

static struct trap_flag_place find(struct guest *guest,
                                   const struct step_start *from,
                                   struct kvmgdb_agent_regs regs,
                                   struct kvmgdb_agent_sregs sregs) {
  return trap_flag_find(from, &regs, &sregs, read_guest, guest);
}

TEST(trap_flag, an_interrupt_saves_it) {
  struct guest guest = make_guest();
  uint64_t top = guest.stack_gva + sizeof(guest.stack);
  uint64_t frame = push_frame(&guest, &user, top, STEPPED_RFLAGS);
  struct trap_flag_place place =
      find(&guest, &user,
           (struct kvmgdb_agent_regs){.rip = handler, .rsp = frame}, long_mode);
  CHECK_EQUAL(place.kind, TRAP_FLAG_IN_MEMORY);
  CHECK_EQUAL(place.gva, frame + 17);
}

TEST(trap_flag, below_the_frame_lie_an_error_code_and_the_first_push) {
  struct guest guest = make_guest();
  uint64_t frame = push_frame(&guest, &user, guest.stack_gva + 0x800,
                              STEPPED_RFLAGS | 1 << 16);
  struct kvmgdb_agent_regs regs = {.rip = handler, .rsp = frame - 16};
  struct trap_flag_place place = find(&guest, &user, regs, long_mode);
  CHECK_EQUAL(place.kind, TRAP_FLAG_IN_MEMORY);
  CHECK_EQUAL(place.gva, frame + 17);
}

TEST(trap_flag, a_frame_without_it_is_left_alone) {
  struct guest guest = make_guest();
  uint64_t frame = push_frame(&guest, &user, guest.stack_gva + 0x800, RFLAGS);
  struct kvmgdb_agent_regs regs = {.rip = handler, .rsp = frame};
  CHECK_EQUAL(find(&guest, &user, regs, long_mode).kind, TRAP_FLAG_NOWHERE);
}

TEST(trap_flag, what_is_not_this_steps_frame_is_left_alone) {
  const struct step_start others[] = {
      {.rip = user.rip + 16, .rsp = user.rsp, .cs = user.cs, .ss = user.ss},
      {.rip = user.rip - 1, .rsp = user.rsp, .cs = user.cs, .ss = user.ss},
      {.rip = user.rip, .rsp = user.rsp + 8, .cs = user.cs, .ss = user.ss},
      {.rip = user.rip, .rsp = user.rsp, .cs = 0x10, .ss = user.ss},
      {.rip = user.rip, .rsp = user.rsp, .cs = user.cs, .ss = 0x18},
  };
  for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
    struct guest guest = make_guest();
    uint64_t frame =
        push_frame(&guest, &others[i], guest.stack_gva + 0x800, STEPPED_RFLAGS);
    struct kvmgdb_agent_regs regs = {.rip = handler, .rsp = frame};
    CHECK_EQUAL(find(&guest, &user, regs, long_mode).kind, TRAP_FLAG_NOWHERE);
  }
  /* Other flags than the step began with. */
  struct guest guest = make_guest();
  uint64_t frame = push_frame(&guest, &user, guest.stack_gva + 0x800,
                              STEPPED_RFLAGS ^ 0x200);
  struct kvmgdb_agent_regs regs = {.rip = handler, .rsp = frame};
  CHECK_EQUAL(find(&guest, &user, regs, long_mode).kind, TRAP_FLAG_NOWHERE);
}

TEST(trap_flag, a_stack_that_is_not_mapped_is_left_alone) {
  struct guest guest = make_guest();
  struct kvmgdb_agent_regs regs = {.rip = handler, .rsp = 0x1000};
  CHECK_EQUAL(find(&guest, &user, regs, long_mode).kind, TRAP_FLAG_NOWHERE);
  regs.rsp = UINT64_MAX - 3;
  CHECK_EQUAL(find(&guest, &user, regs, long_mode).kind, TRAP_FLAG_NOWHERE);
}

TEST(trap_flag, pushf_saves_it) {
  struct guest guest = make_guest();
  guest.code[0x100] = 0x9c;
  struct step_start from = {.rip = guest.code_gva + 0x100,
                            .rsp = guest.stack_gva + 0x100,
                            .rflags = RFLAGS};
  struct kvmgdb_agent_regs regs = {.rip = from.rip + 1, .rsp = from.rsp - 8};
  put(&guest, regs.rsp, STEPPED_RFLAGS, 8);
  struct trap_flag_place place = find(&guest, &from, regs, long_mode);
  CHECK_EQUAL(place.kind, TRAP_FLAG_IN_MEMORY);
  CHECK_EQUAL(place.gva, regs.rsp + 1);
  guest.code[0x100] = 0x50; /* push rax, which holds the same by chance */
  CHECK_EQUAL(find(&guest, &from, regs, long_mode).kind, TRAP_FLAG_NOWHERE);
}

TEST(trap_flag, syscall_saves_it_in_r11) {
  struct guest guest = make_guest();
  memcpy(guest.code + 0x100, "\x0f\x05", 2);
  struct kvmgdb_agent_regs regs = {.rip = handler,
                                   .rsp = user.rsp,
                                   .rcx = user.rip + 2,
                                   .r11 = STEPPED_RFLAGS};
  CHECK_EQUAL(find(&guest, &user, regs, long_mode).kind, TRAP_FLAG_IN_R11);
  guest.code[0x101] = 0x0b;
  CHECK_EQUAL(find(&guest, &user, regs, long_mode).kind, TRAP_FLAG_NOWHERE);
}

TEST(trap_flag, real_mode_and_protected_mode_have_narrow_frames) {
  for (unsigned width = 2; width <= 4; width += 2) {
    struct guest guest = {.stack_gva = 0x20000, .code_gva = 0x10000};
    struct kvmgdb_agent_sregs sregs = {
        .cr0 = width == 4, .cs = {.base = 0x10000}, .ss = {.base = 0x20000}};
    struct step_start from = {
        .rip = 0x100, .rsp = 0x800, .rflags = RFLAGS, .cs = 0x1000};
    struct kvmgdb_agent_regs regs = {.rip = 0xf000,
                                     .rsp = from.rsp - 3 * width};
    put(&guest, 0x20000 + regs.rsp, from.rip, width);
    put(&guest, 0x20000 + regs.rsp + width, from.cs, width);
    put(&guest, 0x20000 + regs.rsp + 2 * width, STEPPED_RFLAGS, width);
    struct trap_flag_place place = find(&guest, &from, regs, sregs);
    CHECK_EQUAL(place.kind, TRAP_FLAG_IN_MEMORY);
    CHECK_EQUAL(place.gva, 0x20000 + regs.rsp + 2 * width + 1);
  }
}
