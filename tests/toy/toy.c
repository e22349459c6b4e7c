// The native interface with the simplest deterministic "model" behind it, for tests of the runtime.
//
// Every token's id is kept in the KV memory, in the slot its page table names. The logits of a row are a function of the
// whole history read back from there: 10 for (last id + 1) mod VOCAB, and a value in [0, 1) from a hash of the history for
// every other id. So a wrong page, slot or position shows in the logits.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { VOCAB = 260, PAGE_TOKENS = 4, PAGE_BYTES = 64, MAX_STEP_TOKENS = 8, CONTEXT = 160, ARENA_BYTES = 128 };

typedef struct {
    uint8_t *kv;
    uint32_t page_count;
} Model;

typedef struct {
    uint8_t *base;
    uint64_t bytes;
    uint32_t pages;
} Cache;

typedef struct {
    uint32_t tokens, sequences, pages_per_sequence, logit_count;
    const int32_t *token_ids, *positions, *sequence_of_token, *page_tables, *logit_rows;
    float *logits;
} Input;

#define EXPORT __attribute__((visibility("default")))

EXPORT uint32_t llamac_abi_version(void) { return ABI_VERSION; }

EXPORT int llamac_create(void **model, const uint8_t *weights, uint64_t weights_bytes, const Cache *caches,
                         uint32_t cache_count, uint8_t *arena, uint64_t arena_bytes, uint32_t threads) {
    (void)threads;
    if (cache_count != 1) return 7;
    uint8_t *kv = caches->base;
    const uint64_t kv_bytes = caches->bytes;
    const uint32_t page_count = caches->pages;
    if (weights_bytes != 4096 || weights[0] != 7 || arena_bytes != ARENA_BYTES) return 7;
    if (kv_bytes != (uint64_t)page_count * PAGE_BYTES) return 7;
    if ((uintptr_t)kv % 64 || (uintptr_t)arena % 64 || (uintptr_t)weights % 4096) return 7;
    for (uint64_t i = 0; i < kv_bytes; i++)
        if (kv[i]) return 7;
    Model *made = malloc(sizeof *made);
    made->kv = kv;
    made->page_count = page_count;
    *model = made;
    return 0;
}

EXPORT void llamac_destroy(void *model) { free(model); }

static int32_t *slot(const Model *model, const int32_t *table, uint32_t pages, int32_t position) {
    uint32_t index = (uint32_t)position / PAGE_TOKENS;
    if (index >= pages || table[index] < 0 || (uint32_t)table[index] >= model->page_count) return NULL;
    return (int32_t *)(model->kv + (size_t)table[index] * PAGE_BYTES) + position % PAGE_TOKENS;
}

EXPORT int llamac_step(void *opaque, const Input *in) {
    const Model *model = opaque;
    const uint32_t tokens = in->tokens, sequences = in->sequences, pages_per_sequence = in->pages_per_sequence;
    const uint32_t logit_count = in->logit_count;
    const int32_t *token_ids = in->token_ids, *positions = in->positions, *page_tables = in->page_tables;
    const int32_t *sequence_of_token = in->sequence_of_token, *logit_rows = in->logit_rows;
    float *logits = in->logits;
    if (tokens > MAX_STEP_TOKENS) return 4;
    for (uint32_t t = 0; t < tokens; t++) {
        if (token_ids[t] < 0 || token_ids[t] >= VOCAB) return 1;
        if (positions[t] < 0 || positions[t] >= CONTEXT) return 3;
        if (sequence_of_token[t] < 0 || (uint32_t)sequence_of_token[t] >= sequences) return 6;
        const int32_t *table = page_tables + (size_t)sequence_of_token[t] * pages_per_sequence;
        int32_t *place = slot(model, table, pages_per_sequence, positions[t]);
        if (!place) return 2;
        *place = token_ids[t];
    }
    for (uint32_t r = 0; r < logit_count; r++) {
        if (logit_rows[r] < 0 || (uint32_t)logit_rows[r] >= tokens) return 5;
        uint32_t row = (uint32_t)logit_rows[r], hash = 1;
        const int32_t *table = page_tables + (size_t)sequence_of_token[row] * pages_per_sequence;
        for (int32_t p = 0; p <= positions[row]; p++) {
            int32_t *place = slot(model, table, pages_per_sequence, p);
            if (!place) return 2;
            hash = (hash * 31 + (uint32_t)*place) % 65521;
        }
        for (uint32_t v = 0; v < VOCAB; v++) logits[(size_t)r * VOCAB + v] = (float)((hash + v * 17) % 97) / 97.0f;
        logits[(size_t)r * VOCAB + (uint32_t)(token_ids[row] + 1) % VOCAB] = 10.0f;
    }
    return 0;
}

EXPORT uint64_t llamac_expert_counts(void *model, uint64_t *counts, uint64_t capacity) {
    (void)model, (void)counts, (void)capacity;
    return 0;
}

EXPORT const char *llamac_status_text(int status) {
    static const char *const texts[] = {"ok",         "token id out of range",    "page out of range or missing",
                                        "position out of range", "too many tokens", "logit row out of range",
                                        "sequence index out of range", "wrong sizes at create"};
    return status >= 0 && status < (int)(sizeof texts / sizeof *texts) ? texts[status] : NULL;
}
