#!/bin/sh
# Arguments are params; what goes on and the result are lines of JSON on standard output.
for step in 1 2 3; do
    awk -v x="$1" -v y="$2" -v step="$step" \
        'BEGIN { printf "{\"step\": %d, \"value\": %.9g}\n", step, (x - 1) ^ 2 + (y + 2) ^ 2 + 1 / step }'
done
awk -v x="$1" -v y="$2" 'BEGIN { printf "{\"value\": %.9g}\n", (x - 1) ^ 2 + (y + 2) ^ 2 }'
