"""The KV cache: what is held, what stays cached, and what is found again, against sums by hand and blocks one by one."""

from collections import Counter, OrderedDict, deque
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sim.serving import admission as admission_module
from sim.serving.kv_cache import KVCache, block_ranges
from sim.serving.limits import SchedulerLimits
from sim.serving.policy import Policies
from sim.serving.replica_config import Outage, ReplicaConfig
from sim.serving.request import Request
from sim.serving.service import Service, serve
from sim.workload.requests import ENDLESS, RequestBatch

CACHING = Policies(prefix_caching=True)


def make_cache(kv_tokens=1000, block=16, **limits):
    limits = SchedulerLimits(1, 64, 100, kv_tokens, 10**6, kv_block=block, **limits)
    return KVCache(limits, prefix_caching=True)


def make_request(number, prompt, output=1, content=None):
    """A request of a session of its own, unless it has another content; all of it is reserved."""
    content = content or ((("request", number), ENDLESS),)
    return Request(number, 0.0, prompt, output, prompt + output, content=content)


def finish(cache, request):
    request.prefilled = request.tokens - 1
    cache.give_back(request)


def sessions(lengths, think=1.0, **columns):
    """One session: new text and answer of each turn."""
    added, output = (np.array(column) for column in zip(*lengths, strict=True))
    n = len(added)
    prompt = np.cumsum(added + output) - output
    return RequestBatch(
        np.array([0.0] + [np.nan] * (n - 1)),
        prompt,
        output,
        after=np.arange(n) - 1,
        think=np.full(n, think),
        sessions=np.zeros(n, int),
        **columns,
    )


@pytest.fixture(scope="module")
def run(make_deployment, make_chip, lossy):
    """Serves requests on one chip with prefix caching."""

    def serve_requests(requests, block=16, policies=CACHING, kv_tokens=4000, leap=True):
        deployment = make_deployment(chip=make_chip(capacity=3e6), engine=lossy)
        limits = replace(deployment.limits, kv_block=block, kv_tokens=kv_tokens)
        return serve(requests, deployment.costs, limits, policies=policies, leap=leap)

    return serve_requests


# Which tokens are found again.


@pytest.mark.parametrize(
    ("block", "cached"),
    [
        # Turn 1 computes 100 + 60 - 1 = 159 tokens, because an answer's last token is never an
        # input. Turn 2 sends 260 and computes 260 + 60 - 1 = 319. Full blocks of these stay.
        (16, [0, 144, 304]),
        (32, [0, 128, 288]),
        (1, [0, 159, 319]),
        (512, [0, 0, 0]),
    ],
)
def test_a_turn_finds_the_prompts_and_answers_before_it(run, block, cached):
    rows = run(sessions([(100, 60)] * 3), block)
    assert rows.cached.tolist() == cached
    assert not run(sessions([(100, 60)] * 3), block, Policies()).cached.any()


@pytest.mark.parametrize(
    ("lengths", "cached"),
    [
        # 33 + 15 - 1 = 47 is one short of three blocks; 33 + 16 - 1 = 48 are three.
        ([(33, 15), (5, 1)], [0, 32]),
        ([(33, 16), (5, 1)], [0, 48]),
        # An answer of one token is not computed: the prompt's 48 tokens are three blocks.
        ([(48, 1), (5, 1)], [0, 48]),
    ],
)
def test_the_last_token_of_an_answer_is_not_cached(run, lengths, cached):
    assert run(sessions(lengths)).cached.tolist() == cached


def test_the_last_token_of_a_prompt_is_always_computed(run):
    """Of three equal prompts of four blocks, the later ones find three; of one token more, four."""
    for prompt, found in ((64, 48), (65, 64)):
        requests = RequestBatch(
            np.arange(3.0), np.full(3, prompt), np.full(3, 2), hash_ids=[(5,)] * 3
        )
        assert run(requests).cached.tolist() == [0, found, found]


def test_an_id_of_a_trace_stands_for_its_blocks_in_512_tokens(run):
    """Ids agree for 1,024 tokens; an equal id of the rest adds its full blocks. Answers have no ids."""
    requests = RequestBatch(
        np.arange(4.0),
        np.array([1100, 1300, 1100, 1612]),
        np.array([520, 2, 2, 2]),
        hash_ids=[(7, 8, 9), (7, 8, 10), (7, 8, 9), (7, 8, 9, 3)],
    )
    # 1,099 tokens of the third may be cached: 68 blocks. The fourth goes on after 1,100 tokens
    # with text of its own, as the first one's answer has no id.
    assert run(requests, kv_tokens=9000).cached.tolist() == [0, 1024, 1088, 1088]


