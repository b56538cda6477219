# SPDX-License-Identifier: Apache-2.0
"""A tensor-parallel Llama-style decoder, as its user would write it: plain JAX.

Every step feeds one token of each sequence through all layers and returns the
logits of the next. Parameters and KV cache are sharded over the mesh axis
`tp`; GSPMD derives the communication, which is two all-reduces a layer: after
the output projection of the attention and after the down projection of the
MLP. The residual stream is replicated.

The token ids are fixed beforehand, so that runs that round differently stay
comparable. Shapes: L layers, B batch, S cache length, D hidden, H heads, K
KV heads, E head size, F MLP size, V vocabulary.
"""

import argparse
import dataclasses
import functools
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

DTYPES = {"bf16": jnp.bfloat16, "f32": jnp.float32, "f16": jnp.float16}
EPSILON = 1e-5
ROPE_THETA = 10000.0

Tree = dict[str, jax.Array]

# How a parameter of one layer is sharded: [in, out] matrices are split by
# their columns, then by their rows, so that only the second product of each
# pair leaves partial sums.
LAYER_SPECS = {
    "attention_norm": P(),
    "wq": P(None, "tp"),
    "wk": P(None, "tp"),
    "wv": P(None, "tp"),
    "wo": P("tp", None),
    "mlp_norm": P(),
    "gate": P(None, "tp"),
    "up": P(None, "tp"),
    "down": P("tp", None),
}
GLOBAL_SPECS = {"embedding": P(), "final_norm": P(), "head": P(None, "tp")}
# [L, B, S, K, E]
CACHE_SPEC = P(None, None, None, "tp", None)


@dataclasses.dataclass(frozen=True)
class Config:
    """The model and the run; one field for each flag of the command line."""

    layers: int = 2
    hidden: int = 256
    heads: int = 8
    kv_heads: int = 8
    ffn: int = 512
    vocab: int = 512
    batch: int = 4
    steps: int = 8
    max_len: int = 0  # Length of the KV cache; 0: just long enough.
    tp: int = 8
    dtype: str = "bf16"
    scan: bool = False
    loop: str = "python"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.hidden % self.heads or self.heads % self.kv_heads:
            raise ValueError("heads must divide hidden, and kv-heads must divide heads")
        for name in ("kv_heads", "ffn", "vocab"):
            if getattr(self, name) % self.tp:
                raise ValueError(f"tp must divide {name}")
        if self.head_size % 2:
            raise ValueError("RoPE needs an even head size")
        if self.cache_length < self.steps:
            raise ValueError("max-len is less than steps")

    @property
    def head_size(self) -> int:
        """E."""
        return self.hidden // self.heads

    @property
    def cache_length(self) -> int:
        """S."""
        return self.max_len or self.steps

    @property
    def jax_dtype(self) -> jnp.dtype:
        """Type of parameters, activations and cache."""
        return jnp.dtype(DTYPES[self.dtype])


def layer_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Shapes of one layer's parameters."""
    d, f = config.hidden, config.ffn
    kv = config.kv_heads * config.head_size
    return {
        "attention_norm": (d,),
        "wq": (d, d),
        "wk": (d, kv),
        "wv": (d, kv),
        "wo": (d, d),
        "mlp_norm": (d,),
        "gate": (d, f),
        "up": (d, f),
        "down": (f, d),
    }


def make_parameters(config: Config) -> dict[str, np.ndarray]:
    """Deterministic parameters, rounded to the model's type.

    The layers are stacked: `wq` is [L, D, H * E]. Matrices have variance
    1 / fan-in, so that activations stay O(1); gains are near 1.
    """
    rng = np.random.default_rng(config.seed)
    shapes = {name: (config.layers, *shape) for name, shape in layer_shapes(config).items()}
    shapes["embedding"] = (config.vocab, config.hidden)
    shapes["final_norm"] = (config.hidden,)
    shapes["head"] = (config.hidden, config.vocab)
    parameters = {}
    for name, shape in shapes.items():
        value = rng.standard_normal(shape, np.float32)
        if name.endswith("norm"):
            value = 1 + 0.1 * value
        elif name != "embedding":
            value /= np.sqrt(np.float32(shape[-2]))
        parameters[name] = value.astype(config.jax_dtype)
    return parameters


def make_tokens(config: Config) -> np.ndarray:
    """The token ids that are fed: i32[steps, B]."""
    rng = np.random.default_rng(config.seed + 1)
    return rng.integers(0, config.vocab, (config.steps, config.batch), np.int32)


# ---------------------------------------------------------------------------
# The model


def rms_norm(x: jax.Array, gain: jax.Array) -> jax.Array:
    """[B, D], [D] -> [B, D]; in f32, then cast, then times gain, as in Llama."""
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    return (wide * lax.rsqrt(mean_square + EPSILON)).astype(x.dtype) * gain


