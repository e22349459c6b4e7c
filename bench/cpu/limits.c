/* Peaks of the arithmetic units: independent chains of one instruction, in registers, on every thread at once. */
#include <immintrin.h>
#include <pthread.h>
#include <stdint.h>
#include <time.h>

#define CHAINS 20
#define EXPORT __attribute__((visibility("default")))

static double now(void)
{
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

static volatile float sink;

static void f32_fma(uint64_t rounds)
{
#if defined(__AVX512F__)
  __m512 a[CHAINS], x = _mm512_set1_ps(0.999f), y = _mm512_set1_ps(1e-3f);
  for (int i = 0; i < CHAINS; i++) a[i] = _mm512_set1_ps((float)i);
  for (uint64_t r = 0; r < rounds; r++)
#pragma clang loop unroll(full)
    for (int i = 0; i < CHAINS; i++) {
      a[i] = _mm512_fmadd_ps(a[i], x, y);
      __asm__ volatile("" : "+v"(a[i]));
    }
  for (int i = 0; i < CHAINS; i++) sink += a[i][0];
#elif defined(__AVX2__)
  __m256 a[12], x = _mm256_set1_ps(0.999f), y = _mm256_set1_ps(1e-3f);
  for (int i = 0; i < 12; i++) a[i] = _mm256_set1_ps((float)i);
  for (uint64_t r = 0; r < rounds; r++)
#pragma clang loop unroll(full)
    for (int i = 0; i < 12; i++) {
      a[i] = _mm256_fmadd_ps(a[i], x, y);
      __asm__ volatile("" : "+x"(a[i]));
    }
  for (int i = 0; i < 12; i++) sink += a[i][0];
#endif
}

static void int8_dot(uint64_t rounds)
{
#if defined(__AVX512VNNI__)
  __m512i a[CHAINS], x = _mm512_set1_epi8(3), y = _mm512_set1_epi8(-2);
  for (int i = 0; i < CHAINS; i++) a[i] = _mm512_set1_epi32(i);
  for (uint64_t r = 0; r < rounds; r++)
#pragma clang loop unroll(full)
    for (int i = 0; i < CHAINS; i++) {
      a[i] = _mm512_dpbusd_epi32(a[i], x, y);
      __asm__ volatile("" : "+v"(a[i]));
    }
  for (int i = 0; i < CHAINS; i++) sink += (float)_mm512_cvtsi512_si32(a[i]);
#else
  (void)rounds;
#endif
}

static void bf16_dot(uint64_t rounds)
{
#if defined(__AVX512BF16__)
  __m512 a[CHAINS];
  __m512bh x = (__m512bh)_mm512_set1_epi16(0x3f00), y = (__m512bh)_mm512_set1_epi16(0x3f80);
  for (int i = 0; i < CHAINS; i++) a[i] = _mm512_set1_ps((float)i);
  for (uint64_t r = 0; r < rounds; r++)
#pragma clang loop unroll(full)
    for (int i = 0; i < CHAINS; i++) {
      a[i] = _mm512_dpbf16_ps(a[i], x, y);
      __asm__ volatile("" : "+v"(a[i]));
    }
  for (int i = 0; i < CHAINS; i++) sink += a[i][0];
#else
  (void)rounds;
#endif
}

/* Operations (a multiplication and an addition are two) of a round of each kind; 0: this machine has no such unit. */
#if defined(__AVX512F__)
#define F32_OPERATIONS (CHAINS * 16 * 2)
#elif defined(__AVX2__)
#define F32_OPERATIONS (12 * 8 * 2)
#else
#define F32_OPERATIONS 0
#endif
#if defined(__AVX512VNNI__)
#define INT8_OPERATIONS (CHAINS * 64 * 2)
#else
#define INT8_OPERATIONS 0
#endif
#if defined(__AVX512BF16__)
#define BF16_OPERATIONS (CHAINS * 32 * 2)
#else
#define BF16_OPERATIONS 0
#endif

static void (*const kinds[])(uint64_t) = {f32_fma, int8_dot, bf16_dot};
static const double operations[] = {F32_OPERATIONS, INT8_OPERATIONS, BF16_OPERATIONS};

typedef struct {
  int kind;
  uint64_t rounds;
  pthread_barrier_t *barrier;
  double seconds;
} job;

static void *work(void *argument)
{
  job *j = argument;
  kinds[j->kind](j->rounds / 8);
  pthread_barrier_wait(j->barrier);
  const double started = now();
  kinds[j->kind](j->rounds);
  j->seconds = now() - started;
  return NULL;
}

/* Operations a second of `threads` threads together; kind 0 f32, 1 int8 (VNNI), 2 bf16. 0 where there is no unit. */
EXPORT double peak(int kind, int threads, uint64_t rounds)
{
  if (operations[kind] == 0 || threads < 1 || threads > 256) return 0;
  pthread_t ids[256];
  job jobs[256];
  pthread_barrier_t barrier;
  pthread_barrier_init(&barrier, NULL, (unsigned)threads);
  for (int t = 0; t < threads; t++) {
    jobs[t] = (job){kind, rounds, &barrier, 0};
    pthread_create(&ids[t], NULL, work, &jobs[t]);
  }
  double slowest = 0;
  for (int t = 0; t < threads; t++) {
    pthread_join(ids[t], NULL);
    if (jobs[t].seconds > slowest) slowest = jobs[t].seconds;
  }
  pthread_barrier_destroy(&barrier);
  return operations[kind] * (double)rounds * threads / slowest;
}

typedef uint64_t line __attribute__((vector_size(64), aligned(1)));

typedef struct {
  const uint8_t *bytes;
  uint64_t count;
} share;

static void *read_share(void *argument)
{
  const share *s = argument;
  line sums[8] = {0};
  for (uint64_t at = 0; at + sizeof sums <= s->count; at += sizeof sums)
#pragma clang loop unroll(full)
    for (int i = 0; i < 8; i++) sums[i] += *(const line *)(s->bytes + at + 64 * i);
  for (int i = 1; i < 8; i++) sums[0] += sums[i];
  sink += (float)sums[0][0];
  return NULL;
}

/* Bytes a second at which `threads` threads together read `count` bytes, each a part of its own. */
EXPORT double read_rate(const uint8_t *bytes, uint64_t count, int threads)
{
  if (threads < 1 || threads > 256) return 0;
  pthread_t ids[256];
  share shares[256];
  const uint64_t part = count / (unsigned)threads & ~(uint64_t)4095;
  const double started = now();
  for (int t = 0; t < threads; t++) {
    shares[t] = (share){bytes + part * (unsigned)t, t + 1 < threads ? part : count - part * (unsigned)t};
    pthread_create(&ids[t], NULL, read_share, &shares[t]);
  }
  for (int t = 0; t < threads; t++) pthread_join(ids[t], NULL);
  return (double)count / (now() - started);
}
