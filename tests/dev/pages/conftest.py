"""Results of which every answer is known."""

import pytest
from made_up_results import make_task


@pytest.fixture(scope="session")
def task(tmp_path_factory):
    """Of 70 questions so many are answered wrong."""
    wrong = {
        "divprune": {"25%": 0, "12.5%": 7},
        "scope": {"25%": 60},
        "pool": {"25%": 69},
        "vispruner": 28,
        "divprune+fastv": {"12.5%": 14},
    }
    kept = {"vispruner": 40.4}
    return make_task(tmp_path_factory.mktemp("run"), wrong, kept=kept)
