/*
 * A 32-bit VMM without any library: a machine with one vCPU, and nothing else.
 * It prints "ready" and waits. Descriptor 3 is /dev/kvm.
 */
enum { SYS_WRITE = 4, SYS_PAUSE = 29, SYS_IOCTL = 54 };
enum { KVM = 3, CREATE_VM = 0xae01, CREATE_VCPU = 0xae41 };

static int call(int number, int first, int second, int third) {
  int result;
  __asm__ volatile("int $0x80"
                   : "=a"(result)
                   : "a"(number), "b"(first), "c"(second), "d"(third)
                   : "memory");
  return result;
}

void _start(void) {
  static const char ready[] = "ready\n", failed[] = "failed\n";
  int vm = call(SYS_IOCTL, KVM, CREATE_VM, 0);
  int vcpu = vm < 0 ? vm : call(SYS_IOCTL, vm, CREATE_VCPU, 0);
  if (vcpu < 0)
    call(SYS_WRITE, 1, (int)failed, sizeof(failed) - 1);
  else
    call(SYS_WRITE, 1, (int)ready, sizeof(ready) - 1);
  for (;;)
    call(SYS_PAUSE, 0, 0, 0);
}
