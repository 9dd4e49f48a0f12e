"""What `hpo init` writes: study files with a comment on each line that somebody will want to change."""

from hpo_service.domain.sampler_facts import SAMPLER_FACTS


def _sampler(name: str) -> str:
    others = ", ".join(other for other in SAMPLER_FACTS if other != name)
    return f'sampler = {{{{ name = "{name}" }}}}'.ljust(37) + f"# or {others}\n"


_HEAD = """\
# A study: what is searched, how, and for how long. Run it, and again to go on where it stopped:
#   {run}
name = "{name}"                      # another name: another study
"""

_SPACE = """
# What is searched. Others: {{ type = "categorical", choices = ["a", "b"] }}, step = 0.1, and
# when = {{ kind = ["a"] }} for a parameter that exists only under a choice of another.
[search_space]
"""

SKLEARN = (
    _HEAD
    + """\
direction = "maximize"             # what {script} returns; "minimize" for a loss
limits = {{ trials = 40 }}
"""
    + _sampler("auto")
    + _SPACE
    + """\
C = {{ type = "float", low = 0.01, high = 100.0, log = true }}
gamma = {{ type = "float", low = 1e-5, high = 0.1, log = true }}
kernel = {{ type = "categorical", choices = ["rbf", "poly"] }}
degree = {{ type = "int", low = 2, high = 5, when = {{ kernel = ["poly"] }} }}
"""
)

SKLEARN_CODE = """\
from sklearn.datasets import load_digits
from sklearn.model_selection import cross_val_score
from sklearn.svm import SVC

X, y = load_digits(return_X_y=True)


def objective(trial):
    \"\"\"The accuracy of a model with these params; what it returns is the trial's value.\"\"\"
    model = SVC(**trial.params)
    return cross_val_score(model, X, y, cv=3).mean()
"""

COMMAND = (
    _HEAD
    + """\
direction = "minimize"             # what {script} prints; "maximize" for an accuracy
limits = {{ trials = 40 }}
"""
    + _sampler("auto")
    + """\
pruner = {{ name = "median" }}       # ends a trial that reports worse than most; "none": never
"""
    + _SPACE
    + """\
lr = {{ type = "float", low = 1e-4, high = 1.0, log = true }}
layers = {{ type = "int", low = 1, high = 6 }}
"""
)

COMMAND_CODE = """\
\"\"\"Any program, in any language: params are its arguments, and lines of JSON on standard output its results.\"\"\"

import argparse
import json

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
parser.add_argument("--layers", type=int)
args = parser.parse_args()

loss = 1.0
for step in range(10):
    loss = 0.5 * loss + (args.lr - 0.01) ** 2 + 0.01 * (args.layers - 3) ** 2  # train here
    print(json.dumps({"step": step, "value": loss}), flush=True)
print(json.dumps({"value": loss}))
"""

NETWORK = (
    _HEAD
    + """\
limits = {{ trials = 60 }}
"""
    + _sampler("random")
    + """
# Coarse to fine: three rounds, each in the ranges that the best trials so far span.
narrowing = {{ rounds = 3, trials_per_round = 20, expand = true }}
"""
    + _SPACE
    + """\
learning_rate = {{ type = "float", low = 1e-6, high = 1e-2, log = true }}
weight_decay = {{ type = "float", low = 1e-8, high = 1e-4, log = true }}

# What trains: a network of the service's own, in NumPy. Any of its settings can be searched above instead of set here.
[objective]
kind = "neural_network"
dataset = "mnist"
samples = 500
epochs = 20
"""
)
