"""Recorded requests: what each format says is what is read, and what is malformed is named by its line."""

import json
from pathlib import Path

import numpy as np
import pytest

from sim.inputs.errors import ScenarioError
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
REPLAY = """request_id,arrived_at_s,input_tokens,output_tokens,queued_s,first_token_s,last_token_s
b,7.5,8,1,7.6,9.0,9.0
a,5.0,100,20,5.1,6.5,8.0
"""

# name: text, arrivals after the first, prompts, outputs, failed
FORMATS = {
    "azure": (AZURE, [0, 4.314579, 4.3145791], [374, 396, 879], [44, 109, 55], 0),
    "azure 2024": (AZURE_2024, [0, 0.99007], [2162, 2399], [5, 6], 0),
    "burstgpt": (BURSTGPT, [0, 113], [472, 417], [18, 276], 1),
    "vidur": (VIDUR, [0, 1.5], [100, 50], [20, 30], 0),
    "mooncake": (MOONCAKE, [0, 3.5], [1025, 512], [52, 1], 0),
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
    text, arrival, prompt, output, failed = FORMATS[name]
    columns = read_trace(file(text))
    assert columns.arrival == pytest.approx(arrival, abs=1e-9)
    assert columns.prompt.tolist() == prompt
    assert columns.output.tolist() == output
    assert columns.failed == failed


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
    assert (plain.hash_ids, plain.failed) == (changed.hash_ids, changed.failed)


def test_columns_are_found_by_name_in_any_order_among_others(file):
    columns = read_trace(
        file('"num_decode_tokens","id",arrived_at,num_prefill_tokens\n20,x,1,100\n')
    )
    assert (columns.prompt.tolist(), columns.output.tolist()) == ([100], [20])


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
        ("", "recorded:1: the file is empty"),
        (" \n\n", "recorded:1: the file is empty"),
        (HEADER, "recorded:1: no request of the trace was answered"),
        (
            "when,what\n1,2\n",
            "recorded:1: 'when,what' is not a known trace; expected one of CSV of Azure (TIMESTAMP,",
        ),
        (
            "TIMESTAMP,ContextTokens\n1,2\n",
            "recorded:1: 'TIMESTAMP,ContextTokens' is not a known trace",
        ),
        ('{"a": 1}\n', "recorded:1: '{\"a\": 1}' is not a known trace"),
        ('{"a": 1}\n{"a": 2}\n', "recorded:1: '{\"a\": 1}' is not a known trace"),
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
            f"{HEADER}\n{FIRST}\n{SECOND.replace('109', '0')}\n",
            "recorded:3: GeneratedTokens: got '0'; expected",
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
        (f"{ROW}\n{NEXT[:-5]}\n", "recorded:2: JSON: "),
        (f"{ROW}\n[1, 2]\n", "recorded:2: got '[1, 2]'; expected a mapping with timestamp"),
        (
            f"{ROW}\n{NEXT.replace('output_length', 'output')}\n",
            "recorded:2: 'output_length' is missing",
        ),
        (
            f"{ROW}\n{NEXT.replace('512', '-512')}\n",
            "recorded:2: input_length: got -512; expected a whole number of tokens",
        ),
        (f"{ROW}\n{NEXT.replace('512', 'true')}\n", "recorded:2: input_length: got true; expected"),
        (f"{ROW}\n{NEXT.replace(': 1,', ': 0,')}\n", "recorded:2: output_length: got 0; expected"),
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
            "recorded:2: hash_ids: got 2 ids; expected 1 for 512 tokens, one for each 512",
        ),
        (
            f"{ROW}\n{NEXT.replace('[0]', '[0.5]')}\n",
            "recorded:2: hash_ids: expected a list of whole numbers",
        ),
        (
            f"{ROW}\n{NEXT.replace('[0]', 'null')}\n",
            "recorded:2: got hash_ids for some requests; expected them for all or none",
        ),
        ('{"a":' * 100_000, "recorded:1: JSON: "),
        (vllm(start_times=None), "recorded:1: 'start_times' is missing: older vLLM saves none"),
        (
            vllm(input_lens=None),
            "recorded:1: 'input_lens' is missing: save the benchmark's result with --save-detailed",
        ),
        (
            vllm(input_lens=[7, 8]),
            "recorded:1: start_times, input_lens, output_lens have 3, 2, 3 entries",
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
        (vllm(output_lens=[0, 0, 0]), "recorded:1: no request of the trace was answered"),
        (
            vllm(**ANSWERS | {"ttfts": [0.1]}),
            "recorded:2: ttfts and itls: expected a number and a list of numbers for each request",
        ),
        (vllm(**ANSWERS | {"ttfts": [0.1, 0, None]}), "recorded:2: ttfts and itls: "),
        (vllm(**ANSWERS | {"ttfts": [0.1, 0, "soon"]}), "recorded:2: ttfts and itls: "),
        (vllm(**ANSWERS | {"ttfts": [0.1, 0, -1]}), "recorded:2: ttfts and itls: "),
        (vllm(**ANSWERS | {"ttfts": [0.1, 0, float("nan")]}), "recorded:2: ttfts and itls: "),
        (vllm(**ANSWERS | {"itls": [[], [], [0.5, -0.1]]}), "recorded:2: ttfts and itls: "),
        (vllm(**ANSWERS | {"itls": [[], [], 0.5]}), "recorded:2: ttfts and itls: "),
        (
            REPLAY.replace("6.5", "4.5"),
            "recorded:3: expected arrival, first token and last token in this order",
        ),
        (
            REPLAY.replace("8.0", "6.4"),
            "recorded:3: expected arrival, first token and last token in this order",
        ),
        (
            REPLAY.replace("6.5", "soon"),
            "recorded:3: first_token_s: got 'soon'; expected a number of seconds",
        ),
        (AZURE.encode() + b"\xff\n", "recorded:5: not a UTF-8 text"),
    ],
)
def test_what_is_malformed_is_named_by_its_line(file, text, says):
    assert refused(file(text)).startswith(says)


def test_a_missing_file_is_said_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refused(tmp_path / "gone.csv") == "gone.csv: no such file"
