"""All drills: what is promised, what is done to it, how often, and which broken guarantee must be found by it."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from drills import (
    absences,
    bad_disks,
    bad_networks,
    changed_keys,
    cold_starts,
    confirmations,
    crowds,
    greedy_connections,
    jumping_clocks,
    kept_artifacts,
    killed_agents,
    kills,
    large_studies,
    made_up_calls,
    moved_files,
    one_stopped,
    power_cut,
    silent_failures,
    slow_connections,
    suites,
)
from drills.loaded_study import NotHere, Outcome, Place
from drills.nursery import Nursery


@dataclass(frozen=True)
class Drill:
    """short, full, sabotaged: the sizes of a run among the tests, of `make faults`, and of the run that must fail.

    shows: kinds of violation of which the sabotage must cause at least one.
    """

    promise: str
    what: str
    run: Callable[[Place, int], Outcome]
    unit: str
    short: int
    full: int
    sabotage: str
    sabotaged: int
    shows: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.run.__name__


LOST = (
    "acknowledged results are recorded",
    "acknowledged reports are recorded",
    "acknowledged grants are recorded",
    "the study goes on after the last fault",
)

DRILLS = [
    Drill(
        "An acknowledged call survives kill -9 of the server",
        "kill -9 the server, start it again; SQLite",
        kills.servers_killed,
        "kills",
        *(3, 50),
        "answer-before-commit",
        *(12, LOST),
    ),
    Drill(
        "No trial is RUNNING for ever, and none is given out more often than `limits.attempts`",
        "kill -9 workers, put others in their place; every 23rd trial is forgotten by whoever holds it; SQLite",
        kills.workers_killed,
        "kills",
        *(12, 200),
        "leases-never-end",
        *(10, ("nothing is left unfinished",)),
    ),
    Drill(
        "Every call may be repeated: no second effect, and the same answer",
        "every call is sent twice; SQLite",
        kills.calls_repeated,
        "trials",
        *(40, 500),
        "forgets-answers",
        *(30, ("a repeated call gets the same answer",)),
    ),
    Drill(
        "One live holder per trial; a stale one is refused",
        "SIGSTOP workers past their lease, then SIGCONT; SQLite",
        kills.workers_stopped,
        "stops",
        *(4, 50),
        "no-attempt-check",
        *(8, ("a stale holder is refused",)),
    ),
    Drill(
        "One result per trial, whatever the network loses",
        "a proxy loses, cuts and delays one reply in five, then lets nothing through for three leases; SQLite",
        bad_networks.replies_lost,
        "faults",
        *(20, 400),
        "replays-refused",
        *(60, ("a repeated call gets the same answer",)),
    ),
    Drill(
        "One result per trial, and none RUNNING for ever, through cuts of the network",
        "server and workers in two network namespaces; the link drops everything for longer than a lease, or replies "
        "only; SQLite",
        bad_networks.network_cut,
        "cuts",
        *(2, 20),
        "replays-refused",
        *(8, ("a repeated call gets the same answer",)),
    ),
    Drill(
        "Two servers on one PostgreSQL, either killed at any moment; `limits.trials` exactly",
        "kill -9 one of two servers, by turns, start it again; PostgreSQL",
        kills.servers_of_two_killed,
        "kills",
        *(2, 50),
        "no-row-locks",
        *(4, ("every answer is documented", "numbers have no gap", "limits are kept", "each result counts once")),
    ),
    Drill(
        "An acknowledged call survives a crash of PostgreSQL; the servers need no restart",
        "pg_ctl stop -m immediate under two servers, then start",
        kills.postgres_crashed,
        "crashes",
        *(2, 20),
        "postgres-commits-later",
        *(5, LOST),
    ),
    Drill(
        "An acknowledged call survives a power cut",
        "strace records what the server writes and syncs; at each acknowledgement only what was synced is kept, and in "
        "every second cut some of the rest; SQLite",
        power_cut.power_cut,
        "cuts",
        *(12, 60),
        "no-fsync",
        *(12, ("acknowledged results survive a power cut",)),
    ),
    Drill(
        "I/O errors: 503, nothing acknowledged lost, recovery without a restart",
        "strace makes the 1st to 5th fdatasync or pwrite64 and three more fail with EIO or ENOSPC; SQLite",
        bad_disks.calls_failed,
        "faults",
        *(4, 100),
        "commit-errors-swallowed",
        *(8, LOST),
    ),
    Drill(
        "Disk full: 503, not ready, alive, readable; recovery without a restart",
        "the disk of the database is filled up under load, then freed; SQLite",
        bad_disks.disk_full,
        "times",
        *(1, 10),
        "commit-errors-swallowed",
        *(3, LOST),
    ),
    Drill(
        "No trial is RUNNING 5 s after its lease ran out, though nobody looks, after a full disk too",
        "the disk of the database and of the server's log is filled up, then freed; SQLite",
        bad_disks.disk_full_of_log,
        "times",
        *(1, 3),
        "leases-never-end",
        *(1, ("leases run out",)),
    ),
    Drill(
        "Jumps of the database's clock freeze nothing and steal nothing twice",
        "libfaketime moves the clock a day forward, two back, and so on; half the workers die before each jump; SQLite",
        jumping_clocks.clock_jumped,
        "jumps",
        *(2, 10),
        "no-clock-clamp",
        *(2, ("nothing is left unfinished",)),
    ),
    Drill(
        "Only the database's clock decides, and its jumps freeze nothing and steal nothing twice",
        "libfaketime moves PostgreSQL's clock a day forward, two back, and so on, and not the server's; half the "
        "workers die before each jump",
        jumping_clocks.clock_of_postgres_jumped,
        "jumps",
        *(2, 10),
        "no-clock-clamp",
        *(2, ("nothing is left unfinished",)),
    ),
    Drill(
        "Servers that start at once on an empty database all come up",
        "8 servers at once; PostgreSQL",
        cold_starts.servers_started_at_once,
        "rounds of 8",
        *(1, 20),
        "no-migration-lock",
        *(3, ("all come up",)),
    ),
    Drill(
        "SQLite takes one server and refuses a second one, clearly",
        "8 servers at once on an empty file",
        cold_starts.second_servers_refused,
        "rounds of 8",
        *(1, 20),
        "no-file-lock",
        *(1, ("one comes up",)),
    ),
    Drill(
        "SIGTERM: the server ends within 10 s with exit code 0, and loses nothing",
        "SIGTERM under load, start again; SQLite",
        kills.servers_asked_to_end,
        "ends",
        *(2, 20),
        "deaf",
        *(1, ("ends when asked to",)),
    ),
    Drill(
        "1,000 slow connections stop no worker",
        "silent, half-closed and dribbling connections, each opened again when it is closed, on a server with half as "
        "many places; workers die meanwhile; SQLite",
        slow_connections.connections_slow,
        "connections",
        *(100, 1000),
        "slow-ones-stay",
        *(200, ("a newcomer is served", "slow connections are closed")),
    ),
    Drill(
        "Limits, leases, results and states are what the contract says, whatever is called and in whatever order",
        "Hypothesis draws calls, waits and restarts, and holds every answer and the whole record against a model; "
        "SQLite and PostgreSQL",
        suites.calls_in_any_order,
        "calls",
        *(0, 4_000),
        "no-attempt-check",
        *(600, ("answers and record are the model's",)),
    ),
    Drill(
        "Any input gets a documented answer: never a 500, never a hang, never without a key",
        "schemathesis makes calls up from the API's own description, by its rules and against them, and makes all its "
        "checks; SQLite",
        made_up_calls.calls_made_up,
        "calls",
        *(300, 10_000),
        "frameworks-refusals",
        *(300, ("every answer is as described",)),
    ),
    Drill(
        "Nobody without a key reads or writes; a key does what its scope says, in the studies it names",
        "every route with no key, a bad one, an expired one, one for other studies, and one of each scope",
        suites.keys_on_every_route,
        "cases",
        *(0, 100),
        "scopes-unchecked",
        *(100, ("a key opens what it is for",)),
    ),
    Drill(
        "Every 503 has a line in the log, and an outage of the database one when it begins and one when it ends",
        "another process holds the write lock under load, for longer than calls are patient; then all places of the "
        "server are taken; SQLite",
        silent_failures.failures_logged,
        "seconds",
        *(3, 12),
        "says-nothing",
        *(3, ("each 503 is logged", "an outage is logged once")),
    ),
    Drill(
        "A key that is ended or changed, by whatever hand, opens nothing more a second later",
        "somebody changes the table of keys by SQL, one deleted and one made among it, while the server idles or is "
        "called; SQLite and PostgreSQL by turns",
        changed_keys.keys_changed_by_sql,
        "changes",
        *(6, 60),
        "keys-by-count",
        *(12, ("a key changed by SQL is seen",)),
    ),
    Drill(
        "Strangers who send requests without waiting for answers neither fill the server nor silence it",
        "connections without a key send requests one behind the other as fast as they are taken, and read the answers "
        "or do not; SQLite",
        greedy_connections.requests_pipelined,
        "connections",
        *(4, 30),
        "takes-all-that-comes",
        *(8, ("the server stays small", "the server goes on answering")),
    ),
    Drill(
        "Nor do those who send trailers, extensions of chunks, or bodies that nobody wants, without an end",
        "connections without a key send each of these as fast as it is taken; SQLite",
        greedy_connections.trailers_sent,
        "connections",
        *(4, 30),
        "takes-all-that-comes",
        *(2, ("the server stays small", "the server goes on answering")),
    ),
    Drill(
        "Whoever asks whether the server is ready costs the workers no commits",
        "callers without a key ask /readyz again and again, beside workers and alone; SQLite",
        greedy_connections.readiness_asked,
        "callers",
        *(8, 32),
        "checks-each-time",
        *(32, ("readiness is checked once a second",)),
    ),
    Drill(
        "A server's absence costs no healthy worker its trial: killed",
        "kill -9 the server and start it again after more than a lease; some workers die meanwhile; SQLite",
        absences.server_killed_for_long,
        "absences",
        *(1, 8),
        "absence-is-silence",
        *(2, ("a healthy worker keeps its trial",)),
    ),
    Drill(
        "A server's absence costs no healthy worker its trial: stopped, as a suspended machine",
        "SIGSTOP the server for more than a lease, then SIGCONT; some workers die meanwhile; SQLite",
        absences.server_stopped_for_long,
        "absences",
        *(1, 8),
        "absence-is-silence",
        *(2, ("a healthy worker keeps its trial",)),
    ),
    Drill(
        "A database's absence costs no healthy worker its trial",
        "PostgreSQL down for more than a lease under two servers; some workers die meanwhile",
        absences.postgres_away_for_long,
        "absences",
        *(1, 6),
        "absence-is-silence",
        *(2, ("a healthy worker keeps its trial",)),
    ),
    Drill(
        "The absence of one of two servers costs none of its workers a trial",
        "SIGSTOP or kill -9 one of two servers for more than a lease, by turns; a worker knows one of them; PostgreSQL",
        absences.one_of_two_away_for_long,
        "absences",
        *(1, 8),
        "absence-is-silence",
        *(2, ("a healthy worker keeps its trial",)),
    ),
    Drill(
        "A server that is stopped in the middle of a transaction stops no other: studies that it does not hold go on",
        "SIGSTOP one of two servers while it holds a study, for 7 s; PostgreSQL",
        one_stopped.one_of_two_stopped,
        "stops",
        *(1, 8),
        "locks-are-waited-for",
        *(2, ("other studies go on",)),
    ),
    Drill(
        "SQLite takes one server a file, whatever name it is reached by",
        "a second server by a symlink, by a hard link, and after `hpo.db.lock` was deleted, beside one that runs",
        moved_files.second_servers_by_other_names,
        "servers",
        *(3, 30),
        "locks-names",
        *(3, ("a second server is refused",)),
    ),
    Drill(
        "Nothing is acknowledged that a restart does not find, though the file is moved under the server",
        "the file is moved, removed, replaced by a backup, its folder renamed, or its log removed, under load; then "
        "kill -9; SQLite",
        moved_files.database_moved,
        "times",
        *(5, 25),
        "file-unwatched",
        *(5, ("acknowledged results are recorded",)),
    ),
    Drill(
        "A file that was moved away and comes back: 503 meanwhile, and all goes on without a restart",
        "the file and its folder are moved away under load by turns, and back; SQLite",
        moved_files.database_back,
        "times",
        *(2, 20),
        "file-unwatched",
        *(4, ("readiness", *LOST)),
    ),
    Drill(
        "What a trial holds is bounded, and so is what its readers cost",
        "metrics are reported to one trial as large and as long as they are taken; 8 readers read all of it three "
        "times, and it is told; SQLite",
        large_studies.trials_filled_up,
        "MB of metrics",
        *(8, 60),
        "unbounded-trials",
        *(100, ("memory is bounded", "answers are bounded")),
    ),
    Drill(
        "Nobody waits while a large study is deleted",
        "a study with as many thousand reports is deleted while a worker of another one sends heartbeats; SQLite",
        large_studies.large_study_deleted,
        "thousand reports",
        *(60, 2000),
        "deletes-in-one-go",
        *(8000, ("nobody waits for a deletion",)),
    ),
    Drill(
        "A report costs the same however many steps its trial has",
        "as many steps are reported to one trial of a study with a pruner; SQLite",
        large_studies.steps_judged,
        "steps",
        *(5_000, 100_000),
        "reads-the-whole-curve",
        *(100_000, ("a report costs what it did at first",)),
    ),
    Drill(
        "A command trains a trial beside no other command of it, however the agent before ended",
        "kill -9, a closed terminal or SIGTERM to `hpo agent` while its command and a daemon of it run and do not mind "
        "SIGTERM; the next agent; SQLite",
        killed_agents.commands_orphaned,
        "agents",
        *(1, 12),
        "commands-outlive",
        *(3, ("one command a trial", "nothing is left")),
    ),
    Drill(
        "Who waits costs those who work nothing, and is given a trial when there is one",
        "two workers beside long polls of a paused study, then of one with nothing to give, then streams of a quiet "
        "study, then of the one they work on; the server's processor time for a trial is compared; SQLite",
        crowds.crowd_waits,
        "waiting calls",
        *(40, 200),
        "every-change-wakes-all",
        *(200, ("waiting costs those who work nothing",)),
    ),
    Drill(
        "A draw holds up nobody but who asked for it",
        "draws that take seconds, while a worker of another study sends heartbeats; SQLite",
        crowds.draws_long,
        "draws",
        *(2, 8),
        "draws-in-the-writer",
        *(2, ("a draw holds up nobody",)),
    ),
    Drill(
        "A confirmation trains and counts each replicate once, as many as were asked for, and says what they were told",
        "kill -9 the server and start it again, and kill -9 one to three workers, by turns, while the best trials are "
        "confirmed, and all workers that hold the last replicates; SQLite",
        confirmations.confirmation_killed,
        "kills",
        *(4, 50),
        "retried-replicates-forgotten",
        *(12, ("nothing is left unfinished", "each replicate counts once")),
    ),
    Drill(
        "An acknowledged artifact survives kill -9 of the server, and of one under way nothing is left",
        "kill -9 the server while four uploads come, start it again; what may be read meanwhile is read; SQLite",
        kept_artifacts.server_killed_amid_uploads,
        "kills",
        *(2, 20),
        "nobody-sweeps",
        *(4, ("nothing is left over",)),
    ),
    Drill(
        "The artifacts' disk full: 503 in words, nothing half, and all but artifacts goes on",
        "the disk of the artifacts is filled up while four uploads come, then freed; SQLite",
        kept_artifacts.artifacts_disk_full,
        "times",
        *(1, 6),
        "keeps-what-was-lost",
        *(2, ("acknowledged artifacts are whole",)),
    ),
    Drill(
        "The bucket away: 503 in words, nothing half, and all but artifacts goes on; recovery without a restart",
        "the bucket, by S3's protocol, answers 503 and takes no connection by turns while four uploads go there; "
        "SQLite",
        kept_artifacts.bucket_away,
        "absences",
        *(2, 6),
        "keeps-what-was-lost",
        *(2, ("acknowledged artifacts are whole",)),
    ),
]


@dataclass(frozen=True)
class Run:
    outcome: Outcome
    seconds: float


def run_drill(
    drill: Drill, size: int, nursery: Nursery, postgres: Callable[[], Any], seed: int = 1, sabotage: str | None = None
) -> Run:
    began = time.monotonic()
    with Place(nursery, postgres, seed, sabotage) as place:
        try:
            outcome = drill.run(place, size)
        except NotHere:
            raise
        except Exception as error:
            # A server that does not start or answers 500 ends a drill before its check.
            traceback.print_exc()
            outcome = Outcome(violations=[f"the drill broke off: {error!r}"])
    return Run(outcome, time.monotonic() - began)


def bites(drill: Drill, outcome: Outcome) -> bool:
    """Whether the sabotaged run has shown what it was to show."""
    return any(kind in drill.shows for kind in outcome.kinds())
