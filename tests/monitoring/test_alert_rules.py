"""deploy/monitoring/alerts.yml: each alert is provoked once, and none rings on a server at ease."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient

from hpo_service.api.app import create_app
from hpo_service.settings import Settings

ALERTS = Path(__file__).parents[2] / "deploy" / "monitoring" / "alerts.yml"

# What provokes each, a sample a minute: series and its values in promtool's words, and when it is to be firing.
BUCKETS = "{job='hpo',instance='a',le='%s'}"
PROVOKED: dict[str, tuple[dict[str, str], str]] = {
    "HpoServerDown": ({"up{job='hpo',instance='a'}": "0x10"}, "5m"),
    "HpoDatabaseAway": ({"hpo_database_reachable{instance='a'}": "1 0x10"}, "5m"),
    "HpoServerErrors": ({"hpo_requests_total{instance='a',status='503'}": "0+5x20"}, "15m"),
    "HpoLeasesNotLookedAfter": ({"hpo_reaper_lag_seconds{instance='a'}": "45x10"}, "5m"),
    "HpoTrialsWait": ({"hpo_oldest_waiting_trial_seconds{instance='a'}": "700x10"}, "5m"),
    "HpoLeasesLapse": ({"hpo_leases_expired_total{instance='a'}": "0+2x30"}, "20m"),
    "HpoTrialsFail": (
        {"hpo_trials{instance='a',state='FAIL'}": "0+1x60", "hpo_trials{instance='a',state='COMPLETE'}": "7x60"},
        "40m",
    ),
    "HpoNothingFinishes": (
        {
            "hpo_trials{instance='a',state='RUNNING'}": "3x130",
            "hpo_trials{instance='a',state='COMPLETE'}": "7x130",
            "hpo_trials{instance='a',state='PRUNED'}": "0x130",
        },
        "2h",
    ),
    "HpoDatabaseSlow": (
        {f"hpo_commit_seconds_bucket{BUCKETS % le}": f"0+{n}x30" for le, n in (("0.1", 1), ("1", 9), ("+Inf", 9))},
        "20m",
    ),
    "HpoServerHeldUp": (
        {
            f"hpo_event_loop_lag_seconds_bucket{BUCKETS % le}": f"0+{n}x30"
            for le, n in (("1", 1), ("5", 9), ("+Inf", 9))
        },
        "20m",
    ),
    "HpoConnectionsRefused": ({"hpo_connections_refused_total{instance='a',status='503'}": "0+1x20"}, "15m"),
    "HpoWriteAheadLogGrows": ({"hpo_database_wal_bytes{instance='a'}": "300000000x20"}, "15m"),
    "HpoDiskNearlyFull": ({"hpo_database_disk_free_bytes{instance='a'}": "100000000x20"}, "15m"),
}
AT_EASE = {
    "up{job='hpo',instance='a'}": "1x130",
    "hpo_database_reachable{instance='a'}": "1x130",
    "hpo_requests_total{instance='a',status='200'}": "0+100x130",
    "hpo_reaper_lag_seconds{instance='a'}": "1x130",
    "hpo_oldest_waiting_trial_seconds{instance='a'}": "5x130",
    "hpo_leases_expired_total{instance='a'}": "0x130",
    "hpo_trials{instance='a',state='FAIL'}": "0x130",
    "hpo_trials{instance='a',state='RUNNING'}": "3x130",
    "hpo_trials{instance='a',state='COMPLETE'}": "0+1x130",
    "hpo_trials{instance='a',state='PRUNED'}": "0x130",
    **{f"hpo_commit_seconds_bucket{BUCKETS % le}": "0+9x130" for le in ("0.1", "1", "+Inf")},
    **{f"hpo_event_loop_lag_seconds_bucket{BUCKETS % le}": "0+9x130" for le in ("0.1", "1", "+Inf")},
    "hpo_connections_refused_total{instance='a',status='408'}": "0+1x130",
    "hpo_database_wal_bytes{instance='a'}": "4000000x130",
    "hpo_database_disk_free_bytes{instance='a'}": "90000000000x130",
}


def rules() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
    return found


def test_every_alert_speaks_of_metrics_that_a_server_has(tmp_path: Path) -> None:
    with TestClient(create_app(Settings(database_url=f"sqlite:///{tmp_path}/hpo.db"), with_keys=False)) as client:
        scraped = client.get("/metrics").text
    named = {name for rule in rules() for name in re.findall(r"hpo_[a-z_]+", rule["expr"])}
    declared = set(re.findall(r"^# TYPE (hpo_\w+)", scraped, re.M))
    assert {name.removesuffix("_bucket") for name in named} <= declared
    assert {rule["alert"] for rule in rules()} == set(PROVOKED)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool here (apt install prometheus)")
def test_each_alert_is_provoked_and_none_rings_on_a_server_at_ease(tmp_path: Path) -> None:
    tests = [
        {"interval": "1m", "input_series": _series(series), "alert_rule_test": [_fires(alert, at)]}
        for alert, (series, at) in PROVOKED.items()
    ]
    silent = [{"eval_time": "90m", "alertname": rule["alert"], "exp_alerts": []} for rule in rules()]
    tests.append({"interval": "1m", "input_series": _series(AT_EASE), "alert_rule_test": silent})
    (tmp_path / "tests.yml").write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "tests": tests}))
    done = subprocess.run(["promtool", "test", "rules", "tests.yml"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def _series(given: dict[str, str]) -> list[dict[str, str]]:
    return [{"series": name, "values": values} for name, values in given.items()]


def _fires(alert: str, at: str) -> dict[str, Any]:
    rule = next(rule for rule in rules() if rule["alert"] == alert)
    by = {"HpoServerDown": {"job": "hpo", "instance": "a"}}
    whole = ("HpoTrialsWait", "HpoLeasesLapse", "HpoTrialsFail", "HpoNothingFinishes")
    labels = {**({} if alert in whole else {"instance": "a"}), **by.get(alert, {}), **rule["labels"]}
    expected = {"exp_labels": labels, "exp_annotations": rule["annotations"]}
    return {"eval_time": at, "alertname": alert, "exp_alerts": [expected]}
