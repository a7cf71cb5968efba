"""`sramsim validate speculation`: published speed-ups by drafts, against simulated ones."""

import pytest

from sim.catalogue.measurements import PublishedSpeedups
from sim.validation.speculation import speculation_report


@pytest.fixture(scope="module")
def report():
    return speculation_report()


def test_the_median_error_is_small_and_what_is_assumed_is_said(report):
    assert report.summary.median_ape < 15
    assert all("assumed" in row.reason for row in report.rows if row.status != "tested")
    assert not report.of_replies


def test_multi_token_prediction_is_predicted_with_its_published_acceptance(report):
    """No number is fitted to these rows. The steps of 2 and 3 drafts gain about the same."""
    rows = {row.point.id: row for row in report.rows if row.status == "tested"}
    assert len(rows) == 3
    assert all(abs(row.error) < 0.07 for row in rows.values())
    first, second, third = (rows[f"trtllm-mtp{drafts}-1"].simulated for drafts in (1, 2, 3))
    assert first / second > 1.2 > 1.05 > second / third > 0.95


def test_the_gain_of_eagle_falls_with_the_batch_as_published_up_to_32(report):
    for name in ("sglang-eagle3", "sglang-eagle"):
        rows = {
            row.point.users: row.error for row in report.rows if row.point.id.startswith(f"{name}-")
        }
        few = [abs(rows[users] - rows[2]) for users in (4, 8, 16, 24, 32)]
        assert max(few) < (0.1 if name == "sglang-eagle3" else 0.25)
        assert sorted(few)[2] < 0.17


def test_each_number_of_users_has_a_speedup():
    with pytest.raises(ValueError, match="got 1 speedups for 2 users; expected one each"):
        PublishedSpeedups.model_validate(
            {
                "id": "mine",
                "system": {
                    "chip": "h100-sxm",
                    "chips": 1,
                    "engine": "ideal",
                    "model": "llama-3.1-8b",
                },
                "prompt": 1,
                "output": 2,
                "users": (1, 2),
                "speedups": (1.5,),
                "status": "tested",
                "reason": "",
                "source": "",
            }
        )