def test_blocks_that_do_not_divide_512_tokens_belong_to_the_id_of_their_last_token(run):
    """Of 48 tokens, ten blocks end in the first id; the eleventh ends in the second one."""
    assert list(block_ranges(((7, 512), (8, 1024)), 48, 21)) == [(7, 0, 10), (8, 10, 21)]
    assert list(block_ranges(((7, 512), (8, 1024), (9, 1536)), 1024, 1)) == [((7, 8), 0, 1)]
    requests = RequestBatch(
        np.arange(2.0), np.full(2, 1024), np.full(2, 2), hash_ids=[(7, 8), (7, 9)]
    )
    assert run(requests, block=48).cached.tolist() == [0, 480]


def test_requests_that_come_together_compute_a_shared_prefix_once(run):
    """The first computes 70 + 30 tokens; the prefix has four full blocks for the others."""
    for arrival in (np.zeros(4), np.arange(4.0)):
        requests = RequestBatch(arrival, np.full(4, 100), np.full(4, 3), shared_prefix=70)
        assert run(requests).cached.tolist() == [0, 64, 64, 64]
        assert not run(requests, policies=Policies()).cached.any()


def test_what_is_cached_is_not_computed(run):
    """The work of prompts is their tokens without the cached ones."""
    requests = RequestBatch(np.zeros(4), np.full(4, 100), np.full(4, 3), shared_prefix=70)
    steps = run(requests).tallies[0].batch_steps
    assert sum(tokens * n for tokens, n in steps.items()) == 4 * (100 + 2) - 3 * 64


# Room.


def test_sharing_frees_room_for_admission(run):
    """Two requests of 128 tokens share 80, and so take 176; of 177 tokens, both have room."""
    requests = RequestBatch(np.zeros(2), np.full(2, 96), np.full(2, 32), shared_prefix=80)
    together, tight = run(requests, kv_tokens=176), run(requests, kv_tokens=175)
    assert together.admitted.tolist() == [0.0, 0.0]
    assert together.kv_peak == [176]
    assert tight.admitted[1] == tight.last_token[0]
    apart = run(requests, kv_tokens=176, policies=Policies())
    assert apart.admitted[1] == apart.last_token[0]


def test_the_least_recently_used_blocks_go_first_and_of_a_request_the_last_one():
    cache = make_cache(kv_tokens=100)
    for number in (0, 1):
        request = make_request(number, 32)
        cache.take(request)
        finish(cache, request)
    assert (cache.kv_used, cache.kept) == (0, 64)
    again = make_request(0, 33)  # uses the first one's blocks once more
    assert cache.take(again) == 32
    finish(cache, again)
    # 40 + 1 tokens leave 59: one of the four kept blocks goes, the last one of request 1.
    cache.take(make_request(2, 40))
    assert cache.kept == 48
    assert cache.cached_tokens(make_request(1, 33)) == 16
    assert cache.cached_tokens(make_request(0, 33)) == 32


def test_blocks_in_use_are_never_dropped():
    cache = make_cache(kv_tokens=64)
    holder = make_request(0, 32)
    cache.take(holder)
    cache.take(make_request(1, 30))
    assert cache.kv_free == 0
    assert cache.cached_tokens(make_request(0, 33)) == 32


def test_decoding_takes_the_room_of_kept_blocks():
    cache = make_cache(kv_tokens=64)
    old, running = make_request(0, 48), make_request(1, 8)
    running.kv = 8
    cache.take(old)
    finish(cache, old)
    cache.take(running)
    assert cache.kept == 48
    cache.grow(24)
    running.kv += 24
    running.prefilled = 8
    cache.give_back(running)
    assert (cache.kv_used, cache.cached_tokens(make_request(0, 49))) == (0, 32)


