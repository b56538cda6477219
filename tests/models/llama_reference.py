# SPDX-License-Identifier: Apache-2.0
"""llama_decode in float64 NumPy, on the same rounded parameters and tokens."""

import argparse

import numpy as np
from llama_decode import (
    EPSILON,
    ROPE_THETA,
    Config,
    add_model_flags,
    config_from_flags,
    make_parameters,
    make_tokens,
)

Tree = dict[str, np.ndarray]


def _rms_norm(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """[..., D], [D] -> [..., D]."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + EPSILON) * gain


def _rotate(x: np.ndarray) -> np.ndarray:
    """RoPE, each step at its position: [T, B, heads, E] -> [T, B, heads, E]."""
    half = x.shape[-1] // 2
    angle = np.arange(len(x))[:, None] * ROPE_THETA ** (-np.arange(half) / half)
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)[:, None, None]
    return np.concatenate([turned.real, turned.imag], axis=-1)


def _attention(config: Config, layer: Tree, x: np.ndarray) -> np.ndarray:
    """[T, B, D] -> [T, B, D]."""
    t, b, e = config.steps, config.batch, config.head_size
    q = _rotate((x @ layer["wq"]).reshape(t, b, config.heads, e))
    k = _rotate((x @ layer["wk"]).reshape(t, b, config.kv_heads, e))
    v = (x @ layer["wv"]).reshape(t, b, config.kv_heads, e)
    k, v = (np.repeat(part, config.heads // config.kv_heads, axis=2) for part in (k, v))
    scores = np.einsum("tbhe,sbhe->bhts", q, k) / np.sqrt(e)
    scores[..., np.triu(np.ones((t, t), bool), 1)] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("bhts,sbhe->tbhe", weights, v).reshape(t, b, -1) @ layer["wo"]


def _mlp(layer: Tree, x: np.ndarray) -> np.ndarray:
    """[T, B, D] -> [T, B, D]."""
    gate = x @ layer["gate"]
    return gate / (1 + np.exp(-gate)) * (x @ layer["up"]) @ layer["down"]


def reference_logits(config: Config) -> np.ndarray:
    """Logits of every step, all steps at once: f64[steps, B, V]."""
    layers, rest = make_parameters(config)
    layers = [{name: value.astype(np.float64) for name, value in tree.items()} for tree in layers]
    rest = {name: value.astype(np.float64) for name, value in rest.items()}
    x = rest["embedding"][make_tokens(config)]
    for layer in layers:
        x = x + _attention(config, layer, _rms_norm(x, layer["attention_norm"]))
        x = x + _mlp(layer, _rms_norm(x, layer["mlp_norm"]))
    return _rms_norm(x, rest["final_norm"]) @ rest["head"]


def relative_error(out: np.ndarray, reference: np.ndarray) -> float:
    """||out - reference|| / ||reference||."""
    return float(np.linalg.norm(out - reference) / np.linalg.norm(reference))


def main() -> None:
    """Prints how far files written by llama_decode are from the reference."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    add_model_flags(parser)
    parser.add_argument("files", nargs="+", metavar="FILE", help="what llama_decode --save wrote")
    arguments = parser.parse_args()
    reference = reference_logits(config_from_flags(arguments))
    for file in arguments.files:
        with np.load(file) as arrays:
            print(f"{file} {relative_error(arrays['logits'], reference):.3e}")


if __name__ == "__main__":
    main()
