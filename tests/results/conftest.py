"""Fixtures of the tests of results."""

import pandas as pd
import pytest
from results_helpers import fabricate


@pytest.fixture
def frame() -> pd.DataFrame:
    return fabricate()
