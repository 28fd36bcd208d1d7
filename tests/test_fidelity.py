"""The comparison of gradients: its settings, its figures, and that it runs."""

import numpy as np
import pytest

from experiments import fidelity, tables
from experiments.errors import UserError
from experiments.results import Outcome, record


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "vgg7"}, "model='vgg7' is unknown: choose one of vgg6"),
        ({"dataset": "pets"}, "dataset='pets' is unknown"),
        ({"batch": 1}, "batch=1 is too small: choose 2 or more"),
    ],
)
def test_settings_are_checked(change, message):
    with pytest.raises(UserError, match=message):
        fidelity.Config(**change)


def test_cosines_by_path_and_their_summary():
    exact = {
        "a": {"kernel": np.array([1.0, 0.0]), "bias": np.array([1.0])},
        "b": {"kernel": np.ones(2)},
    }
    found = {
        "a": {"kernel": np.array([1.0, 1.0]), "bias": np.array([-2.0])},
        "b": {"kernel": np.ones(2)},
    }
    cosines = fidelity._cosines(found, exact)
    assert cosines == pytest.approx({"a/kernel": 0.5**0.5, "a/bias": -1.0, "b/kernel": 1.0})
    policy = fidelity._policy(cosines)
    assert policy[1:] == pytest.approx(((1 + 0.5**0.5) / 2, 0.5**0.5, -1.0))


@pytest.mark.slow
@pytest.mark.parametrize("name", fidelity.CONFIGS)
def test_it_runs(name, tmp_path):
    config = fidelity.smoke(fidelity.CONFIGS[name])
    found = fidelity.run(config)
    assert set(found.policies) == set(fidelity.POLICIES)
    for policy in found.policies.values():
        assert 0.5 < policy.least <= policy.median <= 1 + 1e-9
    tables.finished(tables.TABLES["fidelity"], Outcome(record(config, found), tmp_path, False))
