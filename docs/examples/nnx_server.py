# SPDX-License-Identifier: Apache-2.0
"""A server loop around a Llama-style model in flax.nnx that GSPMD splits over the devices.

Requests of different lengths share a batch. A slot whose sequence has ended takes the next request
at once; prompts go in token by token. Only parameters and cache are sharded, and XLA derives the
rest: an all-reduce behind the second matrix of each pair. The named scopes are for profilers.
"""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

LAYERS, SLOTS, LENGTH, HIDDEN, HEADS, MLP, VOCABULARY = 2, 4, 24, 256, 8, 512, 320
END = 0

COLUMNS, ROWS = P(None, "tp"), P("tp", None)
CACHE = P(None, None, None, "tp")


class RMSNorm(nnx.Module):
    """As in Llama: in float32, then cast, then times gain."""

    def __init__(self):
        self.gain = nnx.Param(jnp.ones(HIDDEN, jnp.bfloat16))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[slots, hidden] to the same."""
        wide = x.astype(jnp.float32)
        mean = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        return (wide * lax.rsqrt(mean + 1e-5)).astype(x.dtype) * self.gain


def linear(inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    """In bfloat16, without a bias."""
    kinds = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}
    return nnx.Linear(inputs, outputs, use_bias=False, rngs=rngs, **kinds)


class Attention(nnx.Module):
    """Of one token of each slot, over the cache, which is [2, slots, length, heads, size]."""

    def __init__(self, rngs: nnx.Rngs):
        self.q, self.k, self.v, self.o = (linear(HIDDEN, HIDDEN, rngs) for _ in range(4))

    def __call__(self, x: jax.Array, cache: jax.Array, positions: jax.Array) -> tuple:
        """[slots, hidden] to the same, and the new cache."""
        q, k, v = (part(x).reshape(SLOTS, HEADS, -1) for part in (self.q, self.k, self.v))
        here = jnp.arange(LENGTH) == positions[:, None]
        cache = jnp.where(here[:, :, None, None], jnp.stack([k, v])[:, :, None], cache)
        scores = jnp.einsum("bhe,bshe->bhs", q, cache[0], preferred_element_type=jnp.float32)
        seen = jnp.arange(LENGTH) <= positions[:, None, None]
        weights = nnx.softmax(jnp.where(seen, scores * (HIDDEN // HEADS) ** -0.5, -jnp.inf))
        mixed = jnp.einsum("bhs,bshe->bhe", weights.astype(x.dtype), cache[1])
        return self.o(mixed.reshape(SLOTS, HIDDEN)), cache


class MLPBlock(nnx.Module):
    """A gated MLP."""

    def __init__(self, rngs: nnx.Rngs):
        self.gate, self.up = (linear(HIDDEN, MLP, rngs) for _ in range(2))
        self.down = linear(MLP, HIDDEN, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[slots, hidden] to the same."""
        return self.down(nnx.silu(self.gate(x)) * self.up(x))


class Layer(nnx.Module):
    """Attention and MLP, each with a norm before it and added to what came in."""

    def __init__(self, rngs: nnx.Rngs):
        self.norms = nnx.List([RMSNorm(), RMSNorm()])
        self.attention, self.mlp = Attention(rngs), MLPBlock(rngs)

    def __call__(self, x: jax.Array, cache: jax.Array, positions: jax.Array) -> tuple:
        """[slots, hidden] to the same, and the new cache."""
        with jax.named_scope("attention"):
            attended, cache = self.attention(self.norms[0](x), cache, positions)
            x = x + attended
        with jax.named_scope("mlp"):
            return x + self.mlp(self.norms[1](x)), cache


class Model(nnx.Module):
    """From tokens to logits, one token of each slot at a time."""

    def __init__(self, rngs: nnx.Rngs):
        kinds = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}
        self.embedding = nnx.Embed(VOCABULARY, HIDDEN, rngs=rngs, **kinds)
        self.layers = nnx.List([Layer(rngs) for _ in range(LAYERS)])
        self.norm = RMSNorm()

    def __call__(self, tokens: jax.Array, caches: list, positions: jax.Array) -> tuple:
        """Tokens and positions, int32[slots], to logits, [slots, vocabulary], and caches."""
        x, updated = self.embedding(tokens), []
        for i, (layer, cache) in enumerate(zip(self.layers, caches, strict=True)):
            with jax.named_scope(f"layer_{i}"):
                x, new = layer(x, cache, positions)
            updated.append(new)
        return self.embedding.attend(self.norm(x)), updated


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def step(
    graph: nnx.GraphDef, state: nnx.State, caches: list, tokens: jax.Array, positions: jax.Array
) -> tuple[list, jax.Array]:
    """One token of each slot through the model; returns the caches and the next tokens."""
    logits, caches = nnx.merge(graph, state)(tokens, caches, positions)
    return caches, jnp.argmax(logits, axis=-1)


def sharded(state: nnx.State, mesh: jax.sharding.Mesh) -> nnx.State:
    """Splits the first matrices of each pair by columns and the second ones by rows."""

    def place(path: tuple, value: jax.Array) -> jax.Array:
        names = jax.tree_util.keystr(path)
        first = any(f"'{name}'" in names for name in ("q", "k", "v", "gate", "up"))
        second = any(f"'{name}'" in names for name in ("o", "down"))
        spec = COLUMNS if first else ROWS if second else P()
        return jax.device_put(value, NamedSharding(mesh, spec))

    return jax.tree.map_with_path(place, state)


def serve(requests: list[list[int]], mesh: jax.sharding.Mesh) -> dict[int, list[int]]:
    """Answers all requests; returns the tokens of each, by its number."""
    graph, state = nnx.split(Model(nnx.Rngs(0)))
    state = sharded(state, mesh)
    shape = (2, SLOTS, LENGTH, HEADS, HIDDEN // HEADS)
    sharding = NamedSharding(mesh, CACHE)
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
        caches, following = step(graph, state, caches, np.array(tokens, np.int32), positions)
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
