"""The KV cache of a replica: the room that its requests hold, and blocks kept for later prompts.

    cache = KVCache(limits, prefix_caching=True)
    if cache.fits(request, request.kv):
        request.prefilled = cache.take(request)  # tokens that need not be computed
    ...
    cache.give_back(request)

Prefix caching is that of vLLM v1: full blocks of prompts and answers, shared and counted once.
A block that no request holds stays until its room is needed. The least recently used one goes
first, and the last block of a request goes before those ahead of it.
Source: vLLM, docs/design/prefix_caching.md.
"""

import math
from collections import OrderedDict, deque
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from sim.serving.limits import SchedulerLimits
from sim.serving.request import Request
from sim.workload.requests import Content


def block_ranges(content: Content, block: int, blocks: int) -> Iterator[tuple[Hashable, int, int]]:
    """Yield (key, first block, end block) of each part of a content, up to `blocks` blocks.

    block: tokens of a block. A block belongs to the part that holds its last token. A part in which
    no block ends is added to the key of the next part.
    """
    begin, skipped = 0, tuple[Hashable, ...]()
    for key, tokens in content:
        end = min(blocks, tokens // block)
        if end > begin:
            yield (*skipped, key) if skipped else key, begin, end
            begin, skipped = end, ()
        else:
            skipped = (*skipped, key)
        if begin >= blocks:
            return


def common_blocks(first: Request, second: Request, block: int) -> int:
    """Return how many full blocks of two prompts are equal, from their beginnings."""
    common = 0
    ranges = (block_ranges(r.content, block, r.prompt // block) for r in (first, second))
    for (key, _, end), (other, _, other_end) in zip(*ranges, strict=False):
        if key != other:
            break
        common = min(end, other_end)
        if end != other_end:
            break
    return common


@dataclass(eq=False, slots=True)
class Chain:
    """Consecutive blocks of one part of a content: a node of the tree of all cached contents.

    count: blocks that are in the cache, from the first one.
    held: those that requests hold, from the first one. The others may be evicted.
    computed: those that are computed. The request that holds the next ones computes them.
    runs: [first block, stamp] of blocks that no request holds, least recently used first. Those
        are the last blocks of the chain.
    holders: by number of blocks, how many requests hold so many.
    children: the chains that continue it, by the block after which they do, and by their key.
    """

    parent: "Chain | None" = None
    place: tuple[int, Hashable] = (0, None)  # in the parent's `children`
    begin: int = 0  # blocks of the content before it
    count: int = 0
    held: int = 0
    computed: int = 0
    holders: dict[int, int] = field(default_factory=dict)
    runs: deque[list[int]] = field(default_factory=deque)
    children: "dict[tuple[int, Hashable], Chain]" = field(default_factory=dict)

    def end_of_last_run(self) -> int:
        """Return the end of the run that was used last."""
        return self.runs[-2][0] if len(self.runs) > 1 else self.count

    def leave(self, n: int) -> int:
        """Remove one holder of n blocks, and return how many blocks the others hold."""
        self.holders[n] -= 1
        if not self.holders[n]:
            del self.holders[n]
        return max(self.holders, default=0)

    def discard_if_empty(self) -> None:
        """Leave the parent if no block is left."""
        if not self.count and self.parent:
            del self.parent.children[self.place]


class KVCache:
    """The room of a replica: tokens of KV cache, and places for sequences.

    kv_used: tokens that requests hold or have reserved, each shared block once.
    kept: tokens of cached blocks that no request holds; a part of what is free.
    rank_sequences: sequences of each attention rank, also those whose prompts come from another
        replica.
    rank_prompts: prompt tokens that each rank has yet to compute. A request joins the rank with the
        fewest, of those with less than an equal share of the sequences.
    dead_ranks: ranks that are down and take no sequences.
    With attention data parallelism, the room is the sum over the ranks.
    Left out: ranks that cache for themselves, and windows of sequences that share a prefix. Also
    the copy of a last block, whose last token is computed again.
    """

    def __init__(self, limits: SchedulerLimits, prefix_caching: bool = False) -> None:
        self.limits = limits
        self.kv_tokens, self.sequences = limits.kv_tokens, limits.sequences
        self.sequences_used = self.kept = 0
        self.rank_sequences, self.rank_prompts = [0] * limits.ranks, [0] * limits.ranks
        self.dead_ranks: Collection[int] = ()
        self.kv_used: float = 0  # with speculation and preemption, in parts of a token
        self.kv_peak: float = 0
        self.block = limits.kv_block if prefix_caching else 0
        self.root = Chain()
        self.paths: dict[int, list[tuple[Chain, int]]] = {}  # of admitted requests: blocks held
        self.stamp = 0
        # The chains of the runs that no request holds, by stamp, least recently used first.
        self.unused: OrderedDict[int, Chain] = OrderedDict()

    @property
    def kv_free(self) -> float:
        """Tokens that no request holds or has reserved; cached blocks give way."""
        return self.kv_tokens - self.kv_used

    def fits(self, request: Request, tokens: int) -> bool:
        """Return whether a request that will hold `tokens` tokens fits.

        Blocks of its prompt that other requests hold need no room.
        """
        if self.sequences_used >= self.sequences:
            return False
        missing = self.kv_used + tokens - self.kv_tokens
        return missing <= 0 or (self.block > 0 and missing <= self.shared_tokens(request))

    def cached_tokens(self, request: Request) -> int:
        """Return how many tokens of a request's prompt are cached. The last one never counts."""
        if not self.block:
            return 0
        return (
            self._known_blocks(request, (request.prompt - 1) // self.block, held=False) * self.block
        )

    def shared_tokens(self, request: Request) -> int:
        """Return how many tokens of a request's prompt are in blocks that other requests hold."""
        return self._room(0, self._known_blocks(request, request.prompt // self.block, held=True))

    def take(self, request: Request) -> int:
        """Admit a request, and return how many tokens of its prompt are cached.

        Requests after it find the full blocks of its prompt, because they compute theirs later.
        """
        self.sequences_used += 1
        request.rank = _next_rank(self.rank_prompts, self.rank_sequences, self.dead_ranks)
        self.rank_sequences[request.rank] += 1
        cached = self._take_room(request)
        self.rank_prompts[request.rank] += request.prompt - cached
        return cached

    def free_place(self, request: Request) -> None:
        """Free the place of a request that keeps its KV cache, but computes nothing more here."""
        self.sequences_used -= 1
        self.rank_sequences[request.rank] -= 1

    def take_place(self, request: Request) -> None:
        """Give a request that holds KV cache a place again."""
        self.sequences_used += 1
        self.rank_sequences[request.rank] += 1

    def await_prompt(self, request: Request) -> None:
        """Free the place of an admitted request until its prompt comes from another replica.

        Its rank counts it already, because it will decode there.
        """
        self.sequences_used -= 1
        self.rank_prompts[request.rank] -= request.prompt - request.prefilled

    def count_prompts(self, prefilling: Iterable[Request]) -> None:
        """Count the prompt tokens that each rank has yet to compute."""
        if len(self.rank_prompts) == 1:
            return  # no other rank to choose
        self.rank_prompts = [0] * len(self.rank_prompts)
        for request in prefilling:
            self.rank_prompts[request.rank] += request.prompt - request.prefilled

    def _take_room(self, request: Request) -> int:
        """Take the room of an admitted request, and return how many prompt tokens are cached."""
        if not self.block:
            self.grow(request.kv)
            return 0
        self._evict()  # blocks whose room decoding has taken since
        cached = self.cached_tokens(request)
        blocks = request.prompt // self.block
        self._hold(request, blocks)
        self.grow(request.kv - self._room(0, blocks))
        self._evict()
        return cached

    def resize(self, kv_tokens: int, sequences: int, dead_ranks: Collection[int]) -> None:
        """Set the room, the places and the ranks that take no sequences.

        Less room than requests hold admits no request.
        """
        self.kv_tokens, self.sequences, self.dead_ranks = kv_tokens, sequences, dead_ranks

    def grow(self, tokens: float) -> None:
        """Give admitted requests more tokens of the cache."""
        self.kv_used += tokens
        if self.kv_used > self.kv_peak:
            self.kv_peak = self.kv_used

    def give_back(self, request: Request) -> None:
        """Free the tokens that a request holds. Full blocks that it has computed stay cached."""
        self.free_place(request)
        if not self.block:
            self.kv_used -= request.kv
            return
        self._evict()
        blocks, computed = request.prompt // self.block, request.prefilled // self.block
        self.kv_used -= request.kv - self._room(0, blocks)
        if computed > blocks:  # full blocks of its answer
            self._hold(request, computed)
        self._release(self.paths.pop(request.id), computed)

    def uncomputed(self, ended: Request, later: Iterable[Request]) -> Iterator[tuple[Request, int]]:
        """Yield the requests that counted on blocks which a cancelled request has not computed.

        ended: the cancelled request. later: those that wait to compute their prompts, in order.
        Each comes with its tokens that are cached. It computes the rest for those after it.
        """
        computed = ended.prefilled // self.block if self.block else 0
        for request in later if self.block else ():
            common = common_blocks(ended, request, self.block)
            if common > computed:
                if request.prefilled > computed * self.block:
                    yield request, computed * self.block
                computed = common

    def _known_blocks(self, request: Request, blocks: int, held: bool) -> int:
        """Return how many of the first blocks of a request are cached.

        held: count only blocks that other requests hold.
        """
        known, chain, at = 0, self.root, 0
        for key, begin, end in self._ranges(request, blocks):
            child = chain.children.get((at, key))
            if not child:
                break
            known = min(end, begin + (child.held if held else child.count))
            if known < end:
                break
            chain, at = child, end - begin
        return known

    def _ranges(self, request: Request, blocks: int) -> Iterator[tuple[Hashable, int, int]]:
        return block_ranges(request.content, self.block, blocks)

    def _room(self, begin: int, end: int) -> int:
        """Return the tokens of KV cache that the blocks from begin to end of a content take."""
        if not self.limits.window:
            return (end - begin) * self.block
        needed = self.limits.kv_tokens_needed
        return needed(end * self.block) - needed(begin * self.block)

    def _hold(self, request: Request, blocks: int) -> None:
        """Hold the first blocks of a request, of which it may hold some already."""
        path = self.paths.setdefault(request.id, [])
        chain, at = self.root, 0
        for number, (key, begin, end) in enumerate(self._ranges(request, blocks)):
            before = path[number][1] if number < len(path) else 0
            place, n = (at, key), end - begin
            child = chain.children.get(place)
            if child is None:
                child = chain.children[place] = Chain(chain, place, begin)
            if n > before:
                child.holders[n] = child.holders.get(n, 0) + 1
                if n > child.held:
                    self._hold_in(child, n)
                if before:
                    child.leave(before)
                path[number:] = [(child, n)]
            chain, at = child, n

    def _hold_in(self, chain: Chain, n: int) -> None:
        """Hold the first n blocks of a chain, of which fewer were held before."""
        first = chain.begin
        if (known := min(n, chain.count)) > chain.held:
            self.kept -= self._room(first + chain.held, first + known)
        while chain.runs and chain.runs[-1][0] < n:
            if chain.end_of_last_run() > n:
                chain.runs[-1][0] = n
            else:
                del self.unused[chain.runs.pop()[1]]
        self.grow(self._room(first + chain.held, first + n))
        chain.held, chain.count = n, max(n, chain.count)

    def _release(self, path: list[tuple[Chain, int]], computed: int) -> None:
        """Release the blocks of a path. Computed blocks that no other request holds stay cached."""
        for chain, n in reversed(path):
            held, first = chain.leave(n), chain.begin
            chain.computed = max(chain.computed, min(n, computed - first))
            if held == chain.held:
                continue
            stays = max(held, min(n, chain.computed))
            self.kv_used -= self._room(first + held, first + n)
            self.kept += self._room(first + held, first + stays)
            chain.held = held
            if stays < n:
                chain.count = stays
            if stays > held:
                self.stamp += 1
                chain.runs.append([held, self.stamp])
                self.unused[self.stamp] = chain
            chain.discard_if_empty()

    def _evict(self) -> None:
        """Drop the least recently used blocks until the kept ones fit."""
        while self.kept and (excess := self.kept - self.kv_free) > 0:
            stamp, chain = next(iter(self.unused.items()))
            begin, end = chain.runs[0][0], chain.count
            chain.count = max(begin, end - math.ceil(excess / self.block))
            chain.computed = min(chain.computed, chain.count)
            self.kept -= self._room(chain.begin + chain.count, chain.begin + end)
            if chain.count == begin:
                chain.runs.popleft()
                del self.unused[stamp]
                chain.discard_if_empty()


def _next_rank(prompts: Sequence[int], sequences: Sequence[int], dead: Collection[int]) -> int:
    """Return the rank of the next sequence.

    A step lasts as long as its longest rank. So no rank takes more than an equal share of the
    sequences, and prompts that come together go to different ranks.
    prompts: tokens that each rank has yet to compute. sequences: of each rank. dead: ranks that
    take none.
    Assumed: this order. vLLM's DPLBAsyncMPClient also counts waiting requests for more than
    running ones, but adds both.
    """
    if len(sequences) == 1:
        return 0
    alive = [rank for rank in range(len(sequences)) if rank not in dead]
    share = sum(sequences[rank] for rank in alive) // len(alive) + 1
    open_ranks = [rank for rank in alive if sequences[rank] < share]
    return min(open_ranks, key=lambda rank: (prompts[rank], sequences[rank]))
