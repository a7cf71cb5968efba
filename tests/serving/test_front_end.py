"""The process in front of an engine: a queue of requests, their prompts, and tokens on their way out."""

from sim.serving.front_end import FrontEnd, FrontEndTimes


def test_a_request_waits_for_the_prompts_and_the_tokens_before_it():
    """3 s for a prompt of 10; then 2 s for 4 tokens made in the meantime, less what has passed."""
    made = iter([0.0, 4.0, 4.0])
    front_end = FrontEnd(FrontEndTimes(1.0, prompt_token=0.2, token=0.5), lambda: next(made))
    assert [front_end.wait(now, prompt=10) for now in (0.0, 1.0, 20.0)] == [0.0, 4.0, 0.0]
