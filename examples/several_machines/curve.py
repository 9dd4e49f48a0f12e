"""A training that takes a moment: a loss that falls, for the better learning rates further."""

import time


def objective(trial):
    loss = 1.0
    for epoch in range(5):
        time.sleep(0.02)
        loss *= 0.5 + abs(trial.params["lr"] - 0.3)
        if trial.report(loss, epoch):
            break
    return loss
