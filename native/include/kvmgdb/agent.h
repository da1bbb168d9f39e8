/*
 * kvmgdb-agent: the process that attaches to a running KVM VMM.
 *
 * `kvmgdb-agent PID FD` speaks this protocol on FD, a SOCK_SEQPACKET socket.
 * Its first message is the text between the cffi markers of sample.h and below,
 * from which a client takes every layout: nothing is declared twice. Then each
 * request (header, payload) gets one reply (header, payload, descriptors), in
 * order. What happens between requests is in the shared pages; the event
 * descriptor becomes readable when they changed by themselves.
 *
 * Closing the socket detaches: everything is put back as it was found.
 */
#ifndef KVMGDB_AGENT_H
#define KVMGDB_AGENT_H

#include <kvmgdb/sample.h>
#include <stdint.h>

/* cffi: begin */

enum kvmgdb_agent_limit {
  KVMGDB_AGENT_MAX_VCPUS = 256,
  KVMGDB_AGENT_MAX_PAYLOAD = 16384, /* bytes after a header */
  KVMGDB_AGENT_MAX_BREAKPOINTS = 1024,
  KVMGDB_AGENT_MAX_HARDWARE = 4,
  KVMGDB_AGENT_MAX_REGIONS = 128,
  KVMGDB_AGENT_ALL = -1, /* `vcpu` of a request that means every one */
};

enum kvmgdb_agent_status {
  KVMGDB_AGENT_OK = 0,
  KVMGDB_AGENT_NO_PROCESS = 1,   /* no such process, or it has exited */
  KVMGDB_AGENT_NO_VM = 2,        /* it has no KVM virtual machine open */
  KVMGDB_AGENT_NO_VCPU = 3,      /* a virtual machine without vCPUs */
  KVMGDB_AGENT_SEVERAL_VMS = 4,  /* more than one; detail: how many */
  KVMGDB_AGENT_PERMISSION = 5,   /* the host denies us ptrace */
  KVMGDB_AGENT_TRACED = 6,       /* detail: PID of the tracer it has */
  KVMGDB_AGENT_NOT_64BIT = 7,    /* a 32-bit VMM */
  KVMGDB_AGENT_CONFIDENTIAL = 8, /* SEV, TDX: nothing could be read */
  KVMGDB_AGENT_NO_THREAD = 9,    /* thread of `vcpu` could not be found */
  KVMGDB_AGENT_SECCOMP = 10,     /* its seccomp filter cannot be suspended */
  KVMGDB_AGENT_TIMEOUT = 11,     /* `vcpu` did not stop; detail: its last
                                    KVM exit reason, or -1 */
  KVMGDB_AGENT_GONE = 12,        /* the VMM exited while attached */
  KVMGDB_AGENT_INVALID = 13,     /* the request makes no sense */
  KVMGDB_AGENT_RUNNING = 14,     /* needs a stopped vCPU */
  KVMGDB_AGENT_UNSUPPORTED = 15, /* this host's KVM cannot do it */
  KVMGDB_AGENT_NO_FREE = 16,     /* all breakpoints of the kind are in use */
  KVMGDB_AGENT_REFUSED = 17,     /* KVM refused the call: os_error */
  KVMGDB_AGENT_HOST = 18,        /* a system call of ours failed: os_error */
  KVMGDB_AGENT_NO_RAM = 19,      /* no memory of the VMM could be guest RAM */
};

enum kvmgdb_agent_command {
  /* What PID is, without touching it. Reply: kvmgdb_agent_discovery, then
     vcpu_count times kvmgdb_agent_found_vcpu. */
  KVMGDB_AGENT_DISCOVER = 1,
  /* Reply: kvmgdb_agent_attached and three descriptors: the shared pages, the
     event descriptor, the VMM's memory (/proc/PID/mem; offsets are HVAs). */
  KVMGDB_AGENT_ATTACH = 2,
  /* Stops `vcpu` or all; nothing is stopped when one does not in time. */
  KVMGDB_AGENT_STOP = 3,
  /* Payload: one byte per vCPU, enum kvmgdb_agent_action. */
  KVMGDB_AGENT_RESUME = 4,
  /* Makes a KVM call inside the VMM; argument: enum kvmgdb_agent_ioctl;
     payload in and out: the structure of that KVM call. */
  KVMGDB_AGENT_IOCTL = 5,
  /* Payload: kvmgdb_agent_breakpoint. The machine must be stopped. */
  KVMGDB_AGENT_INSERT = 6,
  KVMGDB_AGENT_REMOVE = 7,
  /* Reply: kvmgdb_agent_region, any number, and a descriptor for each one
     whose `descriptor` is not negative, in order. argument 1: without
     descriptors, to see whether anything has changed. */
  KVMGDB_AGENT_REGIONS = 8,
  /* Puts everything back, lets go of the VMM, and ends the agent. */
  KVMGDB_AGENT_DETACH = 9,
  /* Takes samples of all vCPUs until SAMPLE_STOP. Payload:
     kvmgdb_agent_sampling, then for each vCPU the address (GVA) of the pointer
     to its task or 0, then kvmgdb_stack_area as many as there are. Reply: a
     descriptor of the ring. UNSUPPORTED where registers need a call into the
     VMM. While the client has stopped a vCPU no samples are taken. */
  KVMGDB_AGENT_SAMPLE_START = 10,
  KVMGDB_AGENT_SAMPLE_STOP = 11,
  /* Takes in the vCPUs that the VMM has added since, stopped, behind those that
     are known, and threads that have taken over a vCPU whose own has ended. The
     machine must be stopped. Reply: kvmgdb_agent_attached. */
  KVMGDB_AGENT_ADOPT = 12,
};

