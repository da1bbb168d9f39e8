#include "harness.h"
#include "two_pages.h"
#include "user_step.h"

enum { RFLAGS = 0x246, STEPPED_RFLAGS = RFLAGS | TRAP_FLAG, IDT = 0x100 };

static const uint64_t handler = 0xffffffff81a00c70;
static const uint8_t iretq[USER_STEP_CODE] = {0x48, 0xcf};
static const struct step_start user = {.rip = 0x401100,
                                       .rsp = 0x7ffe0000ff78,
                                       .rflags = RFLAGS,
                                       .cs = 0x33,
                                       .ss = 0x2b};
/* Of the instruction before which the program is to go on. */
static const struct exception_frame next = {.rip = 0x400800,
                                            .cs = 0x33,
                                            .rflags = STEPPED_RFLAGS,
                                            .rsp = 0x7ffe0000ff70,
                                            .ss = 0x2b};

/* The tables lie in the page of the stack. */
static struct kvmgdb_agent_sregs make_sregs(const struct guest *guest) {
  return (struct kvmgdb_agent_sregs){
      .cs = {.selector = 0x10, .l = 1},
      .efer = 0xd01,
      .idt = {.base = guest->stack_gva + IDT, .limit = 0xfff},
      .gdt = {.base = guest->stack_gva, .limit = 0x7f},
  };
}

static void put_gate(struct guest *guest, unsigned vector, uint64_t offset) {
  uint64_t gva = guest->stack_gva + IDT + 16 * vector;
  put(guest, gva, offset & 0xffff, 2);
  put(guest, gva + 2, 0x8e0000000010, 6);
  put(guest, gva + 6, offset >> 16, 2);
  put(guest, gva + 8, offset >> 32, 8);
}

static uint64_t put_frame(struct guest *guest, struct exception_frame frame) {
  uint64_t gva = guest->stack_gva + 0x800;
  memcpy(guest->stack + 0x800, &frame, sizeof(frame));
  return gva;
}

TEST(user_step, an_iretq_to_user_mode_drops_the_flag) {
  struct guest guest = make_guest();
  struct kvmgdb_agent_sregs sregs = make_sregs(&guest);
  struct exception_frame frame = next, found;
  frame.rflags = RFLAGS;
  struct kvmgdb_agent_regs regs = {.rsp = put_frame(&guest, frame)};
  CHECK(user_step_returns(iretq, &regs, &sregs, read_guest, &guest, &found));
  CHECK_EQUAL(found.rip, frame.rip);
  CHECK_EQUAL(found.rsp, frame.rsp);
}

TEST(user_step, any_other_return_keeps_it) {
  struct guest guest = make_guest();
  struct kvmgdb_agent_sregs sregs = make_sregs(&guest), compatible = sregs;
  compatible.cs.l = 0;
  struct exception_frame frame = next, found;
  struct kvmgdb_agent_regs regs = {.rsp = put_frame(&guest, frame)};
  /* The program is stepped by another program. */
  CHECK(!user_step_returns(iretq, &regs, &sregs, read_guest, &guest, &found));
  frame.rflags = RFLAGS;
  put_frame(&guest, frame);
  static const uint8_t iretd[USER_STEP_CODE] = {0xcf, 0x90};
  CHECK(!user_step_returns(iretd, &regs, &sregs, read_guest, &guest, &found));
  CHECK(!user_step_returns(iretq, &regs, &compatible, read_guest, &guest,
                           &found));
  frame.cs = 0x10;
  put_frame(&guest, frame);
  CHECK(!user_step_returns(iretq, &regs, &sregs, read_guest, &guest, &found));
  regs.rsp = 0x1000;
  CHECK(!user_step_returns(iretq, &regs, &sregs, read_guest, &guest, &found));
}