def test_preempted_requests_find_their_own_blocks(run):
    """Without room for both outputs the later request is computed again, from its full blocks."""
    requests = RequestBatch(np.array([0.0, 1e-4]), np.full(2, 40), np.full(2, 30))
    policies = replace(CACHING, reserve=False)
    rows = run(requests, policies=policies, kv_tokens=100)
    plain = run(requests, policies=replace(policies, prefix_caching=False), kv_tokens=100)
    assert rows.preemptions.tolist() == plain.preemptions.tolist() == [0, 1]
    # It had 40 tokens and some answers. The other one, of 69 in the end, leaves 31: one block.
    computed = [sum(n * k for n, k in r.tallies[0].batch_steps.items()) for r in (rows, plain)]
    assert computed[1] - computed[0] == 16
    assert rows.last_token[1] < plain.last_token[1]
    # Its prompt was computed once before, so that none of it was cached.
    assert rows.cached.tolist() == [0, 0]


def test_after_an_outage_only_the_last_beginning_of_a_request_counts_as_cached(
    make_deployment, make_chip, lossy
):
    """The second one finds 64 tokens, is lost, and begins again on a replica that kept nothing."""
    deployment = make_deployment(chip=make_chip(capacity=3e6), engine=lossy)
    requests = RequestBatch(np.zeros(2), np.full(2, 100), np.full(2, 30), shared_prefix=70)

    def served(outages):
        config = ReplicaConfig(deployment.costs, deployment.limits, CACHING, outages=outages)
        return Service(requests, [config], CACHING.router).run()

    first = served(())
    at = float(first.first_token[1] + first.last_token[1]) / 2
    again = served((Outage(replica=0, at=at, lasts=1.0),))
    assert again.retries.tolist() == [1, 1]
    assert first.cached.tolist() == again.cached.tolist() == [0, 64]
    failed = served((Outage(replica=0, at=at, lasts=1.0, requests="fail"),))
    assert failed.cached.tolist() == [0, 0]


def test_a_cancelled_prompt_leaves_its_blocks_to_the_next_one():
    """The second prompt relied on 64 tokens, of which the first has computed 20: one block."""
    shared = (("system", 64), (("request", 9), ENDLESS))
    cache = make_cache()
    first, second = (make_request(number, 100, content=shared) for number in (1, 2))
    third = make_request(3, 80, content=(("system", 64), (("request", 3), ENDLESS)))
    assert [cache.take(request) for request in (first, second, third)] == [0, 96, 64]
    first.prefilled, second.prefilled, third.prefilled = 20, 96, 64
    assert list(cache.uncomputed(first, [second, third])) == [(second, 16)]
    cache.give_back(first)
    assert cache.cached_tokens(third) == 64  # the second one computes them
    second.prefilled = 16
    assert list(cache.uncomputed(second, [third])) == [(third, 16)]
    cache.give_back(second)
    third.prefilled = 16
    cache.give_back(third)
    assert (cache.kv_used, cache.kept, cache.cached_tokens(first)) == (0, 16, 16)


def test_after_a_cancelled_prompt_each_token_is_still_computed_once(run):
    """The first is cancelled within the prefix, of which the second, admitted before, needs all."""
    requests = RequestBatch(
        np.array([0.0, np.nan]), np.array([400, 170]), np.array([1, 1]), shared_prefix=160
    )
    step = run(RequestBatch(np.zeros(1), np.full(1, 96), np.ones(1, int))).last_token[0] / 6
    requests.arrival[1] = 6 * step
    rows = run(requests, policies=replace(CACHING, deadline=6.5 * step))
    assert rows.finished.tolist() == [False, True]
    assert rows.admitted[1] < 6.5 * step
    steps = rows.tallies[0].batch_steps
    assert rows.cached.tolist() == [0, 112]
    assert sum(tokens * n for tokens, n in steps.items()) == 170


def test_an_engine_sets_the_size_of_a_block(make_deployment, make_engine):
    assert make_deployment(engine=make_engine(kv_block=32)).limits.kv_block == 32
    assert make_deployment().limits.kv_block == 16


def test_prefixes_change_nothing_where_nothing_is_alike(run):
    """Requests of their own get the times that they have without a prefix cache."""
    n = 30
    requests = RequestBatch(np.arange(n) * 1e-3, 20 + np.arange(n) * 7 % 90, np.full(n, 25))
    for reserve in (True, False):
        policies = Policies(reserve=reserve)
        off = run(requests, policies=policies, kv_tokens=1500)
        on = run(requests, policies=replace(policies, prefix_caching=True), kv_tokens=1500)
        assert not off.preemptions.any()
        assert (on.last_token == off.last_token).all()
        assert on.kv_peak == off.kv_peak


# Blocks one by one.


