#!/bin/sh
# A study by curl alone. HPO_SERVER and HPO_TOKEN name the server and its key; the first argument the study.
set -eu
server=${HPO_SERVER:-http://127.0.0.1:8000}
study=${1:-by-curl}

call() { # METHOD PATH [BODY]
    curl --silent --show-error --fail-with-body --request "$1" "$server$2" --retry 5 --retry-connrefused \
        --header "Authorization: Bearer ${HPO_TOKEN:-}" --header 'Content-Type: application/json' ${3:+--data "$3"}
}
field() { # NAME: the number of that name in the answer on standard input
    sed -n "s/.*\"$1\":[[:space:]]*\(-\{0,1\}[0-9][0-9.eE+-]*\).*/\1/p"
}

call POST /v1/studies '{"name": "'"$study"'", "direction": "minimize", "limits": {"trials": 5},
    "search_space": {"x": {"type": "float", "low": -1.0, "high": 1.0}}}' >/dev/null

while :; do
    # the same request_id is the same question: repeated, it gives the same trial
    answer=$(call POST "/v1/studies/$study/trials:ask" '{"worker_id": "curl-'$$'", "request_id": "'$$-"$(date +%s%N)"'"}')
    number=$(printf %s "$answer" | field number)
    [ -n "$number" ] || break # nothing is given out any more
    attempt=$(printf %s "$answer" | field attempt)
    value=$(printf %s "$answer" | field x | awk '{ print $1 * $1 }')
    call POST "/v1/studies/$study/trials/$number:report" \
        '{"attempt": '"$attempt"', "reports": [{"step": 0, "value": '"$value"'}]}' >/dev/null
    call POST "/v1/studies/$study/trials/$number:tell" \
        '{"attempt": '"$attempt"', "state": "COMPLETE", "values": ['"$value"']}' >/dev/null
    echo "trial $number: $value"
done
