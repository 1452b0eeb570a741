// Times llama.cpp, or its fork ik_llama.cpp (-DIK), through the C interface that both have: one shape in one process.
//
//   llama bench MODEL PROMPT GENERATE BATCH THREADS REPEAT OPTIONS    JSON on standard output
//   llama quantize IN OUT                                             IN again as Q8_0
//
// OPTIONS are letters: f flash attention, r repacked weights, and for the fork m merged q, k, v.
//
// The conventions are those of `chrysalis bench`: BATCH sequences of PROMPT random tokens each, one row of logits a
// sequence (prefill), then GENERATE - 1 steps of one token a sequence (decode). No sampling, KV cache in f16. What is
// measured comes after a short pass that is not counted; every repeat starts with an empty cache.

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "llama.h"
#ifndef IK
#include "ggml-cpu.h"
#endif

enum { STEP_TOKENS = 2048, MICRO_STEP_TOKENS = 512, CELLS = 256, REPEAT_MAX = 64, WARM_TOKENS = 128 };

struct shape {
    int prompt, generate, batch, threads, repeat;
    const char *options;
};

static bool has(const struct shape *shape, char option) { return strchr(shape->options, option) != NULL; }

static void fail(const char *what) {
    fprintf(stderr, "%s\n", what);
    exit(1);
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static struct llama_model *load(const char *path, const struct shape *shape) {
    struct llama_model_params params = llama_model_default_params();
    params.n_gpu_layers = 0;
#ifdef IK
    params.repack_tensors = has(shape, 'r');
    params.merge_qkv = has(shape, 'm');
    params.use_mmap = !params.repack_tensors && !params.merge_qkv;
#else
    params.use_extra_bufts = has(shape, 'r');
#endif
    struct llama_model *model = llama_model_load_from_file(path, params);
    if (model == NULL) fail("the model does not load");
    return model;
}

// Cells are counted in whole blocks for each sequence, as both ask for with flash attention.
static struct llama_context *open_context(struct llama_model *model, const struct shape *shape) {
    struct llama_context_params params = llama_context_default_params();
    int cells = (shape->prompt + shape->generate + CELLS) / CELLS * CELLS;
    params.n_ctx = (uint32_t)(cells * shape->batch);
    params.n_batch = STEP_TOKENS;
    params.n_ubatch = MICRO_STEP_TOKENS;
    params.n_seq_max = (uint32_t)shape->batch;
    params.n_threads = params.n_threads_batch = shape->threads;
    params.type_k = params.type_v = GGML_TYPE_F16;
#ifdef IK
    params.flash_attn = has(shape, 'f');
#else
    params.flash_attn_type = has(shape, 'f') ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.kv_unified = false; // one stream a sequence: the faster way when nothing is shared
    params.swa_full = false;   // sliding windows keep only what they look at
#endif
    struct llama_context *context = llama_init_from_model(model, params);
    if (context == NULL) fail("the context does not open");
#ifndef IK
    // As llama-bench does: without a pool of its own each graph would start and end its threads.
    struct ggml_threadpool_params threads = ggml_threadpool_params_default(shape->threads);
    llama_attach_threadpool(context, ggml_threadpool_new(&threads), NULL);
#endif
    return context;
}

static void forget(struct llama_context *context) {
#ifdef IK
    llama_kv_cache_clear(context);
#else
    llama_memory_clear(llama_get_memory(context), true);
#endif
}

static void add(struct llama_batch *batch, int vocab, int position, int sequence, bool logits) {
    int at = batch->n_tokens++;
    batch->token[at] = rand() % vocab;
    batch->pos[at] = position;
    batch->n_seq_id[at] = 1;
    batch->seq_id[at][0] = sequence;
    batch->logits[at] = logits;
}

// Runs what is in the batch, STEP_TOKENS at a time, and empties it.
static void run(struct llama_context *context, struct llama_batch *batch) {
    for (int at = 0; at < batch->n_tokens; at += STEP_TOKENS) {
        struct llama_batch part = *batch;
        part.n_tokens = batch->n_tokens - at < STEP_TOKENS ? batch->n_tokens - at : STEP_TOKENS;
        part.token += at;
        part.pos += at;
        part.n_seq_id += at;
        part.seq_id += at;
        part.logits += at;
        if (llama_decode(context, part) != 0) fail("llama_decode failed");
        llama_synchronize(context);
    }
    batch->n_tokens = 0;
}

// The order of the tokens is that of each peer's own batched bench.
static void prefill(struct llama_context *context, struct llama_batch *batch, int vocab, int prompt, int sequences) {
    for (int i = 0; i < sequences * prompt; i++) {
#ifdef IK
        int sequence = i % sequences, position = i / sequences;
#else
        int sequence = i / prompt, position = i % prompt;
#endif
        add(batch, vocab, position, sequence, position + 1 == prompt);
    }
    run(context, batch);
}

static void decode(struct llama_context *context, struct llama_batch *batch, int vocab, int position, int sequences) {
    for (int sequence = 0; sequence < sequences; sequence++) add(batch, vocab, position, sequence, true);
    run(context, batch);
}

static void print_rates(const char *name, const double *rates, int count) {
    printf("\"%s\": [", name);
    for (int i = 0; i < count; i++) printf("%s%.6g", i == 0 ? "" : ", ", rates[i]);
    printf("]");
}

static void bench(const char *path, const struct shape *shape) {
    double prefill_rates[REPEAT_MAX], decode_rates[REPEAT_MAX];
    double start = now();
    struct llama_model *model = load(path, shape);
    struct llama_context *context = open_context(model, shape);
    double load_s = now() - start;
    int vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    struct llama_batch batch = llama_batch_init(shape->prompt * shape->batch + shape->batch + WARM_TOKENS, 0, 1);

    int warm = shape->prompt < WARM_TOKENS ? shape->prompt : WARM_TOKENS;
    prefill(context, &batch, vocab, warm, 1);
    decode(context, &batch, vocab, warm, 1);
    const float *logits = llama_get_logits_ith(context, 0);
    for (int i = 0; i < vocab; i++)
        if (!isfinite(logits[i])) fail("the logits are not finite");

    for (int repeat = 0; repeat < shape->repeat; repeat++) {
        forget(context);
        double begin = now();
        prefill(context, &batch, vocab, shape->prompt, shape->batch);
        double middle = now();
        for (int i = 0; i + 1 < shape->generate; i++)
            decode(context, &batch, vocab, shape->prompt + i, shape->batch);
        double end = now();
        prefill_rates[repeat] = shape->batch * shape->prompt / (middle - begin);
        decode_rates[repeat] = shape->batch * (shape->generate - 1) / (end - middle);
    }
    printf("{\"load_s\": %.6g, ", load_s);
    print_rates("prefill", prefill_rates, shape->repeat);
    printf(", ");
    print_rates("decode", decode_rates, shape->repeat);
    printf("}\n");
}

static void quantize(const char *from, const char *to) {
    struct llama_model_quantize_params params = llama_model_quantize_default_params();
    params.ftype = LLAMA_FTYPE_MOSTLY_Q8_0;
    params.allow_requantize = true;
    if (llama_model_quantize(from, to, &params) != 0) fail("llama_model_quantize failed");
}

int main(int argc, char **argv) {
    llama_backend_init();
    srand(1);
    if (argc == 4 && strcmp(argv[1], "quantize") == 0) {
        quantize(argv[2], argv[3]);
    } else if (argc == 9 && strcmp(argv[1], "bench") == 0) {
        struct shape shape = {
            .prompt = atoi(argv[3]), .generate = atoi(argv[4]), .batch = atoi(argv[5]), .threads = atoi(argv[6]),
            .repeat = atoi(argv[7]), .options = argv[8],
        };
        if (shape.prompt < 1 || shape.generate < 2 || shape.batch < 1 || shape.threads < 1 || shape.repeat < 1 ||
            shape.repeat > REPEAT_MAX)
            fail("a number is out of range");
        bench(argv[2], &shape);
    } else {
        fail("llama bench MODEL PROMPT GENERATE BATCH THREADS REPEAT OPTIONS, or llama quantize IN OUT");
    }
    fflush(stdout);
    _Exit(0); // the libraries' own clean-up is not part of the measurement
}
