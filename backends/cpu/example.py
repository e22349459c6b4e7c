"""The C program that `--emit-c` writes beside a code member: greedy generation through the step ABI."""

from __future__ import annotations

EXAMPLE = """/* Greedy generation through the step ABI, from C alone, for a model with one cache.

     unzip -p model.llamac weights/cpu-panel16.bin > weights.bin
     cc -O2 example.c ./model.so -o example
     ./example weights.bin KV_PAGE_BYTES ARENA_BYTES VOCABULARY TOKEN_ID...

   The three numbers stand in manifest.json ("memory", "model"). */
#include "llamac_step.h"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

static int run(void *model, int32_t token, int32_t position, float *logits)
{
  const int32_t sequence = 0, page_table[2] = {0, 1}, row = 0;
  const llamac_step_input input = {1, 1, 2, 1, &token, &position, &sequence, page_table, &row, logits};
  return llamac_step(model, &input);
}

int main(int argc, char **argv)
{
  if (argc < 6) {
    fprintf(stderr, "usage: %s weights.bin KV_PAGE_BYTES ARENA_BYTES VOCABULARY TOKEN_ID...\\n", argv[0]);
    return 2;
  }
  const int file = open(argv[1], O_RDONLY);
  struct stat info;
  if (file < 0 || fstat(file, &info)) return perror(argv[1]), 2;
  const uint64_t page_bytes = strtoull(argv[2], NULL, 10), arena_bytes = strtoull(argv[3], NULL, 10);
  const int vocabulary = atoi(argv[4]), pages = 2, prompt = argc - 5;
  const uint8_t *weights = mmap(NULL, info.st_size, PROT_READ, MAP_SHARED, file, 0);
  const int private = MAP_PRIVATE | MAP_ANONYMOUS;
  uint8_t *kv = mmap(NULL, pages * page_bytes, PROT_READ | PROT_WRITE, private, -1, 0);
  uint8_t *arena = mmap(NULL, arena_bytes, PROT_READ | PROT_WRITE, private, -1, 0);
  float *logits = malloc(sizeof(float) * vocabulary);
  void *model;
  const llamac_kv_memory cache = {kv, pages * page_bytes, pages};
  int status = llamac_create(&model, weights, info.st_size, &cache, 1, arena, arena_bytes, 1);
  int32_t token = 0;
  for (int position = 0; status == 0 && position < prompt + 8; position++) {
    token = position < prompt ? atoi(argv[5 + position]) : token;
    status = run(model, token, position, logits);
    token = 0;
    for (int i = 1; i < vocabulary; i++)
      if (logits[i] > logits[token]) token = i;
    if (position >= prompt - 1) printf("%d\\n", token);
  }
  if (status) fprintf(stderr, "%s\\n", llamac_status_text(status));
  llamac_destroy(model);
  return status != 0;
}
"""
