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
import sys

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
# What each layer has its own of: with a scan one tree, whose leaves have L as
# their first dimension; else a list of trees.
Layers = Tree | list[Tree]
# Those of the layers and the rest.
Parameters = tuple[Layers, Tree]

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
CACHE_SPEC = P(None, "tp")


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


def make_parameters(config: Config) -> tuple[list[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Deterministic parameters, rounded to the model's type.

    Returns those of each layer and the rest. Matrices have variance
    1 / fan-in, so that activations stay O(1); gains are near 1.
    """
    rng = np.random.default_rng(config.seed)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        value = rng.standard_normal(shape, np.float32)
        if name.endswith("norm"):
            value = 1 + np.float32(0.1) * value
        elif name != "embedding":
            value /= np.sqrt(np.float32(shape[0]))
        return value.astype(config.jax_dtype)

    shapes = layer_shapes(config)
    layers = [
        {name: draw(name, shape) for name, shape in shapes.items()} for _ in range(config.layers)
    ]
    d, v = config.hidden, config.vocab
    rest = {"embedding": (v, d), "final_norm": (d,), "head": (d, v)}
    return layers, {name: draw(name, shape) for name, shape in rest.items()}


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
    config: Config, layer: Tree, x: jax.Array, state: Tree, position: jax.Array
) -> tuple[jax.Array, Tree]:
    """Grouped-query attention of one token to itself and all before it.

    x is [B, D]; the state's keys and values are [B, K, S, E]. Returns the
    output [B, D] and the new state.
    """
    b, e = config.batch, config.head_size
    q = rotate((x @ layer["wq"]).reshape(b, config.heads, e), position)
    k = rotate((x @ layer["wk"]).reshape(b, config.kv_heads, e), position)
    v = (x @ layer["wv"]).reshape(b, config.kv_heads, e)
    keys = lax.dynamic_update_slice_in_dim(state["keys"], k[:, :, None], position, axis=2)
    values = lax.dynamic_update_slice_in_dim(state["values"], v[:, :, None], position, axis=2)

    # [B, K, H / K, E] times [B, K, S, E] -> [B, K, H / K, S]
    q = q.reshape(b, config.kv_heads, -1, e)
    scores = jnp.einsum("bkge,bkse->bkgs", q, keys, preferred_element_type=jnp.float32)
    seen = jnp.arange(config.cache_length) <= position
    scores = jnp.where(seen, scores * e**-0.5, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
    mixed = jnp.einsum("bkgs,bkse->bkge", weights, values)
    return mixed.reshape(b, -1) @ layer["wo"], {"keys": keys, "values": values}


def mlp(layer: Tree, x: jax.Array) -> jax.Array:
    """SwiGLU. [B, D] -> [B, D]."""
    return (jax.nn.silu(x @ layer["gate"]) * (x @ layer["up"])) @ layer["down"]


def decode_step(
    config: Config,
    mesh: Mesh,
    parameters: Parameters,
    cache: Layers,
    inputs: tuple[jax.Array, jax.Array],
) -> tuple[Layers, jax.Array]:
    """One token of each sequence through the model.

    The cache holds each layer's keys and values, [B, K, S, E]; the inputs are
    tokens i32[B] and their position i32[]. Returns the new cache and the
    logits f32[B, V].
    """
    layers, rest = parameters
    tokens, position = inputs

    def replicate(x: jax.Array) -> jax.Array:
        return lax.with_sharding_constraint(x, NamedSharding(mesh, P()))

    def block(x: jax.Array, own: tuple[Tree, Tree]) -> tuple[jax.Array, Tree]:
        layer, state = own
        normed = rms_norm(x, layer["attention_norm"])
        attended, state = attention(config, layer, normed, state, position)
        x = x + replicate(attended)
        x = x + replicate(mlp(layer, rms_norm(x, layer["mlp_norm"])))
        return x, state

    x = replicate(rest["embedding"][tokens])
    if config.scan:
        x, cache = lax.scan(block, x, (layers, cache))
    else:
        states = []
        for own in zip(layers, cache, strict=True):
            x, state = block(x, own)
            states.append(state)
        cache = states
    x = rms_norm(x, rest["final_norm"])
    logits = jnp.matmul(x, rest["head"], preferred_element_type=jnp.float32)
    return cache, replicate(logits)


# ---------------------------------------------------------------------------
# Running it


class Decoder:
    """The model on a mesh, ready to decode."""

    def __init__(self, config: Config) -> None:
        """Places the parameters; compiles nothing yet."""
        self.config = config
        devices = np.array(jax.devices()[: config.tp])
        if devices.size < config.tp:
            raise ValueError(f"--tp {config.tp}, but only {devices.size} devices")
        self.mesh = Mesh(devices, ("tp",), axis_types=(AxisType.Auto,))
        everywhere = NamedSharding(self.mesh, P())

        layers, rest = make_parameters(config)
        shardings = {name: self._layer_sharding(spec) for name, spec in LAYER_SPECS.items()}
        if config.scan:
            stacked = {name: np.stack([layer[name] for layer in layers]) for name in LAYER_SPECS}
            placed = jax.device_put(stacked, shardings)
        else:
            placed = [jax.device_put(layer, shardings) for layer in layers]
        shardings = {name: NamedSharding(self.mesh, spec) for name, spec in GLOBAL_SPECS.items()}
        self.parameters: Parameters = (placed, jax.device_put(rest, shardings))
        tokens = make_tokens(config)
        if config.loop == "device":
            self.inputs = [jax.device_put(tokens, everywhere)]
        else:
            self.inputs = [
                jax.device_put((row, np.int32(i)), everywhere) for i, row in enumerate(tokens)
            ]

        cache_sharding = self._layer_sharding(CACHE_SPEC)
        # Makes an empty cache.
        self.new_cache = jax.jit(self._zeros, out_shardings=cache_sharding)
        self._run = jax.jit(
            self._all_steps if config.loop == "device" else self._one_step,
            donate_argnames="cache",
            out_shardings=(cache_sharding, everywhere),
        )

    def _layer_sharding(self, spec: P) -> NamedSharding:
        return NamedSharding(self.mesh, P(None, *spec) if self.config.scan else spec)

    def _zeros(self) -> Layers:
        c = self.config
        shape = (c.batch, c.kv_heads, c.cache_length, c.head_size)

        def state(*stack: int) -> Tree:
            return {name: jnp.zeros((*stack, *shape), c.jax_dtype) for name in ("keys", "values")}

        return state(c.layers) if c.scan else [state() for _ in range(c.layers)]

    def _one_step(
        self, parameters: Parameters, cache: Layers, inputs: tuple[jax.Array, jax.Array]
    ) -> tuple[Layers, jax.Array]:
        return decode_step(self.config, self.mesh, parameters, cache, inputs)

    def _all_steps(
        self, parameters: Parameters, cache: Layers, tokens: jax.Array
    ) -> tuple[Layers, jax.Array]:
        """All steps in one program: i32[steps, B] -> f32[steps, B, V]."""
        c = self.config

        def body(i: jax.Array, state: tuple[Layers, jax.Array]) -> tuple[Layers, jax.Array]:
            cache, logits = state
            cache, row = self._one_step(parameters, cache, (tokens[i], i))
            return cache, lax.dynamic_update_index_in_dim(logits, row, i, axis=0)

        logits = jnp.zeros((c.steps, c.batch, c.vocab), jnp.float32)
        return lax.fori_loop(0, c.steps, body, (cache, logits))

    def decode(self, cache: Layers) -> list[jax.Array]:
        """Runs all steps from `cache`, which is consumed.

        Returns the logits: of each step, f32[B, V], or of all, f32[steps, B, V].
        """
        logits = []
        for inputs in self.inputs:
            cache, part = self._run(self.parameters, cache, inputs)
            logits.append(part)
        return logits

    def logits(self) -> np.ndarray:
        """Logits of every step: f32[steps, B, V]."""
        c = self.config
        parts = jax.device_get(self.decode(self.new_cache()))
        return np.stack(parts).reshape(c.steps, c.batch, c.vocab)

    def first_difference(self, repetitions: int) -> int | None:
        """Finds the first repetition whose logits are not bit for bit those of a first run."""
        same = jax.jit(self._same_bits)
        expected = self.decode(self.new_cache())
        for i in range(repetitions):
            if not same(self.decode(self.new_cache()), expected):
                return i
        return None

    @staticmethod
    def _same_bits(left: list[jax.Array], right: list[jax.Array]) -> jax.Array:
        """Compares as integers, so that NaN equals NaN and 0.0 is not -0.0."""
        bits = functools.partial(lax.bitcast_convert_type, new_dtype=jnp.uint32)
        pairs = zip(left, right, strict=True)
        return jnp.stack([jnp.all(bits(a) == bits(b)) for a, b in pairs]).all()


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for each field of Config."""
    choices = {"dtype": list(DTYPES), "loop": ["python", "device"]}
    for field in dataclasses.fields(Config):
        flag = "--" + field.name.replace("_", "-")
        if isinstance(field.default, bool):
            parser.add_argument(flag, action="store_true")
        else:
            parser.add_argument(
                flag,
                type=type(field.default),
                default=field.default,
                choices=choices.get(field.name),
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
    parser.add_argument("--repeat", type=int, default=0, metavar="K", help="compare K reruns' bits")
    arguments = parser.parse_args()

    decoder = Decoder(config_from_flags(arguments))
    logits = decoder.logits()
    print(f"logits {list(logits.shape)} rms {np.sqrt(np.mean(np.square(logits))):.6f}")
    if arguments.save:
        np.savez(arguments.save, logits=logits)
    if arguments.repeat:
        different = decoder.first_difference(arguments.repeat)
        if different is not None:
            print(f"repeat {different} differs")
            return 1
        print(f"repeat {arguments.repeat} bit-identical")
    return 0


if __name__ == "__main__":
    sys.exit(main())
