"""Recorded requests: what each format says is what is read, and what is malformed is named by its line."""

import json
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from sim.inputs.errors import ScenarioError
from sim.workload.trace_columns import SECONDS
from sim.workload.trace_files import read_trace

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:50.9951691,879,55
"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:01+00:00,2399,6
"""
BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,0,1087,Conversation log
118,GPT-4,417,276,693,API log
"""
VIDUR = """arrived_at,num_prefill_tokens,num_decode_tokens
0.5,100,20
2,50.0,30
"""
# pandas writes T, and rows may have zones of their own: this is 00:00:00.25, 00:00:01.5 and 00:00:03.
AZURE_ZONES = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10T02:00:00.250000+02:00,11,1
2024-05-09T19:30:01.5-04:30,12,2
2024-05-10T00:00:03Z,13,3
"""
AZURE_EPOCH = """TIMESTAMP,ContextTokens,GeneratedTokens
1715299200250,11,1
1715299201500,12,0
1715299203000,13,3
"""
MOONCAKE = """{"timestamp": 27000, "input_length": 1025, "output_length": 52, "hash_ids": [0, 1, 2]}
{"timestamp": 30500, "input_length": 512, "output_length": 1, "hash_ids": [0]}
"""
DETAILED = {
    "start_times": [10.0, 10.5, 12.0],
    "input_lens": [7, 8, 9],
    "output_lens": [1, 0, 3],
    "errors": ["", "no", ""],
}
VLLM = json.dumps({"duration": 9.0, "completed": 2, **DETAILED, "ttfts": [0.1, 0.0, 0.2]})
# Bailian's blocks are 16 tokens, and its times are in s.
BAILIAN = """{"chat_id": 7, "parent_chat_id": -1, "timestamp": 61.5, "input_length": 33, "output_length": 4, "type": "text", "turn": 1, "hash_ids": [4, 5, 6]}
{"chat_id": 9, "parent_chat_id": 7, "timestamp": 64.25, "input_length": 48, "output_length": 0, "type": "text", "turn": 2, "hash_ids": [4, 5, 7]}
{"chat_id": 8, "parent_chat_id": -1, "timestamp": 70, "input_length": 16, "output_length": 2, "type": "text", "turn": 1, "hash_ids": [4]}
"""


def aiperf(start: int, prompt: int, output: int | None, **metrics: float) -> str:
    """One of AIPerf's records; without an output, of a request that failed."""
    lengths = {"input_sequence_length": prompt, "output_sequence_length": output}
    return json.dumps(
        {
            "metadata": {"session_num": 0, "request_start_ns": start},
            "metrics": {
                key: {"value": value, "unit": ""}
                for key, value in (lengths | metrics).items()
                if value is not None
            },
            "error": None if output else {"code": 499},
        }
    )


AIPERF = "\n".join(
    (
        aiperf(1_759_813_207_532_900_363, 55, 3, time_to_first_token=250.0, request_latency=300.0),
        aiperf(1_759_813_208_532_900_463, 66, 1, time_to_first_token=100.0, request_latency=100.0),
        aiperf(1_759_813_209_532_900_363, 66, None),
    )
)
GUIDELLM_REQUEST = {
    "request_start_time": 100.5,
    "prompt_tokens": 64,
    "output_tokens": 5,
    "time_to_first_token_ms": 200.0,
    "inter_token_latency_ms": 50.0,
}
SECOND_REQUEST = GUIDELLM_REQUEST | {"request_start_time": 103.0, "output_tokens": 1}


def guidellm(*requests: dict, benchmarks: int = 1) -> str:
    groups = {"successful": list(requests), "errored": [GUIDELLM_REQUEST], "incomplete": []}
    return json.dumps({"metadata": {}, "benchmarks": [{"requests": groups}] * benchmarks})


REPLAY = """request_id,arrived_at_s,input_tokens,output_tokens,queued_s,first_token_s,last_token_s
b,7.5,8,1,7.6,9.0,9.0
a,5.0,100,20,5.1,6.5,8.0
"""