class Blocks:
    """A prefix cache that keeps each block by itself, named by all tokens up to its end."""

    def __init__(self, kv_tokens, block):
        self.kv_tokens, self.block = kv_tokens, block
        self.refs, self.unused, self.private = Counter(), OrderedDict(), {}
        self.computed = set()

    @property
    def used(self):
        return len(self.refs) * self.block + sum(self.private.values())

    def names(self, request, blocks):
        tokens, begin = [], 0
        for part, end in enumerate(end for _, end in request.content):
            end = min(end, blocks * self.block)
            tokens += [(part, request.content[part][0])] * (end - begin)
            begin = max(begin, end)
        return [tuple(tokens[: self.block * (n + 1)]) for n in range(blocks)]

    def cached(self, request):
        names = self.names(request, (request.prompt - 1) // self.block)
        there = [name in self.refs or name in self.unused for name in names]
        return self.block * (there.index(False) if False in there else len(there))

    def evict(self):
        while self.block * len(self.unused) > self.kv_tokens - self.used:
            name, _ = self.unused.popitem(last=False)
            self.computed.discard(name)

    def take(self, request):
        self.evict()
        cached = self.cached(request)
        names = self.names(request, request.prompt // self.block)
        for name in names:
            self.refs[name] += 1
            self.unused.pop(name, None)
        self.private[request.id] = request.kv - len(names) * self.block
        self.evict()
        return cached

    def give_back(self, request):
        self.evict()
        del self.private[request.id]
        held, computed = request.prompt // self.block, request.prefilled // self.block
        names = self.names(request, max(held, computed))
        for name in names[held:]:
            self.refs[name] += 1
        self.computed.update(names[:computed])
        for name in reversed(names):
            self.refs[name] -= 1
            if not self.refs[name]:
                del self.refs[name]
                self.unused.pop(name, None)
                if name in self.computed:
                    self.unused[name] = None


@st.composite
def contents(draw):
    """Parts of ten tokens from a few keys, the last one cut perhaps, and then one of a session."""
    keys = draw(st.lists(st.integers(0, 1), max_size=3))
    parts = [(key, 10 * (n + 1)) for n, key in enumerate(keys)]
    if parts:
        parts[-1] = (keys[-1], parts[-1][1] - draw(st.sampled_from([0, 2, 6])))
    own = ("own", draw(st.integers(0, 2)), parts[-1:])
    return *parts, (str(own), ENDLESS)


@given(
    st.lists(st.tuples(contents(), st.integers(1, 40), st.integers(1, 20)), max_size=25),
    st.lists(st.integers(0, 9), max_size=80),
    st.sampled_from([1, 4, 6]),
    st.integers(40, 150),
)
@example([((("a", ENDLESS),), 1, 2)] * 3, [0, 0, 3, 8, 6], 1, 40)  # one block, computed by another
@settings(max_examples=80)
def test_chains_are_their_blocks(drawn, actions, block, kv_tokens):
    """Whatever comes and goes, as much is used, kept and found as by blocks one by one."""
    cache, blocks = make_cache(kv_tokens, block), Blocks(kv_tokens, block)
    waiting = deque(
        make_request(n, prompt, output, content)
        for n, (content, prompt, output) in enumerate(drawn)
    )
    prefilling, decoding = deque(), []

    def give_back(request):
        cache.give_back(request)
        blocks.give_back(request)

    for action in [*actions, *[2] * len(drawn), *[9] * len(drawn)]:
        if action < 3 and waiting:
            fits = cache.fits(waiting[0], waiting[0].kv)
            blocks_of = blocks.names(waiting[0], waiting[0].prompt // block)
            shared = block * sum(name in blocks.refs for name in blocks_of)
            assert fits == (blocks.used + waiting[0].kv - shared <= kv_tokens)
            if fits:
                request = waiting.popleft()
                request.prefilled = cache.take(request)
                assert request.prefilled == blocks.take(request)
                prefilling.append(request)
        elif action < 6 and prefilling:
            decoding.append(prefilling.popleft())
        elif action == 6 and prefilling:  # cancelled when a half of the rest is computed
            ended = prefilling.popleft()
            ended.prefilled = (ended.prefilled + ended.prompt) // 2
            for request, cached in cache.uncomputed(ended, prefilling):
                request.prefilled = cached
            give_back(ended)
        elif action == 7 and decoding and cache.kv_free >= 3:
            cache.grow(3)
            decoding[0].kv += 3
            blocks.private[decoding[0].id] += 3
        elif action > 7 and decoding:
            request = decoding.pop(action % len(decoding))
            request.prefilled = request.tokens - 1
            give_back(request)
        assert cache.kv_used == blocks.used <= kv_tokens
        cache._evict()
        blocks.evict()
        assert cache.kept == block * len(blocks.unused) <= cache.kv_free
        for request in waiting:
            assert cache.cached_tokens(request) == blocks.cached(request)
    held = sum(request.kv for request in (*prefilling, *decoding))
    assert cache.kv_used <= held
    for request in (*prefilling, *decoding):
        request.prefilled = request.tokens - 1
        give_back(request)
    assert (cache.kv_used, cache.sequences_used, cache.paths) == (0, 0, {})
    assert cache.kept == block * len(blocks.unused)


# The cache of a replica that serves.


class WatchedCache(KVCache):
    """A KV cache that checks after each change that its parts add up."""

    def __init__(self, *args):
        super().__init__(*args)
        self.holders = {}

    def check(self):
        assert 0 <= self.kv_used <= self.kv_tokens
        assert 0 <= self.sequences_used == len(self.holders) <= self.sequences
        chains = list(self.root.children.values())
        for chain in chains:
            assert chain.held == max(chain.holders, default=0) <= chain.count
            chains.extend(chain.children.values())
        room = [(each.begin, each.begin + each.held, each.begin + each.count) for each in chains]
        private = sum(
            request.kv - self._room(0, request.prompt // self.block if self.block else 0)
            for request in self.holders.values()
        )
        self.held = private + sum(self._room(begin, held) for begin, held, _ in room)
        assert self.kept == sum(self._room(held, end) for _, held, end in room)

    def take(self, request):
        self.holders[request.id] = request
        cached = super().take(request)
        assert cached < request.prompt
        self.check()
        return cached

    def give_back(self, request):
        super().give_back(request)
        del self.holders[request.id]
        self.check()


def batches():
    """Requests of sessions or of a shared prefix, which come within some steps of each other."""
    request = st.tuples(st.floats(0, 0.003), st.integers(1, 60), st.integers(1, 30))

    def batch(drawn, shared, groups):
        gaps, prompt, output = (np.array(column) for column in zip(*drawn, strict=True))
        numbers = np.arange(len(drawn)) % groups if groups else None
        return RequestBatch(
            np.cumsum(gaps), prompt + shared, output, sessions=numbers, shared_prefix=shared
        )

    lists = st.lists(request, min_size=1, max_size=25)
    return st.builds(batch, lists, st.integers(0, 40), st.integers(0, 3))


@given(
    batches(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, 0.005]),
    st.sampled_from([1, 16]),
    st.booleans(),
)
@settings(max_examples=50)
def test_what_is_held_is_used_and_all_of_it_comes_back(
    make_deployment, lossy, make_model, requests, reserve, caching, deadline, block, windows
):
    """Used is never negative nor more than there is, the holders' sum, and 0 at the end."""
    window = {"sliding_window": 24, "layer_types": ("sliding_attention", "full_attention") * 2}
    deployment = make_deployment(
        engine=lossy,
        model=make_model(**(window if windows else {})),
        kv_tokens=300,
        max_sequences=8,
    )
    limits = replace(deployment.limits, kv_block=block)
    policies = Policies(reserve=reserve, prefix_caching=caching, deadline=deadline)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(admission_module, "KVCache", WatchedCache)
        service = Service(
            requests,
            [ReplicaConfig(deployment.costs, limits, policies)],
            policies.router,
        )
        cache = service.fleet.replicas[0].kv_cache
        take = cache.take

        def checked(request):
            cached = take(request)
            if reserve:  # else decoding has more than requests know of
                assert cache.kv_used == cache.held
            return cached

        cache.take = checked
        rows = service.run()
    assert (cache.kv_used, cache.sequences_used, cache.paths) == (0, 0, {})
    assert cache.kept <= cache.kv_tokens
    assert rows.cached.any() <= caching
    steps = serve(requests, deployment.costs, limits, policies=policies, leap=False)
    assert steps.reason == rows.reason
    assert (steps.cached == rows.cached).all()
    done = rows.finished
    np.testing.assert_allclose(steps.last_token[done], rows.last_token[done], rtol=1e-9, atol=1e-12)
