"""In the watchdog's place in a sabotaged run: becomes the command, and looks after nothing."""

import os
import sys

os.execvp(sys.argv[2], sys.argv[2:])
