"""Remakes distances.json: what other packages make of the same seeded features.

Usage, each where what it needs is installed; the other's figures are kept:
    $ python tests/golden/make_distance_goldens.py torch-fidelity
    $ python tests/golden/make_distance_goldens.py adm --clone=DIR  # of openai/guided-diffusion
"""

import argparse
import json
from pathlib import Path
import sys
from types import SimpleNamespace

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.golden.seeded_features import logits, reference, samples

FILE = Path(__file__).with_name("distances.json")
SPLITS = 4


def torch_fidelity() -> dict[str, float]:
    """torch-fidelity's distances; it has no sFID, which is the same formula."""
    import torch
    from torch_fidelity import metric_fid, metric_isc, metric_prc

    real, fake = (torch.from_numpy(a) for a in (reference(), samples()))
    statistics = [metric_fid.fid_features_to_statistics(features) for features in (fake, real)]
    fid = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)
    score = metric_isc.isc_features_to_metric(torch.from_numpy(logits()), SPLITS, shuffle=False)
    pair = metric_prc.prc_features_to_metric(
        fake, real, prc_neighborhood=3, prc_batch_size=100, save_cpu_ram=False, verbose=False
    )
    return {
        "frechet": float(fid["frechet_inception_distance"]),
        "inception_score": score["inception_score_mean"],
        "precision": pair["precision"],
        "recall": pair["recall"],
    }


def adm(clone: Path) -> dict[str, float]:
    """ADM's evaluator's distances, its own code run on our features."""
    sys.path.insert(0, str(clone / "evaluations"))
    import evaluator
    import scipy.special
    import tensorflow.compat.v1 as tf

    real, fake = reference(), samples()
    statistics = [
        evaluator.FIDStatistics(features.mean(0), np.cov(features, rowvar=False))
        for features in (fake, real)
    ]
    with tf.Graph().as_default():
        manifold = evaluator.ManifoldEstimator(tf.Session())
        pairs = {}
        # It multiplies in half precision unless that overflows, which larger features make it do.
        for key, scale in (("half", 1), ("single", 1000)):
            features = real * np.float32(scale), fake * np.float32(scale)
            radii = [manifold.manifold_radii(vectors) for vectors in features]
            pairs[key] = manifold.evaluate_pr(features[0], radii[0], features[1], radii[1])
    scorer = SimpleNamespace(
        softmax_batch_size=64,
        softmax="softmax",
        softmax_input="input",
        sess=SimpleNamespace(run=lambda _, feed_dict: scipy.special.softmax(feed_dict["input"], 1)),
    )
    score = evaluator.Evaluator.compute_inception_score(scorer, logits(), len(logits()) // SPLITS)
    return {
        "frechet": float(statistics[0].frechet_distance(statistics[1])),
        "inception_score": score,
        "precision": float(pairs["single"][0][0]),
        "recall": float(pairs["single"][1][0]),
        "precision_half": float(pairs["half"][0][0]),
        "recall_half": float(pairs["half"][1][0]),
    }


def main() -> None:
    """Writes the figures of one package into the file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("package", choices=("torch-fidelity", "adm"))
    parser.add_argument("--clone", type=Path)
    arguments = parser.parse_args()
    figures = torch_fidelity() if arguments.package == "torch-fidelity" else adm(arguments.clone)
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    known[arguments.package] = figures
    FILE.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
