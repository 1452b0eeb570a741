#!/usr/bin/env python3
"""Records the oracles of models/tests/oracle/main.rs: tiny random decoders and their logits.

For each architecture it writes models/tests/data/tiny-NAME/ with config.json, model.safetensors
(f32), tokens.txt (token ids) and logits.f32 (little-endian, [tokens, vocab]). The weights are drawn
wide, with norms and biases far from their defaults, so that a part left out shows in the logits.

Recorded with Python 3.11, torch 2.15.0 (CPU), transformers 5.23.0, safetensors 0.8; the seed is
fixed, so another run of these versions writes the same files.

    python3 scripts/record-oracles.py [NAME ...]
"""

import pathlib
import sys

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

DATA = pathlib.Path(__file__).resolve().parent.parent / "models" / "tests" / "data"
TOKENS = 48

# Odd vocabularies and widths that no kernel likes; windows and original contexts shorter than the text.
COMMON = dict(
    vocab_size=251,
    hidden_size=64,
    intermediate_size=88,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)


def llama(**more):
    return LlamaForCausalLM, LlamaConfig(**{**COMMON, **more})


def gemma3(**more):
    shape = dict(
        hidden_size=40,
        intermediate_size=72,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        query_pre_attn_scalar=24,
        sliding_window=12,
        layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
        tie_word_embeddings=True,
        hidden_activation="gelu_pytorch_tanh",
    )
    return Gemma3ForCausalLM, Gemma3TextConfig(**{**COMMON, **shape, **more})


MODELS = {
    # Llama 3.1: wavelengths on both sides of the ramp, output matrix of its own.
    "llama3": llama(
        tie_word_embeddings=False,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ),
    "llama-yarn": llama(
        tie_word_embeddings=True,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 16.0,
            "beta_fast": 4.0,
            "beta_slow": 0.5,
            "original_max_position_embeddings": 16,
        },
    ),
    # Every bias there is, and the exact GELU.
    "llama-linear": llama(
        tie_word_embeddings=True,
        attention_bias=True,
        mlp_bias=True,
        hidden_act="gelu",
        rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    ),
    "mistral": (
        MistralForCausalLM,
        MistralConfig(
            **{**COMMON, "num_attention_heads": 3, "num_key_value_heads": 1},
            head_dim=16,
            sliding_window=16,
            tie_word_embeddings=False,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
    ),
    "qwen2": (
        Qwen2ForCausalLM,
        Qwen2Config(
            **COMMON,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        ),
    ),
    "qwen3": (
        Qwen3ForCausalLM,
        Qwen3Config(
            **{**COMMON, "intermediate_size": 72},
            head_dim=32,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        ),
    ),
    "gemma3": gemma3(),
    # Both caps, low enough to bite; no norms of the heads.
    "gemma2": (
        Gemma2ForCausalLM,
        Gemma2Config(
            **{**COMMON, "hidden_size": 40, "intermediate_size": 72},
            head_dim=24,
            query_pre_attn_scalar=20,
            sliding_window=12,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=8.0,
            tie_word_embeddings=True,
            hidden_activation="gelu_pytorch_tanh",
        ),
    ),
}


@torch.no_grad()
def randomise(model, generator):
    """Matrices at 1 / sqrt(fan in), norms around their neutral value, biases that matter."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "embed_tokens" in name:
            parameter.copy_(noise * 0.5)
        elif name.endswith("bias"):
            parameter.copy_(noise * 0.3)
        elif parameter.dim() == 1:
            neutral = 0.0 if "Gemma" in type(model).__name__ else 1.0
            parameter.copy_(neutral + noise * 0.3)
        else:
            parameter.copy_(noise * 1.5 / parameter.shape[1] ** 0.5)


@torch.no_grad()
def record(name):
    generator = torch.Generator().manual_seed(20260 + list(MODELS).index(name))
    model_class, config = MODELS[name]
    config._attn_implementation = "eager"
    model = model_class(config).to(torch.float32).eval()
    randomise(model, generator)
    model.tie_weights()
    tokens = torch.randint(3, config.vocab_size, (TOKENS,), generator=generator)
    logits = model(tokens[None]).logits[0].to(torch.float32).contiguous()
    folder = DATA / f"tiny-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, safe_serialization=True)
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "tokens.txt").write_text(" ".join(map(str, tokens.tolist())) + "\n")
    (folder / "logits.f32").write_bytes(logits.numpy().astype("<f4").tobytes())
    size = (folder / "model.safetensors").stat().st_size
    print(f"{name}: {size} bytes, logits {logits.min():.3f}..{logits.max():.3f}, std {logits.std():.3f}")


def main():
    torch.set_num_threads(1)
    for name in sys.argv[1:] or MODELS:
        record(name)


if __name__ == "__main__":
    main()
