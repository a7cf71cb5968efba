"""The blocks of a transformer: matrices, parameters, FLOPs and KV cache of each part."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.model.update_rules import UpdateRule


class Dim(NamedTuple):
    """One side of a matrix: `parts` (heads, columns) of `size` each.

    With `split`, tensor parallelism distributes whole parts. Otherwise every chip has all of them.
    """

    parts: int
    size: int = 1
    split: bool = False

    def share(self, tensor: int) -> int:
        """Return its length on the fullest of `tensor` chips."""
        return (math.ceil(self.parts / tensor) if self.split else self.parts) * self.size


class NumberFormat(NamedTuple):
    """How numbers are stored: the precision, and the bits of one number with its block scales.

    >>> NumberFormat("fp4", 4.25)  # MXFP4: a scale of 8 bits for 32 numbers
    NumberFormat(precision='fp4', bits=4.25)

    Odd widths have the next wider precision: 3-bit integers are multiplied as int4.
    """

    precision: str
    bits: float

    @property
    def bytes(self) -> float:
        """The bytes of one number."""
        return self.bits / 8


Part = Literal[
    "embedding", "attention", "recurrent", "mlp", "router", "shared experts", "experts", "head"
]


class Matrix(NamedTuple):
    """A weight matrix whose sides consist of parts that split separately (q, k and v heads)."""

    rows: tuple[Dim, ...]
    columns: tuple[Dim, ...]
    part: Part
    stored: NumberFormat

    def share(self, tensor: int) -> tuple[int, int]:
        """Return the rows and columns on the fullest of `tensor` chips."""
        return sum(d.share(tensor) for d in self.rows), sum(d.share(tensor) for d in self.columns)


class Latent(NamedTuple):
    """Multi-head latent attention: the cache holds one latent and one rotary key for all heads."""

    rank: int  # numbers of the latent
    rope: int  # numbers of the rotary part of a key
    nope: int  # numbers of the other part of a key
    value: int  # numbers of a value


class Stateless:
    """A mixer without a state of fixed size."""

    __slots__ = ()

    def state_bytes(self, tensor: int = 1) -> float:
        """Return the bytes of a state of fixed size: none."""
        return 0.0

    def state_reads(self, tokens: float, decode: bool) -> float:
        """Return how often a step reads and writes a state: never."""
        return 0.0

    def token_flops(self, tensor: int = 1, chunk: float = 1.0) -> float:
        """Return the FLOPs of a new token that do not depend on its positions: none."""
        return 0.0


@dataclass(frozen=True, slots=True)
class Attention(Stateless):
    """How a layer attends: what a token adds to the KV cache, and the FLOPs for each position.

    sparse: it attends to `window` positions that an indexer chooses, and keeps all of them.
    value_size: width of a value; None: that of a key.
    """

    heads: int
    kv_heads: int
    head_size: int
    window: int | None = None  # positions that it attends to; None: all
    shared: bool = False  # V equals K and is stored once
    latent: Latent | None = None
    sparse: bool = False
    value_size: int | None = None

    # Words of an explanation.
    name, cache = "attention", "KV cache"
    computing, reading = "attention over the KV cache", "KV cache read"

    @property
    def forgets(self) -> bool:
        """Whether the cache drops positions that the window has passed."""
        return self.window is not None and not self.sparse

    @property
    def cached_heads(self) -> int:
        """The heads of the cache. A latent counts as one."""
        return 1 if self.latent else self.kv_heads

    def kv_width(self, tensor: int = 1) -> int:
        """Return the numbers that one token adds to the cache on the fullest of `tensor` chips.

        With fewer KV heads than chips, several chips hold the same head. Every chip holds a latent.
        """
        if self.latent:
            return self.latent.rank + self.latent.rope
        width = self.head_size if self.shared else self._key_and_value
        return math.ceil(self.kv_heads / tensor) * width

    @property
    def _key_and_value(self) -> int:
        """The numbers of a key and a value of one head."""
        return self.head_size + (self.value_size or self.head_size)

    def flops(self, tensor: int = 1, decode: bool = True) -> float:
        """Return the FLOPs for each position that a new token attends to, on the fullest chip.

        They are q times k and weights times v. Decode attends to a latent directly (absorbed:
        2H(2*rank + rope)). Prefill unpacks the latent to heads, unless it is sparse.
        """
        heads = math.ceil(self.heads / tensor)
        if self.latent is None:
            return 2.0 * heads * self._key_and_value
        latent = self.latent
        absorbed, unpacked = 2 * latent.rank + latent.rope, latent.nope + latent.rope + latent.value
        return 2.0 * heads * (absorbed if decode or self.sparse else unpacked)

    def reads(self, tensor: int = 1) -> float:
        """Return how often each cached position is read if each query head reads it again.

        That is the number of query heads for each KV head, or for the latent, on the fullest chip.
        """
        return math.ceil(self.heads / tensor) / math.ceil(self.cached_heads / tensor)


@dataclass(frozen=True, slots=True)
class Indexer(Stateless):
    """The scores by which sparse attention chooses positions: a query and one key of its own.

    Every chip of a group has the whole indexer, as in vLLM.
    Left out: the choice itself, and keys in fewer bits than the KV cache.
    """

    heads: int
    size: int

    window = None
    forgets = False
    cached_heads = 1
    # Words of an explanation.
    name, cache = "indexer", "index keys"
    computing, reading = "positions scored", "index keys read"

    def kv_width(self, tensor: int = 1) -> int:
        """Return the numbers of a key, which one token adds to the cache."""
        return self.size

    def flops(self, tensor: int = 1, decode: bool = True) -> float:
        """Return the FLOPs for each position that a new token scores."""
        return 2.0 * self.heads * self.size

    def reads(self, tensor: int = 1) -> float:
        """Return how often a decode reads what is cached: once."""
        return 1.0


@dataclass(frozen=True, slots=True)
class Recurrence:
    """A layer that keeps a state of fixed size for each sequence, instead of keys and values.

    The state has heads x key x value numbers. A short convolution before it keeps its last inputs.
    groups: heads of a group share their keys.
    convolved: channels of the convolution; kept: inputs that it keeps of each.
    state_width, input_width: bytes of a number of the state, and of an input.

    Left out: rounding of prompts to whole chunks; element-wise work.
    """

    heads: int
    groups: int
    key: int
    value: int
    convolved: tuple[Dim, ...]
    kept: int
    rule: UpdateRule
    state_width: float = 4.0
    input_width: float = 2.0

    window = None  # of positions, which it does not keep
    forgets = False
    cached_heads = 0
    # Words of an explanation.
    name, cache = "recurrence", "state"
    computing, reading = "states updated", "states read and written"

    def kv_width(self, tensor: int = 1) -> int:
        """Return the numbers that one token adds to the cache: none."""
        return 0

    def flops(self, tensor: int = 1, decode: bool = True) -> float:
        """Return the FLOPs for each earlier position: none."""
        return 0.0

    def reads(self, tensor: int = 1) -> float:
        """Return how often a decode reads what is cached: once."""
        return 1.0

    def state_bytes(self, tensor: int = 1) -> float:
        """Return the bytes of a sequence's state on the fullest of `tensor` chips."""
        numbers = math.ceil(self.heads / tensor) * self.key * self.value
        inputs = self.kept * sum(channels.share(tensor) for channels in self.convolved)
        return numbers * self.state_width + inputs * self.input_width

    def state_reads(self, tokens: float, decode: bool) -> float:
        """Return how often a step of `tokens` reads a state, which it then writes.

        A decode does so for each token. A prompt does so for each chunk, and at its beginning.
        Left out: the beginnings of further prompts in a step.
        """
        return tokens if decode else 1 + tokens / self.rule.chunk

    def token_flops(self, tensor: int = 1, chunk: float = 1.0) -> float:
        """Return the FLOPs of a new token, in a prompt's part of `chunk` tokens."""
        heads, groups = math.ceil(self.heads / tensor), math.ceil(self.groups / tensor)
        with_state = self.rule.state * heads * self.key * self.value
        together = self.rule.keys * groups * self.key + self.rule.values * heads * self.value
        return 2.0 * (with_state + min(chunk, self.rule.chunk) * together)


