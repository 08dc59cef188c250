"""Anomaly detection on tables that ship with scikit-learn: a flow against three detectors.

python benchmarks/anomalies.py    run what is missing; benchmarks/results/anomalies.json

cells   breast-cancer cell nuclei, 30 features: trained on half of the benign cases, tested on the
        other half and all malignant ones
digits  8 x 8 digits: trained on half of the images of nine classes, tested on the other half and
        the tenth class (seed s leaves out class s); ten seeds each

All detectors of a data set see the same rows through the same preprocessing, with scikit-learn's
default settings, and none sees an anomaly or a label. The flow's settings are the same for both
data sets.
"""

import datetime
import json
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.covariance import EllipticEnvelope
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from flowlib import checkpoints
from flowlib.estimator import FlowDensity

RESULTS = Path(__file__).with_name("results") / "anomalies.json"
PROTOCOL = {
    "seeds": 10,
    "flow": {"steps": 600, "noise": 0.1},
    "preprocessing": {"cells": "StandardScaler", "digits": "PCA, 20 components"},
}
PREPROCESSING = {"cells": StandardScaler, "digits": lambda: PCA(20, random_state=0)}
DETECTORS = {
    "FlowDensity": lambda seed: FlowDensity(**PROTOCOL["flow"], random_state=seed),
    "IsolationForest": lambda seed: IsolationForest(random_state=seed),
    "LocalOutlierFactor": lambda seed: LocalOutlierFactor(novelty=True),
    "EllipticEnvelope": lambda seed: EllipticEnvelope(random_state=seed),
}


def split(name, seed):
    """Training rows, all normal; test rows; and which of those are anomalies."""
    X, y = (load_breast_cancer if name == "cells" else load_digits)(return_X_y=True)
    strange = y == (0 if name == "cells" else seed % 10)
    normal = np.random.default_rng(seed).permutation(np.flatnonzero(~strange))
    train, rest = np.split(normal, [len(normal) // 2])
    test = np.concatenate([rest, np.flatnonzero(strange)])
    return X[train], X[test], strange[test]


def run(name, detector, seed):
    train, test, strange = split(name, seed)
    start = time.perf_counter()
    model = make_pipeline(PREPROCESSING[name](), DETECTORS[detector](seed)).fit(train)
    strangeness = -model.score_samples(test)
    row = {
        "data": name,
        "detector": detector,
        "seed": seed,
        "auroc": round(roc_auc_score(strange, strangeness), 4),
        "average_precision": round(average_precision_score(strange, strangeness), 4),
        "share_of_anomalies": round(float(strange.mean()), 4),
        "seconds": round(time.perf_counter() - start, 2),
    }
    print("  ".join(map(str, row.values())), flush=True)
    return row


def main():
    torch.set_num_threads(1)
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    done = {(row["data"], row["detector"], row["seed"]): row for row in stored["rows"]}
    wanted = [
        (name, detector, seed)
        for name in PREPROCESSING
        for detector in DETECTORS
        for seed in range(PROTOCOL["seeds"])
    ]
    for key in wanted:
        if key not in done:
            done[key] = run(*key)
            rows = [done[key] for key in wanted if key in done]
            stored = {
                "protocol": PROTOCOL,
                "hardware": checkpoints.hardware(),
                "date": datetime.date.today().isoformat(),
                "rows": rows,
            }
            checkpoints.write(RESULTS, json.dumps(stored, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
