// SPDX-License-Identifier: Apache-2.0
/* What `as_cpu` preloads: CPUID answers as a lesser CPU would, to every library of the process.

   Linux can make the instruction fault (arch_prctl, ARCH_SET_CPUID); the handler asks the CPU and hides the features
   above the instruction set that AS_CPU names. Threads and forks inherit that; after an exec this file is loaded anew.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <dlfcn.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012
#define CANNOT 77 /* the exit status for "not on this machine", as automake has it */

enum { EAX, EBX, ECX, EDX };

/* A feature bit of CPUID, and the least of our instruction sets that it shows in: NONE for what none of them needs. */
struct feature {
  uint32_t leaf, subleaf, reg, bit, level;
};

static const char* const LEVELS[] = {"portable", "avx2", "avx512", "avx512bf16", "avx512vnni"};
enum { PORTABLE, AVX2, AVX512, AVX512BF16, AVX512VNNI, NONE };

static const struct feature FEATURES[] = {
    {1, 0, ECX, 12, AVX2},       /* fma */
    {1, 0, ECX, 28, AVX2},       /* avx */
    {1, 0, ECX, 29, AVX2},       /* f16c */
    {7, 0, EBX, 5, AVX2},        /* avx2 */
    {7, 0, EBX, 16, AVX512},     /* avx512f */
    {7, 0, EBX, 17, AVX512},     /* avx512dq */
    {7, 0, EBX, 28, AVX512},     /* avx512cd */
    {7, 0, EBX, 30, AVX512},     /* avx512bw */
    {7, 0, EBX, 31, AVX512},     /* avx512vl */
    {7, 1, EAX, 5, AVX512BF16},  /* avx512_bf16 */
    {7, 0, ECX, 11, AVX512VNNI}, /* avx512_vnni */
    {7, 0, EBX, 21, NONE},       /* avx512_ifma */
    {7, 0, ECX, 1, NONE},        /* avx512_vbmi */
    {7, 0, ECX, 6, NONE},        /* avx512_vbmi2 */
    {7, 0, ECX, 8, NONE},        /* gfni */
    {7, 0, ECX, 9, NONE},        /* vaes */
    {7, 0, ECX, 10, NONE},       /* vpclmulqdq */
    {7, 0, ECX, 12, NONE},       /* avx512_bitalg */
    {7, 0, ECX, 14, NONE},       /* avx512_vpopcntdq */
    {7, 0, EDX, 8, NONE},        /* avx512_vp2intersect */
    {7, 0, EDX, 22, NONE},       /* amx_bf16 */
    {7, 0, EDX, 23, NONE},       /* avx512_fp16 */
    {7, 0, EDX, 24, NONE},       /* amx_tile */
    {7, 0, EDX, 25, NONE},       /* amx_int8 */
    {7, 1, EAX, 4, NONE},        /* avx_vnni */
    {7, 1, EAX, 21, NONE},       /* amx_fp16 */
    {7, 1, EAX, 23, NONE},       /* avx_ifma */
};
#define NUM_FEATURES (sizeof FEATURES / sizeof *FEATURES)

static uint32_t level;
static struct sigaction next; /* whoever else wants SIGSEGV */

/* avx512vnni is a CPU with VNNI and without bf16, as Cascade Lake; avx512bf16, one with bf16 and without VNNI. */
static int shown(const struct feature* feature) {
  return feature->level <= level && !(level == AVX512VNNI && feature->level == AVX512BF16);
}

static void set_faults(int faults) {
  if (syscall(SYS_arch_prctl, ARCH_SET_CPUID, !faults) != 0) {
    perror("as_cpu: CPUID cannot be made to fault on this machine");
    _exit(CANNOT);
  }
}

static void cpuid(uint32_t leaf, uint32_t subleaf, uint32_t regs[4]) {
  __cpuid_count(leaf, subleaf, regs[EAX], regs[EBX], regs[ECX], regs[EDX]);
}

static void answer(greg_t* cpu) {
  uint32_t leaf = (uint32_t)cpu[REG_RAX], subleaf = (uint32_t)cpu[REG_RCX], regs[4];
  set_faults(0);
  cpuid(leaf, subleaf, regs);
  set_faults(1);
  for (size_t i = 0; i < NUM_FEATURES; ++i) {
    const struct feature* feature = &FEATURES[i];
    int is_asked = feature->leaf == leaf && (leaf != 7 || feature->subleaf == subleaf);
    if (is_asked && !shown(feature)) regs[feature->reg] &= ~(1u << feature->bit);
  }
  cpu[REG_RAX] = regs[EAX], cpu[REG_RBX] = regs[EBX], cpu[REG_RCX] = regs[ECX], cpu[REG_RDX] = regs[EDX];
  cpu[REG_RIP] += 2;
}

static void on_fault(int signal, siginfo_t* info, void* context) {
  greg_t* cpu = ((ucontext_t*)context)->uc_mcontext.gregs;
  /* SI_KERNEL: an instruction was forbidden, not an address. */
  if (info->si_code == SI_KERNEL && memcmp((const void*)cpu[REG_RIP], "\x0f\xa2", 2) == 0)
    answer(cpu);
  else if (next.sa_flags & SA_SIGINFO)
    next.sa_sigaction(signal, info, context);
  else if (next.sa_handler != SIG_DFL && next.sa_handler != SIG_IGN)
    next.sa_handler(signal);
  else
    abort();
}

/* Python's faulthandler, TVM and others want SIGSEGV too, later: they get what is no CPUID. */
int sigaction(int signal, const struct sigaction* action, struct sigaction* old) {
  int (*real)(int, const struct sigaction*, struct sigaction*);
  *(void**)&real = dlsym(RTLD_NEXT, "sigaction");
  if (signal != SIGSEGV || (action != NULL && action->sa_sigaction == on_fault)) return real(signal, action, old);
  struct sigaction before = next;
  if (action != NULL) next = *action;
  if (old != NULL) *old = before;
  return 0;
}

sighandler_t signal(int signal, sighandler_t handler) {
  struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART}, old;
  return sigaction(signal, &action, &old) == 0 ? old.sa_handler : SIG_ERR;
}

static void fail(const char* isa, const char* rule, int status) {
  fprintf(stderr, "as_cpu: ISA is %s; %s\n", isa, rule);
  _exit(status);
}

__attribute__((constructor)) static void start(void) {
  const char* isa = getenv("AS_CPU");
  if (isa == NULL) return;
  while (level < NONE && strcmp(isa, LEVELS[level]) != 0) ++level;
  if (level == NONE) fail(isa, "it must be portable, avx2, avx512, avx512bf16 or avx512vnni.", 2);
  for (size_t i = 0; i < NUM_FEATURES; ++i) {
    uint32_t regs[4];
    cpuid(FEATURES[i].leaf, FEATURES[i].subleaf, regs);
    int has = regs[FEATURES[i].reg] >> FEATURES[i].bit & 1;
    if (shown(&FEATURES[i]) && !has) fail(isa, "this CPU cannot play one that it is not.", CANNOT);
  }
  struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
  sigaction(SIGSEGV, &action, NULL);
  set_faults(1);
}
