#!/bin/sh
# Run once by the database's image, on its first start: a role that reads and nothing else, for the dashboard and backups.
psql -v ON_ERROR_STOP=1 -q -U hpo -d hpo -v password="$(cat /secrets/reader/reader.password)" <<'SQL'
CREATE ROLE hpo_reader LOGIN PASSWORD :'password' NOSUPERUSER NOCREATEDB NOCREATEROLE;
ALTER ROLE hpo_reader SET default_transaction_read_only = on;
ALTER DEFAULT PRIVILEGES FOR ROLE hpo IN SCHEMA public GRANT SELECT ON TABLES TO hpo_reader;
GRANT USAGE ON SCHEMA public TO hpo_reader;
SQL
