#!/usr/bin/env python3
"""What llama.cpp makes of a text: its perplexity under a GGUF file; JSON on standard output.

    llama-cpp-reference.py MODEL.gguf --text FILE [--threads N] [--context 2048]

Needs llama-cpp-python built for this machine (0.3.36 was used); its speed is measured by benches/side-by-side.py. The
convention, which `chrysalis eval` shares: the whole text, cut at --context tokens (2048), in one pass. The text is
tokenised with its special tokens as text and with BOS before it exactly if the model adds one; BOS counts among the
tokens of the context. Every token but the first is scored, given all before it: exp(mean of -ln p), p from a softmax
in f64.
"""

import argparse
import json
import math
import time

import llama_cpp
from llama_cpp import Llama


def main():
    args = arguments()
    out = {"model": args.model, "threads": args.threads, "llama_cpp_python": llama_cpp.__version__}
    print(json.dumps({**out, "perplexity": perplexity(args)}))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--text", required=True)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--plain-weights", action="store_true", help="no AMX and no repacked weights (gcc 12 miscompiles ggml's AMX)"
    )
    parser.add_argument("--cache", choices=["f16", "f32"], default="f16", help="type of the KV cache")
    return parser.parse_args()


def load(args):
    if args.plain_weights:
        raw = llama_cpp.llama_cpp
        params = raw.llama_model_default_params()
        params.use_extra_bufts = False
        raw.llama_model_default_params = lambda: params
    kind = llama_cpp.GGML_TYPE_F32 if args.cache == "f32" else llama_cpp.GGML_TYPE_F16
    return Llama(
        model_path=args.model,
        n_ctx=args.context,
        n_batch=args.context,
        n_ubatch=min(args.context, 512),
        n_threads=args.threads,
        n_threads_batch=args.threads,
        n_gpu_layers=0,
        logits_all=True,
        type_k=kind,
        type_v=kind,
        verbose=False,
    )


def perplexity(args):
    model = load(args)
    with open(args.text, "rb") as file:
        text = file.read()
    ids = model.tokenize(text, add_bos=True, special=False)
    cut = len(ids) > args.context
    ids = ids[: args.context]
    start = time.perf_counter()
    model.reset()
    model.eval(ids)
    total = 0.0
    agreed = 0
    for position in range(len(ids) - 1):
        row = [float(x) for x in model.scores[position]]
        highest = max(row)
        log_sum = highest + math.log(math.fsum(math.exp(x - highest) for x in row))
        total += log_sum - row[ids[position + 1]]
        agreed += row[ids[position + 1]] == highest
    scored = len(ids) - 1
    return {
        "text": args.text,
        "tokens": len(ids),
        "scored": scored,
        "cut": cut,
        "bos": ids[0] == model.token_bos() and ids[0] != model.tokenize(text, add_bos=False, special=False)[0],
        "mean_nll": total / scored,
        "perplexity": math.exp(total / scored),
        "top1": agreed / scored,
        "cache": args.cache,
        "seconds": time.perf_counter() - start,
    }


if __name__ == "__main__":
    main()
