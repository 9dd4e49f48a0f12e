"""A scikit-learn model as a command: its arguments are params, its result is a line of JSON."""

import json
import sys

from digits_objective import accuracy

C, gamma = map(float, sys.argv[1:])
print(json.dumps({"value": accuracy(C=C, gamma=gamma)}))