# name: text, arrivals after the first, prompts, outputs, requests without output
FORMATS = {
    "azure": (AZURE, [0, 4.314579, 4.3145791], [374, 396, 879], [44, 109, 55], 0),
    "azure 2024": (AZURE_2024, [0, 0.99007], [2162, 2399], [5, 6], 0),
    "azure with zones": (AZURE_ZONES, [0, 1.25, 2.75], [11, 12, 13], [1, 2, 3], 0),
    "azure since 1970": (AZURE_EPOCH, [0, 2.75], [11, 13], [1, 3], 1),
    "burstgpt": (BURSTGPT, [0, 113], [472, 417], [18, 276], 1),
    "vidur": (VIDUR, [0, 1.5], [100, 50], [20, 30], 0),
    "mooncake": (MOONCAKE, [0, 3.5], [1025, 512], [52, 1], 0),
    "bailian": (BAILIAN, [0, 8.5], [33, 16], [4, 2], 1),
    "aiperf": (AIPERF, [0, 1.0000001], [55, 66], [3, 1], 1),
    "guidellm": (guidellm(GUIDELLM_REQUEST, SECOND_REQUEST), [0, 2.5], [64, 64], [5, 1], 1),
    "vllm": (VLLM, [0, 2], [7, 9], [1, 3], 1),
    "replay": (REPLAY, [0, 2.5], [100, 8], [20, 1], 0),
    "replay without answers": (
        "arrived_at_s,input_tokens,output_tokens\n5,100,20\n7.5,8,1\n",
        [0, 2.5],
        [100, 8],
        [20, 1],
        0,
    ),
}


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Writes a trace under a name that says nothing of its format, and gives its path."""
    monkeypatch.chdir(tmp_path)

    def write(text: str | bytes) -> Path:
        path = tmp_path / "recorded"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def refused(path: Path) -> str:
    """The one line that says what is wrong."""
    with pytest.raises(ScenarioError) as error:
        read_trace(path)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_is_told_by_its_content(file, name):
    text, arrival, prompt, output, empty = FORMATS[name]
    columns = read_trace(file(text))
    assert columns.arrival == pytest.approx(arrival, abs=1e-9)
    assert columns.prompt.tolist() == prompt
    assert columns.output.tolist() == output
    assert columns.without_output == empty


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.rstrip("\n"),
        lambda text: text + "\n\n",
    ],
    ids=["byte order mark", "windows line ends", "no last line end", "blank lines at the end"],
)
def test_how_a_file_is_saved_does_not_matter(file, name, change):
    plain, changed = read_trace(file(FORMATS[name][0])), read_trace(file(change(FORMATS[name][0])))
    for column in ("arrival", "prompt", "output"):
        assert getattr(plain, column).tolist() == getattr(changed, column).tolist()
    assert plain.notes == changed.notes
    assert plain.hash_ids == changed.hash_ids


def test_columns_are_found_by_name_in_any_order_among_others(file):
    columns = read_trace(
        file('"num_decode_tokens","id",arrived_at,num_prefill_tokens\n20,x,1,100\n')
    )
    assert (columns.prompt.tolist(), columns.output.tolist()) == ([100], [20])


@pytest.mark.parametrize("blank", ["\n", "\r\n \n"])
def test_blank_lines_before_a_header_count_as_lines_alone(file, blank):
    table = "arrived_at,num_prefill_tokens,num_decode_tokens\n1,100,20\n"
    plain, after = read_trace(file(table)), read_trace(file(blank + table))
    assert (after.prompt.tolist(), after.source) == (plain.prompt.tolist(), plain.source)
    line = 3 + blank.count("\n")
    assert refused(file(f"{blank}{table}2,x,5\n")).startswith(f"recorded:{line}: ")


@pytest.mark.parametrize("command", ["gzip", "zstd"])
def test_compressed_files_are_read_as_plain_ones(file, command):
    if not shutil.which(command):
        pytest.skip(f"no {command} here")
    compress = partial(subprocess.run, [command, "-c"], capture_output=True, check=True)
    packed = compress(input=MOONCAKE.encode()).stdout
    plain, unpacked = read_trace(file(MOONCAKE)), read_trace(file(packed))
    assert unpacked.arrival.tolist() == plain.arrival.tolist()
    assert unpacked.hash_ids == plain.hash_ids
    hint = "expected a text, compressed once; try decompressing it"
    damaged = "recorded:1: got a compressed file that is damaged, or holds no text"
    assert refused(file(packed[:-9])) == f"{damaged}; {hint}"
    twice = refused(file(compress(input=packed).stdout))
    assert (
        twice
        == f"{damaged if command == 'zstd' else 'recorded:1: got a file that is compressed twice'}; {hint}"
    )
    assert (
        refused(file(compress(input=b"").stdout))
        == "recorded:1: got an empty file; expected a trace with requests; try another path"
    )


@pytest.mark.parametrize("name", ["azure", "vidur", "mooncake"])
def test_requests_without_output_are_left_out_of_every_format(file, name):
    text, _, prompt, output, _ = FORMATS[name]
    columns = read_trace(file(re.sub(rf"(\D){output[0]}(\n|, \"hash)", r"\g<1>0\2", text, count=1)))
    assert columns.prompt.tolist() == prompt[1:]
    assert "requests without output left out: 1" in columns.notes


@pytest.mark.parametrize(
    ("text", "notes"),
    [
        (AZURE, ["Azure, times as dates"]),
        (AZURE_EPOCH, ["Azure, times in ms", "requests without output left out: 1"]),
        (MOONCAKE, ["Mooncake, times in ms, blocks of 512 token"]),
        (
            BAILIAN,
            [
                "Bailian, times in s, blocks of 16 token",
                "requests without output left out: 1",
                "columns not read: chat_id, parent_chat_id, type, turn",
            ],
        ),
        (
            "arrived_at,num_prefill_tokens,num_decode_tokens,block_hash_ids\n0,5,5,1|2\n",
            ["Vidur, times in s", "columns not read: block_hash_ids"],
        ),
        (
            ",".join(["arrived_at,num_prefill_tokens,num_decode_tokens", *"abcdefghij"])
            + "\n0,5,5"
            + ",1" * 10,
            ["Vidur, times in s", "columns not read: a, b, c, d, e, f, g, h and 2 more"],
        ),
    ],
)
def test_notes_say_format_unit_and_what_is_not_read(file, text, notes):
    assert read_trace(file(text)).notes == notes


# Units of time and of blocks.


def mooncake(times: list[float], **keys: object) -> str:
    rows = ({"timestamp": time, "input_length": 40, "output_length": 5} | keys for time in times)
    return "\n".join(map(json.dumps, rows))


def vidur(times: list[float]) -> str:
    rows = (f"{time},40,5" for time in times)
    return "\n".join(("arrived_at,num_prefill_tokens,num_decode_tokens", *rows))


@pytest.mark.parametrize(
    ("text", "own", "other", "span"),
    [
        # A day of seconds that reads as 86 s, and an hour of milliseconds that reads as 42 days.
        (mooncake(list(range(0, 86_401, 80))), "ms", "s", 86_400.0),
        (vidur(list(range(0, 3_600_001, 400_000))), "s", "ms", 3600.0),
        (mooncake([0.0, 2.513, 5.026]), "ms", "s", 5.026),
        (mooncake(list(range(0, 3_600_000_001, 100_000_000))), "ms", "us", 3600.0),
    ],
)
def test_a_load_that_no_trace_has_is_refused_until_the_unit_is_given(file, text, own, other, span):
    path = file(text)
    assert f"try the workload's time_unit: {other} ({span:.4g} s), or time_unit: {own} to keep" in (
        refused(path)
    )
    assert read_trace(path, unit=other).arrival[-1] == pytest.approx(span)
    in_own = span * SECONDS[own] / SECONDS[other]
    assert read_trace(path, unit=own).arrival[-1] == pytest.approx(in_own)


@pytest.mark.parametrize(
    ("text", "last"),
    [
        (mooncake([0, 1, 5]), 0.005),  # a burst of a few requests
        (mooncake(list(range(0, 600_001, 50))), 600.0),  # a busy service: 20 request/s
        (vidur([0, 7200, 86_400]), 86_400.0),  # a quiet day
    ],
)
def test_a_load_that_a_trace_may_have_keeps_the_unit_of_its_format(file, text, last):
    assert read_trace(file(text)).arrival[-1] == last


@pytest.mark.parametrize(("unit", "size"), [("s", 1), ("ms", 1e3), ("us", 1e6), ("ns", 1e9)])
def test_the_unit_of_times_since_1970_is_told_by_their_size(file, unit, size):
    times = [1_715_299_200 * size, 1_715_299_201.5 * size, 1_715_299_203 * size]
    for text in (mooncake(times), vidur(times)):
        columns = read_trace(file(text))
        assert columns.arrival == pytest.approx([0, 1.5, 3], abs=1e-6)
        assert columns.unit == unit


@pytest.mark.parametrize("text", [AZURE, VLLM, REPLAY, AIPERF])
def test_a_unit_that_the_file_states_is_not_changed(file, text):
    path = file(text)
    with pytest.raises(
        ScenarioError,
        match=r"time_unit: got us; expected none, since the file has (dates|times in )",
    ):
        read_trace(path, unit="us")


def test_the_tokens_of_a_block_may_be_given(file):
    path = file(mooncake([0, 500], hash_ids=[1, 2, 3]))
    assert "try the workload's hash_block: 16 token" in refused(path)
    assert read_trace(path, block=16).notes == ["Mooncake, times in ms, blocks of 16 token"]
    with pytest.raises(
        ScenarioError,
        match="hash_block: got 16 token; expected none, since the file has no hash_ids",
    ):
        read_trace(file(AZURE), block=16)


def test_azures_seventh_digit_is_kept(file):
    gaps = np.diff(read_trace(file(AZURE)).arrival)
    assert gaps[1] == pytest.approx(1e-7, rel=1e-6)


def test_rows_in_any_order_are_sorted_and_stay_whole(file):
    lines = MOONCAKE.splitlines()
    there, back = read_trace(file(MOONCAKE)), read_trace(file("\n".join(reversed(lines))))
    assert there.hash_ids == back.hash_ids == [(0, 1, 2), (0,)]
    for column in ("arrival", "prompt", "output"):
        assert getattr(there, column).tolist() == getattr(back, column).tolist()


def test_block_ids_are_left_out_where_a_trace_has_none(file):
    assert read_trace(file(AZURE)).hash_ids is None
    assert (
        read_trace(file('{"timestamp": 0, "input_length": 6, "output_length": 2}\n')).hash_ids
        is None
    )


ANSWERS = {"ttfts": [0.1, 0.0, 0.2], "itls": [[], [], [0.3, 0.5]]}


def test_a_replay_says_when_it_was_answered(file):
    """On the clock of the arrivals, sorted with them."""
    first, last = read_trace(file(REPLAY)).answered
    assert first == pytest.approx([1.5, 4.0])
    assert last == pytest.approx([3.0, 4.0])
    plain = FORMATS["replay without answers"][0]
    assert read_trace(file(plain)).answered is None


def test_vllm_says_when_it_answered_where_it_saved_the_gaps(file):
    """Those that failed are left out; a first token comes a TTFT after the request, the last one all gaps after that."""
    first, last = read_trace(file(vllm(**ANSWERS))).answered
    assert first == pytest.approx([0.1, 2.2])
    assert last == pytest.approx([0.1, 3.0])
    backwards = {key: value[::-1] for key, value in (DETAILED | ANSWERS).items()}
    assert read_trace(file(vllm(**backwards))).answered[1] == pytest.approx(last)
    for without in ({"ttfts": None}, {"itls": None}):
        assert read_trace(file(vllm(**ANSWERS | without))).answered is None


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        (AIPERF, [0.25, 1.1000001], [0.3, 1.1000001]),
        (guidellm(GUIDELLM_REQUEST, SECOND_REQUEST), [0.2, 2.7], [0.4, 2.7]),
    ],
)
def test_aiperf_and_guidellm_say_when_they_were_answered(file, text, first, last):
    answered = read_trace(file(text)).answered
    assert answered[0] == pytest.approx(first)
    assert answered[1] == pytest.approx(last)
    without = re.sub(r"time_to_first_token|inter_token_latency", "other", text)
    assert read_trace(file(without)).answered is None


def test_a_result_of_vllm_may_be_indented(file):
    assert read_trace(file(json.dumps(DETAILED, indent=2))).prompt.tolist() == [7, 9]


# What is malformed, and where.

HEADER, FIRST, SECOND, THIRD = AZURE.splitlines()
ROW, NEXT = MOONCAKE.splitlines()


def vllm(**changes: object) -> str:
    return json.dumps(
        {key: value for key, value in (DETAILED | changes).items() if value is not None}, indent=2
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "recorded:1: got an empty file; expected a trace with requests"),
        (" \n\n", "recorded:1: got an empty file; expected a trace with requests"),
        (HEADER, "recorded:1: got a trace without answered requests"),
        (
            "when,what\n1,2\n",
            "recorded:1: got 'when,what'; expected one of CSV of Azure (TIMESTAMP,",
        ),
        (
            "TIMESTAMP,ContextTokens\n1,2\n",
            "recorded:1: got 'TIMESTAMP,ContextTokens'; expected one of",
        ),
        ('{"a": 1}\n', "recorded:1: got '{\"a\": 1}'; expected one of"),
        ('{"a": 1}\n{"a": 2}\n', "recorded:1: got '{\"a\": 1}'; expected one of"),
        ("\x00\x01\x02", "recorded:1: "),
        (
            f"{HEADER}\n{FIRST}\n2023-11-16 18:15:50.9951690,396\n",
            "recorded:3: got 2 values; expected 3, as in the header",
        ),
        (
            f"{HEADER}\n{FIRST}\n{SECOND},9\n",
            "recorded:3: got 4 values; expected 3, as in the header",
        ),
        (
            f"{HEADER}\n\n{FIRST}\n{SECOND[:-3]}\n",
            "recorded:4: GeneratedTokens: got ''; expected a whole number of tokens",
        ),
        (
            f"{HEADER}\n{FIRST.replace('374', 'many')}\n",
            "recorded:2: ContextTokens: got 'many'; expected a whole number of tokens",
        ),
        (
            f"{HEADER}\n{FIRST.replace('374', '-374')}\n",
            "recorded:2: ContextTokens: got '-374'; expected",
        ),
        (
            f"{HEADER}\n{FIRST.replace('374', '0')}\n",
            "recorded:2: ContextTokens: got '0'; expected",
        ),
        (
            f"{HEADER}\n{FIRST.replace('374', '3.5')}\n",
            "recorded:2: ContextTokens: got '3.5'; expected",
        ),
        (
            f"{HEADER}\n{FIRST.replace('374', 'nan')}\n",
            "recorded:2: ContextTokens: got 'nan'; expected",
        ),
        (
            f"{HEADER}\n{FIRST.replace('374', '1e30')}\n",
            "recorded:2: ContextTokens: got '1e30'; expected",
        ),
        (
            f"{HEADER}\n{FIRST}\nyesterday,1,2\n",
            "recorded:3: TIMESTAMP: got 'yesterday'; expected a time",
        ),
        (
            f"{HEADER}\n{FIRST}\n2023-11-16 18:15:46+02:00,1,2\n",
            "recorded:3: TIMESTAMP: got '2023-11-16 18:15:46+02:00'; expected",
        ),
        (
            f"{HEADER}\n{FIRST}\n9999-11-16 18:15:46.68,1,2\n",
            "recorded:3: TIMESTAMP: got '9999-11-16 18:15:46.68'; expected a time",
        ),
        (VIDUR + "nan,5,5\n", "recorded:4: arrived_at: got 'nan'; expected a number of seconds"),
        (
            VIDUR + "-1,5,5\n",
            "recorded:4: arrived_at: got '-1'; expected a number of seconds, at least 0",
        ),
        (VIDUR + "inf,5,5\n", "recorded:4: arrived_at: got 'inf'; expected a number of seconds"),
        (
            BURSTGPT + "200,GPT-4,417,,417,API log\n",
            "recorded:5: Response tokens: got ''; expected",
        ),
        (
            BURSTGPT + "200,GPT-4,417,-1,417,API log\n",
            "recorded:5: Response tokens: got '-1'; expected",
        ),
        (
            f"{ROW}\n{NEXT[:-5]}\n",
            'recorded:2: got \'{"timestamp": 30500, "input_length": 512, "output_length"...\', which is no JSON: ',
        ),
        (f"{ROW}\n[1, 2]\n", "recorded:2: got '[1, 2]'; expected a mapping with timestamp"),
        (
            f"{ROW}\n{NEXT.replace('output_length', 'output')}\n",
            "recorded:2: output_length: got nothing; expected timestamp, input_length, output_length",
        ),
        (
            f"{ROW}\n{NEXT.replace('512', '-512')}\n",
            "recorded:2: input_length: got -512; expected a whole number of tokens",
        ),
        (f"{ROW}\n{NEXT.replace('512', 'true')}\n", "recorded:2: input_length: got true; expected"),
        (
            f"{ROW}\n{NEXT.replace('30500', 'NaN')}\n",
            "recorded:2: timestamp: got NaN; expected a number of milliseconds",
        ),
        (f"{ROW}\n{NEXT.replace('30500', '9' * 400)}\n", "recorded:2: timestamp: got 9999"),
        (
            f"{ROW}\n{NEXT.replace('30500', '-1')}\n",
            "recorded:2: timestamp: got -1; expected a number of milliseconds",
        ),
        (
            f"{ROW}\n{NEXT.replace('[0]', '[0, 5]')}\n",
            "recorded:2: hash_ids: got 2 ids; expected 1 for 512 tokens, one for each 512;"
            " try the workload's hash_block: 256 token",
        ),
        (
            BAILIAN.replace("[4]", "[4, 5]"),
            "recorded:3: hash_ids: got 2 ids; expected 1 for 16 tokens, one for each 16",
        ),
        (
            AIPERF.replace("1759813207532900363", "-5"),
            "recorded:1: metadata.request_start_ns: got -5; expected a whole number of nanoseconds",
        ),
        (
            AIPERF.replace('"value": 66', '"value": "many"'),
            'recorded:2: input_sequence_length: got "many"; expected a whole number of tokens',
        ),
        (
            guidellm(GUIDELLM_REQUEST | {"prompt_tokens": None}),
            "recorded:1: request 1: prompt_tokens: got null; expected a whole number of tokens",
        ),
        (
            guidellm(GUIDELLM_REQUEST, benchmarks=3),
            "recorded:1: benchmarks: got 3; expected one; try a run of guidellm at a single rate",
        ),
        (
            f"{VLLM}\n{VLLM}\n",
            "recorded:1: got several results in one file, as --append-result writes them;",
        ),
        (
            json.dumps({"backend": "sglang", "dataset_name": "random", "input_lens": [5]}) * 2,
            "recorded:1: start_times: got nothing; expected a list; sglang.bench_serving saves no times of sending",
        ),
        (
            json.dumps({"backend": "sglang", "dataset_name": "random", "mean_ttft_ms": 5.0}),
            "recorded:1: got a summary without requests; expected times of sending; sglang.bench_serving saves no times",
        ),
        (
            json.dumps([{"hw": "h200", "tput_per_gpu": 900.0, "mean_ttft": 0.5}]),
            "recorded:1: got a summary without requests; expected a time and lengths for each",
        ),
        (
            json.dumps({"input_config": {}, "request_throughput": {"avg": 3.5}}),
            "recorded:1: got a summary without requests; expected AIPerf's records; try profile_",
        ),
        (
            f"{ROW}\n{NEXT.replace('[0]', '[0.5]')}\n",
            "recorded:2: hash_ids: got [0.5]; expected a list of whole numbers",
        ),
        (
            f"{ROW}\n{NEXT.replace('[0]', 'null')}\n",
            "recorded:2: hash_ids: got them for some requests; expected them for all or none",
        ),
        (
            '{"a":' * 100_000,
            'recorded:1: got \'{"a":{"a":{"a":{"a":{"a":{"a":{"a":{"a":{"a":{"a":{"a":{"...\', which is no JSON: ',
        ),
        (
            vllm(ttfts=["0.1", 0.1, 0.1], itls=[[], [], [0.1, 0.1]]),
            "recorded:2: ttfts and itls: got other values; expected a number and a list of numbers",
        ),
        (
            vllm(ttfts="0.1", itls=[]),
            "recorded:2: ttfts and itls: got other values; expected a number and a list",
        ),
        (
            vllm(start_times=None),
            "recorded:1: start_times: got nothing; expected a list; older vLLM saves none",
        ),
        (
            vllm(input_lens=None),
            "recorded:1: input_lens: got nothing; expected a list; try the benchmark with --save-detailed",
        ),
        (
            vllm(input_lens=[7, 8]),
            "recorded:1: start_times, input_lens, output_lens: got lists of 3, 2, 3; expected equal",
        ),
        (
            vllm(input_lens=[7, 8, "nine"]),
            'recorded:2: request 3: input_lens: got "nine"; expected a whole number',
        ),
        (vllm(output_lens=[1, -1, 3]), "recorded:2: request 2: output_lens: got -1; expected"),
        (
            vllm(start_times=[1, None, 3], output_lens=[1, 1, 1]),
            "recorded:2: request 2: start_times: got null; expected",
        ),
        (vllm(output_lens=[0, 0, 0]), "recorded:1: got a trace without answered requests"),
        (
            vllm(**ANSWERS | {"ttfts": [0.1]}),
            "recorded:2: ttfts and itls: got other values; expected a number and a list of numbers for each request",
        ),
        (vllm(**ANSWERS | {"ttfts": [0.1, 0, None]}), "recorded:2: ttfts and itls: "),
        (vllm(**ANSWERS | {"ttfts": [0.1, 0, "soon"]}), "recorded:2: ttfts and itls: "),
        (vllm(**ANSWERS | {"ttfts": [0.1, 0, -1]}), "recorded:2: ttfts and itls: "),
        (vllm(**ANSWERS | {"ttfts": [0.1, 0, float("nan")]}), "recorded:2: ttfts and itls: "),
        (vllm(**ANSWERS | {"itls": [[], [], [0.5, -0.1]]}), "recorded:2: ttfts and itls: "),
        (vllm(**ANSWERS | {"itls": [[], [], 0.5]}), "recorded:2: ttfts and itls: "),
        (
            REPLAY.replace("6.5", "4.5"),
            "recorded:3: got arrival 5 s, first token 4.5 s and last token 8 s; expected them",
        ),
        (
            REPLAY.replace("8.0", "6.4"),
            "recorded:3: got arrival 5 s, first token 6.5 s and last token 6.4 s; expected them",
        ),
        (
            REPLAY.replace("6.5", "soon"),
            "recorded:3: first_token_s: got 'soon'; expected a number of seconds",
        ),
        (AZURE.encode() + b"\xff\n", "recorded:5: got the byte 0xff; expected a text in UTF-8"),
    ],
)
def test_what_is_malformed_is_named_by_its_line(file, text, says):
    """At its line, with what is there and what is expected."""
    error = refused(file(text))
    assert error.startswith(says)
    assert re.match(r"recorded:\d+: (\S.*: )?got .*; expected ", error)


def test_a_missing_file_is_said_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refused(tmp_path / "gone.csv") == "gone.csv: no such file"
