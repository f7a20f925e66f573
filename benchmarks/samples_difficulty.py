"""How hard is a data set? Logistic regression on optical flow, leaving one subject out.

    python benchmarks/samples_difficulty.py [ROOT] [folder|casme2]

Onset and apex are aligned at 128x128, the flow between them is averaged to 24x24, and one balanced logistic
regression is fitted per left-out subject. The table gives pooled UF1: `flow` is Farneback's, `no drift` has its
median subtracted (the head's shift), `truth` is the simulator's own displacement, a ceiling. Nothing is chosen on
the result: every row is shown.
"""

import sys
import tempfile

import cv2
import numpy as np
from sklearn.linear_model import LogisticRegression

from frl_dgt_nb.data.archives import read_database
from frl_dgt_nb.data.preparation import prepare
from frl_dgt_nb.training.metrics import uf1

STRENGTHS = 0.01, 0.03, 0.1  # C of the logistic regression, small is stiff


def farneback(onset, apex):  # (h,w,3) uint8 -> (2,h,w) pixels
    gray = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (onset, apex)]
    return cv2.calcOpticalFlowFarneback(*gray, None, 0.5, 3, 15, 3, 5, 1.2, 0).transpose(2, 0, 1)


def features(field):  # (2,h,w) -> (1152,)
    return np.concatenate(
        [
            cv2.resize(np.float32(part), (24, 24), interpolation=cv2.INTER_AREA).ravel()
            for part in field
        ]
    )


def leave_one_out(x, labels, subjects, strength):
    predictions = np.empty_like(labels)
    for subject in np.unique(subjects):
        test = subjects == subject
        model = LogisticRegression(C=strength, class_weight="balanced", max_iter=2000).fit(
            x[~test], labels[~test]
        )
        predictions[test] = model.predict(x[test])
    return uf1(labels, predictions)


def main(root="data_samples", database="folder"):
    with tempfile.TemporaryDirectory() as folder:
        store = prepare(read_database(root, database), folder, size=128, progress=False)
        flows = [farneback(*store.pair(i)) for i in range(len(store))]
        truths = [store.truth(i) for i in range(len(store))]
        labels, subjects = store.index["label"].to_numpy(), store.index["subject_id"].to_numpy()
    inputs = {
        "flow": flows,
        "no drift": [flow - np.median(flow, (1, 2), keepdims=True) for flow in flows],
    }
    if all(truth is not None for truth in truths):
        inputs["truth"] = truths
    print(
        f"{root}: {len(labels)} clips, {len(np.unique(subjects))} subjects; pooled UF1, chance about .33\n"
    )
    print(
        "| input |"
        + "".join(f" C = {c:g} |" for c in STRENGTHS)
        + "\n|---|"
        + "---|" * len(STRENGTHS)
    )
    for name, fields in inputs.items():
        x = np.stack([features(field) for field in fields])
        print(
            f"| {name} |"
            + "".join(f" {leave_one_out(x, labels, subjects, c):.2f} |" for c in STRENGTHS),
            flush=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