Mixer = Attention | Indexer | Recurrence


@dataclass(frozen=True, slots=True)
class Experts:
    """Routed experts of a layer: `per_token` of `count`, each an MLP with the same matrices.

    With node-limited routing, a token takes all of its experts from `groups_per_token` of `groups`
    groups of consecutive experts.
    """

    count: int
    per_token: int
    matrices: tuple[Matrix, ...]
    vectors: int = 0
    groups: int = 1
    groups_per_token: int = 1

    def parameters(self, tensor: int = 1) -> int:
        """Return the parameters of one expert on the fullest of `tensor` chips."""
        return sum(math.prod(matrix.share(tensor)) for matrix in self.matrices) + self.vectors

    def reached(self, blocks: int) -> float:
        """Return the expected number of blocks of chips, out of `blocks`, with a token's experts.

        Experts are distributed in order, and all choices are equally likely. A block is missed if
        all `per_token` experts are other experts of the chosen groups.
        Left out: skew.
        """
        return _expected_blocks(
            blocks, self.count, self.per_token, self.groups, self.groups_per_token
        )

    def chances(self, skew: float = 0.0) -> NDArray[np.float64]:
        """Return float[expert]: the probability that a token takes each expert.

        It is per_token/count, or with skew proportional to i^-skew; each is at most 1.
        """
        weight: NDArray[np.float64] = np.arange(1, self.count + 1, dtype=np.float64) ** -skew
        chance: NDArray[np.float64] = np.minimum(1.0, self.per_token * weight / weight.sum())
        for _ in range(self.count):  # what experts with probability 1 exceed goes to the others
            rest = chance < 1
            missing = self.per_token - chance.sum()
            if missing <= 1e-12 or not rest.any():
                break
            chance[rest] = np.minimum(1.0, chance[rest] * (1 + missing / chance[rest].sum()))
        return chance

    def draw(
        self, tokens: int, chance: NDArray[np.float64], stream: np.random.Generator, times: int
    ) -> NDArray[np.int64]:
        """Return int[draw, expert]: how many of `tokens` tokens take each expert.

        Up to 64 tokens, each takes exactly per_token experts. With more tokens, the count of each
        expert is binomial. Source: Efraimidis and Spirakis (the keys of the weighted draw).
        """
        if tokens > 64:
            return stream.binomial(tokens, chance, (times, self.count))
        keys = stream.random((times, tokens, self.count))
        with np.errstate(divide="ignore"):
            np.log(keys, out=keys)
        keys /= -chance
        taken = np.argpartition(keys, self.per_token - 1, axis=2)[:, :, : self.per_token]
        taken = taken + self.count * np.arange(times).reshape(times, 1, 1)
        counts: NDArray[np.int64] = np.bincount(taken.ravel(), minlength=times * self.count)
        return counts.reshape(times, self.count)