def rotate(x: jax.Array, position: jax.Array) -> jax.Array:
    """RoPE. [B, heads, E], i32[] -> [B, heads, E]; computed in f32."""
    half = x.shape[-1] // 2
    frequencies = ROPE_THETA ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = position.astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def attention(
    config: Config,
    layer: Tree,
    x: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    position: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Grouped-query attention of one token to all before it.

    x is [B, D]; keys and values are [B, S, K, E]. Returns the output [B, D]
    and the new keys and values.
    """
    b, e = config.batch, config.head_size
    q = rotate((x @ layer["wq"]).reshape(b, config.heads, e), position)
    k = rotate((x @ layer["wk"]).reshape(b, config.kv_heads, e), position)
    v = (x @ layer["wv"]).reshape(b, config.kv_heads, e)
    keys = lax.dynamic_update_slice_in_dim(keys, k[:, None], position, axis=1)
    values = lax.dynamic_update_slice_in_dim(values, v[:, None], position, axis=1)

    q = q.reshape(b, config.kv_heads, -1, e)
    scores = jnp.einsum("bkge,bske->bkgs", q, keys, preferred_element_type=jnp.float32)
    seen = jnp.arange(config.cache_length) <= position
    scores = jnp.where(seen, scores * e**-0.5, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
    mixed = jnp.einsum("bkgs,bske->bkge", weights, values)
    return mixed.reshape(b, -1) @ layer["wo"], keys, values


def mlp(layer: Tree, x: jax.Array) -> jax.Array:
    """SwiGLU. [B, D] -> [B, D]."""
    return (jax.nn.silu(x @ layer["gate"]) * (x @ layer["up"])) @ layer["down"]


def decode_step(
    config: Config,
    mesh: Mesh,
    parameters: Tree,
    cache: Tree,
    tokens: jax.Array,
    position: jax.Array,
) -> tuple[Tree, jax.Array]:
    """One token of each sequence through the model.

    The cache holds keys and values, each [L, B, S, K, E]; tokens are i32[B].
    Returns the new cache and the logits f32[B, V].
    """

    def replicate(x: jax.Array) -> jax.Array:
        return lax.with_sharding_constraint(x, NamedSharding(mesh, P()))

    def block(x: jax.Array, inputs: tuple[Tree, jax.Array, jax.Array]):
        layer, keys, values = inputs
        normed = rms_norm(x, layer["attention_norm"])
        attended, keys, values = attention(config, layer, normed, keys, values, position)
        x = x + replicate(attended)
        x = x + replicate(mlp(layer, rms_norm(x, layer["mlp_norm"])))
        return x, (keys, values)

    x = replicate(parameters["embedding"][tokens])
    stacked = {name: parameters[name] for name in LAYER_SPECS}
    inputs = (stacked, cache["keys"], cache["values"])
    if config.scan:
        x, (keys, values) = lax.scan(block, x, inputs)
    else:
        states = []
        for i in range(config.layers):
            x, state = block(x, jax.tree.map(lambda leaf, i=i: leaf[i], inputs))
            states.append(state)
        keys, values = (jnp.stack(parts) for parts in zip(*states, strict=True))
    x = rms_norm(x, parameters["final_norm"])
    logits = jnp.matmul(x, parameters["head"], preferred_element_type=jnp.float32)
    return {"keys": keys, "values": values}, replicate(logits)


# ---------------------------------------------------------------------------
# Running it


class Decoder:
    """The model on a mesh, ready to decode."""

    def __init__(self, config: Config) -> None:
        self.config = config
        devices = np.array(jax.devices()[: config.tp])
        if devices.size < config.tp:
            raise ValueError(f"--tp {config.tp}, but only {devices.size} devices")
        self.mesh = Mesh(devices, ("tp",), axis_types=(AxisType.Auto,))
        specs = {name: P(None, *spec) for name, spec in LAYER_SPECS.items()} | GLOBAL_SPECS
        self.parameters = {
            name: jax.device_put(value, self._sharding(specs[name]))
            for name, value in make_parameters(config).items()
        }
        self.tokens = jax.device_put(make_tokens(config), self._sharding(P()))
        self.positions = [
            jax.device_put(np.int32(i), self._sharding(P())) for i in range(config.steps)
        ]
        cache = self._sharding(CACHE_SPEC)
        shardings = ({"keys": cache, "values": cache}, self._sharding(P()))
        self._new_cache = jax.jit(self._zeros, out_shardings=shardings[0])
        self._step = jax.jit(
            functools.partial(decode_step, config, self.mesh),
            donate_argnums=1,
            out_shardings=shardings,
        )
        self._steps = jax.jit(self._device_loop, donate_argnums=1, out_shardings=shardings)
        self._token_list = [jax.device_put(row, self._sharding(P())) for row in make_tokens(config)]

    def _sharding(self, spec: P) -> NamedSharding:
        return NamedSharding(self.mesh, spec)

    def _zeros(self) -> Tree:
        c = self.config
        shape = (c.layers, c.batch, c.cache_length, c.kv_heads, c.head_size)
        return {name: jnp.zeros(shape, c.jax_dtype) for name in ("keys", "values")}

    def _device_loop(
        self, parameters: Tree, cache: Tree, tokens: jax.Array
    ) -> tuple[Tree, jax.Array]:
        """All steps in one program: i32[steps, B] -> f32[steps, B, V]."""
        c = self.config

        def body(i: jax.Array, state: tuple[Tree, jax.Array]) -> tuple[Tree, jax.Array]:
            cache, logits = state
            cache, row = decode_step(c, self.mesh, parameters, cache, tokens[i], i)
            return cache, lax.dynamic_update_index_in_dim(logits, row, i, axis=0)

        logits = jnp.zeros((c.steps, c.batch, c.vocab), jnp.float32)
        return lax.fori_loop(0, c.steps, body, (cache, logits))

    def new_cache(self) -> Tree:
        """An empty cache: keys and values, each [L, B, S, K, E]."""
        return self._new_cache()

    def decode(self, cache: Tree) -> list[jax.Array]:
        """All steps from `cache`, which is consumed.

        Returns the logits: of each step, f32[B, V], or of all, f32[steps, B, V].
        """
        if self.config.loop == "device":
            return [self._steps(self.parameters, cache, self.tokens)[1]]
        logits = []
        for tokens, position in zip(self._token_list, self.positions, strict=True):
            cache, row = self._step(self.parameters, cache, tokens, position)
            logits.append(row)
        return logits

    def logits(self) -> np.ndarray:
        """Logits of every step: f32[steps, B, V]."""
        c = self.config
        parts = jax.device_get(self.decode(self.new_cache()))
        return np.stack(parts).reshape(c.steps, c.batch, c.vocab)

    def microseconds_per_step(self, repetitions: int) -> float:
        """Median over the repetitions, after two to warm up."""
        times = []
        for _ in range(2 + repetitions):
            cache = jax.block_until_ready(self.new_cache())
            start = time.perf_counter()
            jax.block_until_ready(self.decode(cache))
            times.append(time.perf_counter() - start)
        return statistics.median(times[2:]) / self.config.steps * 1e6

    def first_difference(self, repetitions: int) -> int | None:
        """The first repetition that is not bit-identical to the one before all."""
        same = jax.jit(self._same_bits)
        expected = self.decode(self.new_cache())
        for i in range(repetitions):
            if not same(self.decode(self.new_cache()), expected):
                return i
        return None

    @staticmethod
    def _same_bits(left: list[jax.Array], right: list[jax.Array]) -> jax.Array:
        """Compares as integers, so that NaN equals NaN and 0.0 is not -0.0."""
        pairs = zip(left, right, strict=True)
        bits = functools.partial(lax.bitcast_convert_type, new_dtype=jnp.uint32)
        return jnp.stack([jnp.all(bits(a) == bits(b)) for a, b in pairs]).all()


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for each field of Config."""
    choices = {"dtype": list(DTYPES), "loop": ["python", "device"]}
    for field in dataclasses.fields(Config):
        flag = "--" + field.name.replace("_", "-")
        if isinstance(field.default, bool):
            parser.add_argument(flag, action="store_true")
        else:
            kind = type(field.default)
            parser.add_argument(
                flag, type=kind, default=field.default, choices=choices.get(field.name)
            )


def config_from_flags(arguments: argparse.Namespace) -> Config:
    """The inverse of add_model_flags."""
    names = [field.name for field in dataclasses.fields(Config)]
    return Config(**{name: getattr(arguments, name) for name in names})


def main() -> int:
    """Runs the model as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_flags(parser)
    parser.add_argument("--save", metavar="FILE", help="write the logits of every step (.npz)")
    parser.add_argument("--time", type=int, default=0, metavar="N", help="time N repetitions")
    parser.add_argument(
        "--repeat",
        type=int,
        default=0,
        metavar="K",
        help="check that K repetitions agree bit by bit",
    )
    arguments = parser.parse_args()

    decoder = Decoder(config_from_flags(arguments))
    logits = decoder.logits()
    print(f"logits {list(logits.shape)} rms {np.sqrt(np.mean(np.square(logits))):.6f}")
    if arguments.save:
        np.savez(arguments.save, logits=logits)
    if arguments.time:
        print(f"us_per_step {decoder.microseconds_per_step(arguments.time):.2f}")
    if arguments.repeat:
        different = decoder.first_difference(arguments.repeat)
        if different is not None:
            print(f"repeat {different} differs")
            return 1
        print(f"repeat {arguments.repeat} bit-identical")
    return 0


if __name__ == "__main__":
    sys.exit(main())
