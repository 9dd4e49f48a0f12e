#!/bin/sh
# restore.sh [FILE]: puts a dump of backup.sh in the database's place, the newest one when none is named.
#
# The dump goes into a new database, which then takes the name; the one from before stays as <name>_before_<UTC time>.
# Whatever fails before that moment changes nothing. Nobody may be connected to the database: stop the services first.
# BACKUPS, PASSWORD_FILE: as for backup.sh, the password of the owner; PGHOST, PGUSER and PGDATABASE as for pg_restore.
set -eu
folder=${BACKUPS:-/backups}
database=${PGDATABASE:-hpo}
time=$(date -u +%Y%m%dt%H%M%Sz)
if [ -n "${PASSWORD_FILE:-}" ]; then
    PGPASSWORD=$(cat "$PASSWORD_FILE")
    export PGPASSWORD
fi
file=${1:-$(find "$folder" -maxdepth 1 -name 'hpo-*.dump' | sort | tail -n 1)}
case $file in
"") echo "restore: there is no dump in $folder" >&2 && exit 1 ;;
*/*) ;;
*) file=$folder/$file ;;
esac
[ -r "$file" ] || { echo "restore: $file cannot be read" >&2 && exit 1; }

ask() { psql --no-psqlrc --no-password -q -A -t -v ON_ERROR_STOP=1 -d postgres "$@"; }

others=$(ask -c "SELECT count(*) FROM pg_stat_activity WHERE datname = '$database'")
if [ "$others" != 0 ]; then
    echo "restore: $others connections to $database are open; stop the services first" >&2
    exit 1
fi
ask -c "CREATE DATABASE \"${database}_new_$time\" TEMPLATE template0 ENCODING 'UTF8'"
if ! pg_restore --no-password --exit-on-error --single-transaction -d "${database}_new_$time" "$file"; then
    ask -c "DROP DATABASE \"${database}_new_$time\""
    echo "restore: $file could not be restored; $database is as it was" >&2
    exit 1
fi
# both names change or neither
ask <<SQL
BEGIN;
ALTER DATABASE "$database" RENAME TO "${database}_before_$time";
ALTER DATABASE "${database}_new_$time" RENAME TO "$database";
COMMIT;
SQL
echo "restore: $database is $(basename "$file") now; what it was is in ${database}_before_$time"
