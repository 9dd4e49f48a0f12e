"""deploy/monitoring/dashboard.json: of metrics that there are, and of all that the alerts are about."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy" / "monitoring" / "dashboard.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
RULES = yaml.safe_load((ROOT / "deploy" / "monitoring" / "alerts.yml").read_text())["groups"][0]["rules"]
TOLD = dict(re.findall(r"^\| `(hpo_\w+)` \| (\w+) \|", (ROOT / "docs" / "operating.md").read_text(), re.MULTILINE))
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel.get("targets", ())]


def metrics_in(*expressions: str) -> set[str]:
    """A histogram's series count as the histogram."""
    named = {name for each in expressions for name in re.findall(r"\bhpo_\w+", each)}
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in named}


def test_every_metric_is_one_that_the_page_tells_of_and_a_test_compares_with_the_server() -> None:
    others = [each["expr"] for each in DASHBOARD["annotations"]["list"]]
    others += [each["query"]["query"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query"]
    assert len(EXPRESSIONS) > 20
    assert metrics_in(*EXPRESSIONS, *others) <= set(TOLD)


def test_only_counters_have_a_rate_and_only_histograms_buckets() -> None:
    for name in re.findall(r"rate\((\w+)", " ".join(EXPRESSIONS)):
        kind = TOLD[re.sub(r"_(bucket|sum|count)$", "", name)]
        assert kind == ("histogram" if name.endswith(("_bucket", "_sum", "_count")) else "counter"), name


def test_whatever_an_alert_is_about_has_its_graph_which_names_the_alert() -> None:
    assert metrics_in(*(rule["expr"] for rule in RULES)) <= metrics_in(*EXPRESSIONS)
    told = " ".join(panel.get("description", "") for panel in PANELS)
    assert {rule["alert"] for rule in RULES} == set(re.findall(r"\bHpo\w+", told))


def test_it_can_be_provisioned() -> None:
    """Of no data source of somebody's own, and with nothing that an import would ask for."""
    assert DASHBOARD["uid"] == "hpo-service"
    assert not {"id", "__inputs", "__requires"} & DASHBOARD.keys()
    assert {name for each in PANELS if "targets" in each for name in [each["datasource"]["uid"]]} == {"${datasource}"}
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    for panel in PANELS:
        targets = [target["refId"] for target in panel.get("targets", ())]
        assert len(set(targets)) == len(targets)


def test_no_panel_lies_on_another_or_beyond_the_edge() -> None:
    def cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        return set(itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])))

    covered = [cell for panel in PANELS for cell in cells(panel)]
    assert len(set(covered)) == len(covered)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool here (apt install prometheus)")
def test_prometheus_reads_every_expression(tmp_path: Path) -> None:
    expressions = [each.replace("$__rate_interval", "5m") for each in EXPRESSIONS]
    rules = [{"record": f"panel:{number}", "expr": each} for number, each in enumerate(expressions)]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", "rules.yml"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool here (apt install prometheus)")
def test_prometheus_takes_the_configuration_on_the_page(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "operating.md").read_text()
    (shown,) = [block for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "scrape_configs" in block]
    (tmp_path / "hpo-read.key").write_text("key")
    (tmp_path / "prometheus.yml").write_text(shown.replace("/etc/prometheus", str(tmp_path)))
    shutil.copy(ROOT / "deploy" / "monitoring" / "alerts.yml", tmp_path)
    done = subprocess.run(
        ["promtool", "check", "config", "prometheus.yml"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert yaml.safe_load(shown)["scrape_configs"][0]["job_name"] == "hpo"  # as the rules and graphs have it
