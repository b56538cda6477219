# SPDX-License-Identifier: Apache-2.0
"""A server loop around a Llama-style model that GSPMD splits: no all-reduce is written anywhere.

Requests of different lengths share a batch. A slot whose sequence has ended takes the next request
at once; prompts go in token by token. Only parameters and cache are sharded, and XLA derives the
rest: an all-reduce behind the second matrix of each pair.
"""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

LAYERS, SLOTS, LENGTH, HIDDEN, HEADS, MLP, VOCABULARY = 2, 4, 24, 256, 8, 512, 320
END = 0

SPECS = {"q": P(None, "tp"), "k": P(None, "tp"), "v": P(None, "tp"), "o": P("tp", None)}
SPECS |= {"gate": P(None, "tp"), "up": P(None, "tp"), "down": P("tp", None)}


def parameters(mesh: jax.sharding.Mesh) -> dict:
    """Random ones, rounded to bfloat16."""
    rng = np.random.default_rng(0)

    def draw(*shape: int, spec: P) -> jax.Array:
        value = rng.standard_normal(shape, np.float32) * shape[0] ** -0.5
        return jax.device_put(value.astype(jnp.bfloat16), NamedSharding(mesh, spec))

    wide = {"gate": (HIDDEN, MLP), "up": (HIDDEN, MLP), "down": (MLP, HIDDEN)}
    layers = [
        {name: draw(*wide.get(name, (HIDDEN, HIDDEN)), spec=spec) for name, spec in SPECS.items()}
        | {"norms": jnp.ones((2, HIDDEN), jnp.bfloat16)}
        for _ in range(LAYERS)
    ]
    embedding = draw(VOCABULARY, HIDDEN, spec=P())
    return {"layers": layers, "embedding": embedding, "norm": jnp.ones(HIDDEN, jnp.bfloat16)}


def rms_norm(x: jax.Array, gain: jax.Array) -> jax.Array:
    """As in Llama: in float32, then cast, then times gain."""
    wide = x.astype(jnp.float32)
    mean = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    return (wide * lax.rsqrt(mean + 1e-5)).astype(x.dtype) * gain


def attention(layer: dict, cache: jax.Array, x: jax.Array, positions: jax.Array) -> tuple:
    """Of one token of each slot; the cache is [2, slots, length, heads, size]."""
    q, k, v = ((x @ layer[name]).reshape(SLOTS, HEADS, -1) for name in "qkv")
    here = jnp.arange(LENGTH) == positions[:, None]
    cache = jnp.where(here[:, :, None, None], jnp.stack([k, v])[:, :, None], cache)
    scores = jnp.einsum("bhe,bshe->bhs", q, cache[0], preferred_element_type=jnp.float32)
    seen = jnp.arange(LENGTH) <= positions[:, None, None]
    weights = jax.nn.softmax(jnp.where(seen, scores * (HIDDEN // HEADS) ** -0.5, -jnp.inf))
    mixed = jnp.einsum("bhs,bshe->bhe", weights.astype(x.dtype), cache[1])
    return cache, mixed.reshape(SLOTS, HIDDEN) @ layer["o"]


@functools.partial(jax.jit, donate_argnums=1)
def step(weights: dict, caches: list, tokens: jax.Array, positions: jax.Array) -> tuple:
    """One token of each slot through the model; returns the caches and the next tokens."""
    x = weights["embedding"][tokens]
    new_caches = []
    for layer, cache in zip(weights["layers"], caches, strict=True):
        new_cache, attended = attention(layer, cache, rms_norm(x, layer["norms"][0]), positions)
        new_caches.append(new_cache)
        x = x + attended
        normed = rms_norm(x, layer["norms"][1])
        x = x + (jax.nn.silu(normed @ layer["gate"]) * (normed @ layer["up"])) @ layer["down"]
    logits = rms_norm(x, weights["norm"]) @ weights["embedding"].T
    return new_caches, jnp.argmax(logits, axis=-1)


def serve(requests: list[list[int]], mesh: jax.sharding.Mesh) -> dict[int, list[int]]:
    """Answers all requests; returns the tokens of each, by its number."""
    weights = parameters(mesh)
    sharding = NamedSharding(mesh, P(None, None, None, "tp"))
    shape = (2, SLOTS, LENGTH, HEADS, HIDDEN // HEADS)
    caches = [jnp.zeros(shape, jnp.bfloat16, device=sharding) for _ in range(LAYERS)]
    waiting = collections.deque(enumerate(requests))
    slots: list[int | None] = [None] * SLOTS
    sequences: dict[int, list[int]] = {}
    positions = np.zeros(SLOTS, np.int32)
    while waiting or any(number is not None for number in slots):
        for i, number in enumerate(slots):
            if number is None and waiting:
                slots[i], prompt = waiting.popleft()
                sequences[slots[i]] = list(prompt)
                positions[i] = 0
        tokens = [
            END if number is None else sequences[number][position]
            for number, position in zip(slots, positions, strict=True)
        ]
        caches, following = step(weights, caches, np.array(tokens, np.int32), positions)
        for i, token in enumerate(map(int, following)):
            if slots[i] is None:
                continue
            sequence = sequences[slots[i]]
            positions[i] += 1
            if positions[i] == len(sequence):  # behind the prompt: the model speaks
                sequence.append(token)
            if sequence[-1] == END or len(sequence) == LENGTH:
                slots[i] = None
                positions[i] = 0
    return sequences


def main() -> None:
    """Six requests for four slots."""
    mesh = jax.make_mesh((jax.device_count(),), ("tp",), (jax.sharding.AxisType.Auto,))
    requests = [[7], [11, 12, 13], [301, 5], [42], [99, 98, 97, 96], [150]]
    answers = serve(requests, mesh)
    for number, answer in sorted(answers.items()):
        print(number, answer)


if __name__ == "__main__":
    main()