# Makes a matrix from its rows, its columns, and the names of its modules.
Dims = tuple[Dim, ...]
MatrixMaker = Callable[[Dims, Dims, tuple[str, ...]], Matrix]


@dataclass(frozen=True, slots=True)
class Block:
    """A part of the model that is on one stage as a whole; a plan cuts between blocks.

    `vectors` are the numbers of norms and biases, which every chip of a group holds.
    `mixers` are how a token sees earlier ones: attention, a recurrence, or both side by side.
    An indexer stands beside the attention that it serves.
    """

    kind: Literal["embedding", "attention", "recurrent", "mlp", "head"]
    matrices: tuple[Matrix, ...]
    vectors: int = 0
    mixers: tuple[Mixer, ...] = ()
    experts: Experts | None = None

    def parameters(self, tensor: int = 1, expert: int = 1, expert_tensor: int = 1) -> int:
        """Return the parameters on the fullest of `tensor` chips.

        Routed experts are distributed over `expert` shards, each split over `expert_tensor` chips.
        """
        dense = sum(math.prod(matrix.share(tensor)) for matrix in self.matrices) + self.vectors
        return dense + (
            math.ceil(self.experts.count / expert) * self.experts.parameters(expert_tensor)
            if self.experts
            else 0
        )

    @property
    def weights(self) -> Iterator[tuple[Matrix, int]]:
        """The distinct matrices, each with how often the block has it."""
        yield from ((matrix, 1) for matrix in self.matrices)
        if self.experts:
            yield from ((matrix, self.experts.count) for matrix in self.experts.matrices)

    @property
    def active(self) -> int:
        """The parameters that one token uses."""
        dense = sum(math.prod(matrix.share(1)) for matrix in self.matrices) + self.vectors
        return dense + (self.experts.per_token * self.experts.parameters() if self.experts else 0)


@cache
def _expected_blocks(
    blocks: int, count: int, per_token: int, groups: int, groups_per_token: int
) -> float:
    """Return `Experts.reached`, kept, because a search needs the same numbers often."""
    size, open_to = count // groups, count // groups * groups_per_token
    expected = 0.0
    for block in range(blocks):
        first, end = (-(-count * number // blocks) for number in (block, block + 1))
        parts = [
            min(end, (g + 1) * size) - max(first, g * size)
            for g in range(first // size, -(-end // size))
        ]
        # How many choices of groups there are, by (groups of the block, their experts there).
        choices = {(0, 0): 1}
        for part in parts:
            taken = {(n + 1, held + part): ways for (n, held), ways in choices.items()}
            choices = {key: choices.get(key, 0) + taken.get(key, 0) for key in choices | taken}
        missed = sum(
            ways
            * math.comb(groups - len(parts), groups_per_token - n)
            * math.comb(open_to - held, per_token)
            for (n, held), ways in choices.items()
            if n <= groups_per_token
        )
        expected += 1 - missed / (
            math.comb(groups, groups_per_token) * math.comb(open_to, per_token)
        )
    return expected
