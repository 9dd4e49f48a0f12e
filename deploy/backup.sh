#!/bin/sh
# backup.sh       dumps the database now and then on a schedule, and keeps the newest dumps
# backup.sh once  dumps it now
#
# BACKUPS: the folder (/backups); BACKUP_SECONDS: from one to the next (86400); BACKUPS_KEPT: how many (7);
# PASSWORD_FILE: of the role that reads; PGHOST, PGUSER and PGDATABASE as for pg_dump.
# A dump has its name, hpo-<UTC time>.dump, only when it is whole: pg_restore has read it through, and it is on the disk.
set -eu
umask 077
folder=${BACKUPS:-/backups}
every=${BACKUP_SECONDS:-86400}
kept=${BACKUPS_KEPT:-7}
again=600 # seconds after a dump that failed
if [ -n "${PASSWORD_FILE:-}" ]; then
    PGPASSWORD=$(cat "$PASSWORD_FILE")
    export PGPASSWORD
fi

dump() {
    name=hpo-$(date -u +%Y%m%dT%H%M%SZ).dump
    rm -f "$folder"/*.part
    pg_dump --format=custom --no-password --lock-wait-timeout=60s --file="$folder/$name.part" || return 1
    pg_restore --file=/dev/null "$folder/$name.part" || return 1
    sync "$folder/$name.part" || return 1
    mv "$folder/$name.part" "$folder/$name"
    echo "backup: $name, $(wc -c <"$folder/$name") bytes"
}

forget_old() {
    # only after a new one is there; the names sort by time
    find "$folder" -maxdepth 1 -name 'hpo-*.dump' | sort -r | tail -n "+$((kept + 1))" | while read -r old; do
        rm -f "$old"
        echo "backup: $(basename "$old") is old, removed"
    done
}

if [ "${1:-}" = once ]; then
    dump
    forget_old
    exit
fi
trap 'exit 0' TERM INT
while :; do
    pause=$every
    if dump; then
        forget_old
    else
        echo "backup: failed; the dumps from before are kept; next try in $again s" >&2
        pause=$again
    fi
    sleep "$pause" &
    wait $!
done