enum kvmgdb_agent_action {
  KVMGDB_AGENT_STAY = 0,
  KVMGDB_AGENT_CONTINUE = 1,
  KVMGDB_AGENT_STEP = 2,           /* one instruction */
  KVMGDB_AGENT_STEP_BLOCK_IRQ = 3, /* the same, interrupts held back */
};

/* KVM calls on a vCPU that a client may ask for, named as KVM names them. */
enum kvmgdb_agent_ioctl {
  KVMGDB_AGENT_GET_REGS = 1,
  KVMGDB_AGENT_SET_REGS = 2,
  KVMGDB_AGENT_GET_SREGS = 3,
  KVMGDB_AGENT_SET_SREGS = 4,
  KVMGDB_AGENT_GET_FPU = 5,
  KVMGDB_AGENT_SET_FPU = 6,
  KVMGDB_AGENT_GET_XSAVE = 7,
  KVMGDB_AGENT_SET_XSAVE = 8,
  KVMGDB_AGENT_GET_XCRS = 9,
  KVMGDB_AGENT_SET_XCRS = 10,
  KVMGDB_AGENT_GET_DEBUGREGS = 11,
  KVMGDB_AGENT_SET_DEBUGREGS = 12,
  KVMGDB_AGENT_GET_VCPU_EVENTS = 13,
  KVMGDB_AGENT_SET_VCPU_EVENTS = 14,
  KVMGDB_AGENT_GET_MP_STATE = 15,
  KVMGDB_AGENT_SET_MP_STATE = 16,
  KVMGDB_AGENT_GET_MSRS = 17, /* result is in kvm_msrs.nmsrs: those done */
  KVMGDB_AGENT_SET_MSRS = 18,
  KVMGDB_AGENT_TRANSLATE = 19,
  KVMGDB_AGENT_GET_LAPIC = 20,
};

enum kvmgdb_agent_state {
  KVMGDB_AGENT_VCPU_RUNNING = 0,
  KVMGDB_AGENT_VCPU_STOPPED = 1, /* at the edge of KVM_RUN */
  KVMGDB_AGENT_VCPU_HALTED = 2,  /* stopped while its VMM is outside
                                    KVM_RUN (it is halted, or was paused) */
  KVMGDB_AGENT_VCPU_GONE = 3,    /* its thread has ended */
};

enum kvmgdb_agent_reason {
  KVMGDB_AGENT_REASON_NONE = 0,
  KVMGDB_AGENT_REASON_REQUEST = 1,
  KVMGDB_AGENT_REASON_STEP = 2,
  KVMGDB_AGENT_REASON_BREAKPOINT = 3, /* software; address: where */
  KVMGDB_AGENT_REASON_HARDWARE = 4,
  KVMGDB_AGENT_REASON_WATCH = 5, /* address: what was watched */
  KVMGDB_AGENT_REASON_ERROR = 6, /* KVM_EXIT_INTERNAL_ERROR; the VMM sees
                                    it on CONTINUE; detail: suberror */
};

enum kvmgdb_agent_breakpoint_kind { /* numbered as GDB's Z packets */
                                    KVMGDB_AGENT_SOFTWARE = 0,
                                    KVMGDB_AGENT_HARDWARE = 1,
                                    KVMGDB_AGENT_WRITE = 2,
                                    KVMGDB_AGENT_ACCESS =
                                        4, /* x86 has no watchpoint for reads
                                              alone */
};

