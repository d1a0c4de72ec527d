"""Expectations of MABWiser's LinUCB and ridge regression on a given log; JSON in, JSON out."""

import json
import sys

import numpy as np
from mabwiser.mab import MAB, LearningPolicy

asked = json.load(sys.stdin)
arms = list(range(asked["arms"]))
answers = {}
for name, policy in (
    ("linucb", LearningPolicy.LinUCB(alpha=asked["alpha"], l2_lambda=asked["ridge"])),
    ("mean", LearningPolicy.LinGreedy(epsilon=0, l2_lambda=asked["ridge"])),
):
    mab = MAB(arms, policy, seed=1)
    first = asked["first"]
    mab.fit(asked["decisions"][:first], asked["rewards"][:first], np.array(asked["contexts"][:first]))
    # one by one, as it learns here
    for arm, reward, context in zip(
        asked["decisions"][first:], asked["rewards"][first:], asked["contexts"][first:], strict=True
    ):
        mab.partial_fit([arm], [reward], np.array([context]))
    answers[name] = [[row[arm] for arm in arms] for row in mab.predict_expectations(np.array(asked["questions"]))]
    answers[f"{name} arm"] = [int(arm) for arm in mab.predict(np.array(asked["questions"]))]
sampled = MAB(arms, LearningPolicy.LinTS(alpha=asked["alpha"], l2_lambda=asked["ridge"]), seed=1)
sampled.fit(asked["decisions"], asked["rewards"], np.array(asked["contexts"]))
question = np.array([asked["questions"][0]] * asked["draws"])
scores = np.array([[row[arm] for arm in arms] for row in sampled.predict_expectations(question)])
answers["lints"] = {"mean": scores.mean(axis=0).tolist(), "sd": scores.std(axis=0).tolist()}
json.dump(answers, sys.stdout)
