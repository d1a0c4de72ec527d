"""The same log through MABWiser: expectations of LinUCB and of the regression, and the scores that Thompson draws.

MABWiser (Fidelity) is the best known library of this kind, and would need pandas, scikit-learn and seaborn to choose
among five arms; it keeps its state as Python objects (pickle), draws from a generator whose stream belongs to numpy's
version, and does not tell the propensity of a choice. A log that others are judged by needs all three. So it is the
witness here, in an environment of its own, made once in the git-ignored cache of the checkout.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import venv
from pathlib import Path

import numpy as np
import pytest

from mlbot_core.decision.bandit import ARMS, PolicySpec, expectations, initial_bandit, propensities, update

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
ORACLE = Path(__file__).resolve().parent / "bandit_oracle"


@pytest.fixture(scope="module")
def oracle_python() -> Path:
    """The interpreter of the oracle's environment; made anew when its requirements change."""
    wanted = (ORACLE / "requirements.txt").read_bytes()
    folder = ROOT / ".cache" / f"mabwiser-{hashlib.sha256(wanted).hexdigest()[:12]}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        (folder / ".gitignore").write_text("*\n", encoding="utf-8")
        command = [str(python), "-m", "pip", "install", "--quiet", "-r", str(ORACLE / "requirements.txt")]
        installed = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        if installed.returncode != 0:
            message = f"MABWiser could not be installed into {folder}: {installed.stderr[-500:]}"
            if os.environ.get("MLBOT_REQUIRE_ARCHIVE"):
                pytest.fail(message)
            pytest.skip(message)
        (folder / "complete").touch()
    return python


def test_policies_agree_with_mabwiser(oracle_python):
    rng = np.random.default_rng(12)
    n, numbers, alpha, ridge, draws = 250, 4, 0.8, 1.7, 20_000
    x = np.column_stack([np.ones(n), rng.standard_normal((n, numbers - 1))])
    # every arm early: MABWiser's inverse of an arm without data is ridge I instead of I / ridge
    arms = np.r_[np.arange(len(ARMS)), rng.integers(0, len(ARMS), n - len(ARMS))]
    rewards = np.array(ARMS)[arms] * x[:, 1] + 0.5 * rng.standard_normal(n)
    questions = np.column_stack([np.ones(30), rng.standard_normal((30, numbers - 1))])
    asked = {
        "arms": len(ARMS),
        "alpha": alpha,
        "ridge": ridge,
        "first": 40,
        "draws": draws,
        "decisions": arms.tolist(),
        "rewards": rewards.tolist(),
        "contexts": x.tolist(),
        "questions": questions.tolist(),
    }
    command = [str(oracle_python), str(ORACLE / "replay.py")]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = json.loads(done.stdout)
    spec = PolicySpec("linucb", "disjoint", numbers, ridge=ridge, alpha=alpha, epsilon=0.0, draws=draws, seed=1)
    state = initial_bandit(spec)
    for arm, reward, context in zip(arms, rewards, x, strict=True):
        state = update(state, context, int(arm), float(reward))
    found = [expectations(state, question) for question in questions]
    means, widths = np.array([f[0] for f in found]), np.array([f[1] for f in found])
    np.testing.assert_allclose(means, theirs["mean"], rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(means + alpha * widths, theirs["linucb"], rtol=1e-9, atol=1e-11)
    ours = [int(np.argmax(propensities(state, question, "q", explore=True))) for question in questions]
    assert ours == theirs["linucb arm"]
    assert [int(np.argmax(mean)) for mean in means] == theirs["mean arm"]
    # arm by arm: MABWiser's arms draw from copies of one generator, so that their samples move together
    mean, sd = means[0], alpha * widths[0]
    np.testing.assert_allclose(theirs["lints"]["mean"], mean, atol=5 * sd.max() / np.sqrt(draws))
    np.testing.assert_allclose(theirs["lints"]["sd"], sd, rtol=5 / np.sqrt(2 * draws))