struct kvmgdb_agent_request {
  uint32_t command;
  int32_t vcpu;
  uint32_t argument;
  uint32_t length; /* of the payload */
  uint64_t timeout_ns;
};

struct kvmgdb_agent_reply {
  uint32_t command;
  uint32_t status; /* enum kvmgdb_agent_status */
  int32_t os_error;
  int32_t vcpu;
  int64_t detail;
  uint64_t elapsed_ns; /* from having read the request */
  uint32_t length;
  uint32_t descriptors;
};

struct kvmgdb_agent_discovery {
  int32_t pid;
  int32_t tracer; /* PID that traces one of its threads, or 0 */
  int32_t vm_count;
  int32_t vm_fd; /* of the first one, in the VMM */
  int32_t vcpu_count;
  uint8_t bits;    /* 64 or 32 */
  uint8_t seccomp; /* some vCPU thread or the main one has a filter */
  uint8_t confidential;
  uint8_t other_pid_namespace;
  char exe[256];
};

struct kvmgdb_agent_found_vcpu {
  int32_t id; /* as the VMM numbered it in KVM_CREATE_VCPU */
  int32_t fd;
  int32_t tid;      /* 0: not known without looking into its threads */
  uint32_t seccomp; /* 2: filtered */
  uint64_t kvm_run; /* HVA of its kvm_run page, 0: none is mapped */
};

struct kvmgdb_agent_attached {
  int32_t vcpu_count;
  uint8_t sync_regs; /* registers come without a call into the VMM */
  uint8_t block_irq; /* STEP_BLOCK_IRQ works */
  uint8_t perf;      /* debug exits are caught by a perf event */
};

struct kvmgdb_agent_breakpoint {
  uint32_t kind;
  uint16_t length; /* of what is watched: 1, 2, 4, 8; else 1 */
  uint16_t user;   /* whether programs may execute what is there */
  uint64_t gva;
  uint64_t gpa; /* SOFTWARE: where the byte lies */
  uint64_t hva; /* SOFTWARE: the same in the VMM */
};

struct kvmgdb_agent_region {
  uint64_t gpa;
  uint64_t size;
  uint64_t hva;
  uint64_t offset;    /* of the first byte in its descriptor */
  int32_t descriptor; /* index among those of the reply, -1: private memory */
  uint8_t verified;   /* KVM confirmed that this GPA lies at this HVA */
  uint8_t read_only;
  uint8_t slot; /* it is one of all the slots in KVM's own table */
};

struct kvmgdb_agent_sampling {
  uint64_t period_ns;  /* between two rounds, on average */
  uint64_t ring_bytes; /* of records, a power of two */
  struct kvmgdb_sampling sampling;
};

/* struct kvm_regs and struct kvm_sregs of x86-64, field by field. */
struct kvmgdb_agent_regs {
  uint64_t rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp;
  uint64_t r8, r9, r10, r11, r12, r13, r14, r15;
  uint64_t rip, rflags;
};

struct kvmgdb_agent_segment {
  uint64_t base;
  uint32_t limit;
  uint16_t selector;
  uint8_t type;
  uint8_t present, dpl, db, s, l, g, avl;
  uint8_t unusable;
  uint8_t padding;
};

struct kvmgdb_agent_table {
  uint64_t base;
  uint16_t limit;
  uint16_t padding[3];
};

struct kvmgdb_agent_sregs {
  struct kvmgdb_agent_segment cs, ds, es, fs, gs, ss;
  struct kvmgdb_agent_segment tr, ldt;
  struct kvmgdb_agent_table gdt, idt;
  uint64_t cr0, cr2, cr3, cr4, cr8;
  uint64_t efer;
  uint64_t apic_base;
  uint64_t interrupt_bitmap[4];
};

struct kvmgdb_agent_vcpu {
  int32_t id;
  int32_t tid;
  uint32_t state;  /* enum kvmgdb_agent_state */
  uint32_t reason; /* enum kvmgdb_agent_reason */
  uint64_t address;
  int64_t detail;
  uint32_t registers_valid; /* regs and sregs are those of this stop */
  uint32_t exit_reason;     /* the last one KVM gave to the VMM */
  struct kvmgdb_agent_regs regs;
  struct kvmgdb_agent_sregs sregs;
};

struct kvmgdb_agent_shared {
  uint32_t vcpu_count;
  int32_t focus;       /* vCPU whose event stopped the machine, -1: none */
  uint64_t stop_count; /* grows with every stop of the machine by itself */
  uint32_t gone;       /* the VMM has exited */
  uint32_t reserved;
  struct kvmgdb_agent_vcpu vcpu[256];
};

/* cffi: end */

#endif