TEST(user_step, what_loads_flags) {
  static const uint8_t popfq[] = {0x9d, 0x90}, iretd[] = {0xcf, 0x90},
                       other[] = {0x48, 0x9d}, nop[] = {0x90, 0xcf};
  CHECK(user_step_loads_flags(iretq));
  CHECK(user_step_loads_flags(popfq));
  CHECK(user_step_loads_flags(iretd));
  CHECK(!user_step_loads_flags(other));
  CHECK(!user_step_loads_flags(nop));
}

static bool delivered(struct guest *guest, const struct step_start *from,
                      struct kvmgdb_agent_regs regs,
                      struct exception_frame *frame) {
  struct kvmgdb_agent_sregs sregs = make_sregs(guest);
  return user_step_delivered(from, &regs, &sregs, read_guest, guest, frame);
}

TEST(user_step, an_exception_is_delivered) {
  struct guest guest = make_guest();
  put_gate(&guest, 1, handler);
  uint64_t rsp = put_frame(&guest, next);
  struct exception_frame frame;
  /* Before the handler's first instruction, and behind it where it pushes. */
  const struct kvmgdb_agent_regs places[] = {
      {.rip = handler, .rsp = rsp},
      {.rip = handler + 3, .rsp = rsp},
      {.rip = handler + 2, .rsp = rsp - 8},
  };
  for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
    frame = (struct exception_frame){0};
    CHECK(delivered(&guest, &user, places[i], &frame));
    CHECK_EQUAL(frame.rip, next.rip);
    CHECK_EQUAL(frame.rsp, next.rsp);
  }
}

TEST(user_step, what_else_brings_a_program_there_is_left_alone) {
  struct guest guest = make_guest();
  put_gate(&guest, 1, handler);
  uint64_t rsp = put_frame(&guest, next);
  struct exception_frame frame, other = next;
  struct step_start kernel = user;
  kernel.cs = 0x10;
  struct kvmgdb_agent_regs regs = {.rip = handler, .rsp = rsp};
  CHECK(!delivered(&guest, &kernel, regs, &frame));
  regs.rip = handler - 1;
  CHECK(!delivered(&guest, &user, regs, &frame));
  regs.rip = handler + 16;
  CHECK(!delivered(&guest, &user, regs, &frame));
  regs.rip = handler;
  other.rflags = RFLAGS;
  put_frame(&guest, other);
  CHECK(!delivered(&guest, &user, regs, &frame));
  other = next;
  other.cs = 0x23;
  put_frame(&guest, other);
  CHECK(!delivered(&guest, &user, regs, &frame));
  regs.rsp = UINT64_MAX - 3;
  CHECK(!delivered(&guest, &user, regs, &frame));
}

TEST(user_step, segments_come_from_the_gdt) {
  struct guest guest = make_guest();
  struct kvmgdb_agent_sregs sregs = make_sregs(&guest);
  struct kvmgdb_agent_segment segment;
  put(&guest, guest.stack_gva + 0x30, 0x00affb000000ffff, 8);
  CHECK(user_step_segment(&sregs, 0x33, read_guest, &guest, &segment));
  CHECK_EQUAL(segment.selector, 0x33);
  CHECK_EQUAL(segment.base, 0);
  CHECK_EQUAL(segment.limit, UINT32_MAX);
  CHECK_EQUAL(segment.type, 0xb);
  CHECK_EQUAL(segment.dpl, 3);
  CHECK(segment.s && segment.present && segment.l && segment.g && !segment.db);
  put(&guest, guest.stack_gva + 0x28, 0x12cff33456789abc, 8);
  CHECK(user_step_segment(&sregs, 0x2b, read_guest, &guest, &segment));
  CHECK_EQUAL(segment.base, 0x12345678);
  CHECK_EQUAL(segment.limit, 0xf9abcfff);
  /* Not present; of an LDT; behind the table. */
  CHECK(!user_step_segment(&sregs, 0x23, read_guest, &guest, &segment));
  CHECK(!user_step_segment(&sregs, 0x37, read_guest, &guest, &segment));
  CHECK(!user_step_segment(&sregs, 0x83, read_guest, &guest, &segment));
}
