/* Loads a code member, prefills the given ids in one step, then decodes greedily, one id a step.
   Writes the logits of every row to stdout as raw floats.
     step_driver model.so weights.bin KV_PAGE_BYTES ARENA_BYTES VOCABULARY NEW_TOKENS THREADS TOKEN_ID... */
#include "llamac_step.h"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { PAGES = 2 };

static void *memory(uint64_t bytes)
{
  return mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static int fail(const char *what)
{
  fprintf(stderr, "%s\n", what);
  return 1;
}

int main(int argc, char **argv)
{
  if (argc < 9) return fail("too few arguments");
  void *library = dlopen(argv[1], RTLD_NOW);
  if (library == NULL) return fail(dlerror());
  __typeof__(&llamac_create) create = (__typeof__(&llamac_create))dlsym(library, "llamac_create");
  __typeof__(&llamac_step) step = (__typeof__(&llamac_step))dlsym(library, "llamac_step");
  __typeof__(&llamac_status_text) text = (__typeof__(&llamac_status_text))dlsym(library, "llamac_status_text");

  FILE *file = fopen(argv[2], "rb");
  fseek(file, 0, SEEK_END);
  const uint64_t weight_bytes = ftell(file);
  uint8_t *weights = memory(weight_bytes);
  rewind(file);
  if (fread(weights, 1, weight_bytes, file) != weight_bytes) return fail("cannot read the weights");

  const uint64_t page_bytes = strtoull(argv[3], NULL, 10), arena_bytes = strtoull(argv[4], NULL, 10);
  const int vocabulary = atoi(argv[5]), new_tokens = atoi(argv[6]), prompt = argc - 8;
  void *model;
  const llamac_kv_memory cache = {memory(PAGES * page_bytes), PAGES * page_bytes, PAGES};
  int status = create(&model, weights, weight_bytes, &cache, 1, memory(arena_bytes), arena_bytes, atoi(argv[7]));
  if (status) return fail(text(status));

  int32_t *ids = calloc(prompt, 4), *positions = calloc(prompt, 4), *sequences = calloc(prompt, 4);
  for (int i = 0; i < prompt; i++) {
    ids[i] = atoi(argv[8 + i]);
    positions[i] = i;
  }
  const int32_t table[PAGES] = {1, 0}; /* pages in any order */
  float *logits = malloc(sizeof(float) * vocabulary * prompt), *last = logits + (size_t)vocabulary * (prompt - 1);
  llamac_step_input input = {prompt, 1, PAGES, prompt, ids, positions, sequences, table, positions, logits};
  status = step(model, &input);
  if (status) return fail(text(status));
  fwrite(logits, sizeof(float), (size_t)vocabulary * prompt, stdout);
  for (int32_t n = 0; n < new_tokens; n++) {
    int32_t best = 0, position = prompt + n, zero = 0;
    for (int i = 1; i < vocabulary; i++)
      if (last[i] > last[best]) best = i;
    input = (llamac_step_input){1, 1, PAGES, 1, &best, &position, &zero, table, &zero, last};
    status = step(model, &input);
    if (status) return fail(text(status));
    fwrite(last, sizeof(float), vocabulary, stdout);
  }
  return 0;
}
