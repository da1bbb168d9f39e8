// A library of the program `work`.

unsigned shared_work(unsigned seed);

static __attribute__((noinline)) unsigned shared_inner(unsigned seed) {
  for (unsigned i = 0; i < 10000; i++)
    seed = seed * 1103515245 + i;
  return seed;
}

unsigned shared_work(unsigned seed) {
  unsigned result = shared_inner(seed);
  for (unsigned i = 0; i < 10000; i++)
    __asm__ volatile("" : "+r"(result));
  return result;
}
