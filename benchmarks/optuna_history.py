"""Finished trials put into Optuna's storages as `Study.add_trials` would, in one transaction instead of one a trial."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from loads import SPACE
from optuna.distributions import FloatDistribution, distribution_to_json
from optuna.storages._rdb import models
from optuna.storages.journal import BaseJournalBackend

DISTRIBUTIONS = {key: FloatDistribution(*ends, log=True) for key, ends in SPACE.items()}
ROWS_AT_ONCE = 1000


def frozen(past: Mapping[str, Any]) -> optuna.trial.FrozenTrial:
    return optuna.create_trial(
        params=past["params"],
        distributions=dict(DISTRIBUTIONS),
        value=past["values"][0],
        intermediate_values={report["step"]: report["value"] for report in past["reports"]},
    )


def fill(storage: optuna.storages.RDBStorage, study: str, past: Iterable[Mapping[str, Any]]) -> None:
    """Add to an empty study the rows that `add_trials` would have written (tests/benchmarks compares them)."""
    study_id = storage.get_study_id_from_name(study)
    numbered = enumerate(past)
    with storage.engine.begin() as connection:
        while some := list(itertools.islice(numbered, ROWS_AT_ONCE)):
            _insert(connection, study_id, some)


def _insert(connection: sqlalchemy.Connection, study_id: int, some: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
    now = datetime.now(UTC).replace(tzinfo=None)
    trials: Any = models.TrialModel.__table__
    state = {"state": optuna.trial.TrialState.COMPLETE, "datetime_start": now, "datetime_complete": now}
    connection.execute(trials.insert(), [{"study_id": study_id, "number": number, **state} for number, _ in some])
    of_these = trials.c.number.between(some[0][0], some[-1][0])
    found = sqlalchemy.select(trials.c.number, trials.c.trial_id).where(trials.c.study_id == study_id, of_these)
    ids = {row.number: row.trial_id for row in connection.execute(found)}
    for table, rows in _parts([(ids[number], trial) for number, trial in some]).items():
        if rows:
            connection.execute(table.__table__.insert(), rows)


def _parts(some: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[Any, list[dict[str, Any]]]:
    """Rows by table; some: trials by their identity."""
    written = {key: distribution_to_json(distribution) for key, distribution in DISTRIBUTIONS.items()}
    finite = models.TrialValueModel.TrialValueType.FINITE
    finite_too = models.TrialIntermediateValueModel.TrialIntermediateValueType.FINITE
    return {
        models.TrialParamModel: [
            {"trial_id": id, "param_name": key, "param_value": value, "distribution_json": written[key]}
            for id, trial in some
            for key, value in trial["params"].items()
        ],
        models.TrialValueModel: [
            {"trial_id": id, "objective": 0, "value": trial["values"][0], "value_type": finite} for id, trial in some
        ],
        models.TrialIntermediateValueModel: [
            {
                "trial_id": id,
                "step": report["step"],
                "intermediate_value": report["value"],
                "intermediate_value_type": finite_too,
            }
            for id, trial in some
            for report in trial["reports"]
        ],
    }


class _Kept(BaseJournalBackend):
    """A journal in memory."""

    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        return self.logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self.logs += json.loads(json.dumps(logs))  # as they come back from a file


def journal_with(study: str, past: Iterable[Mapping[str, Any]], file: Path) -> None:
    """A journal file with one study, written at once."""
    kept = _Kept()
    made = optuna.create_study(storage=optuna.storages.JournalStorage(kept), study_name=study, direction="maximize")
    made.add_trials(map(frozen, past))
    optuna.storages.journal.JournalFileBackend(str(file)).append_logs(kept.logs)
