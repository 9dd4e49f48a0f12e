"""Lists: pages that miss nothing and repeat nothing, and tokens that hold for their own listing only."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest


def pages(api: Any, path: str, **query: Any) -> list[list[Any]]:
    found, token = [], None
    while True:
        answer = api.get(path, params={**query, **({"page_token": token} if token else {})})
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert set(body) == {"items", "next_page_token"}
        found.append(body["items"])
        token = body["next_page_token"]
        if token is None:
            return found


def numbers(found: list[list[Any]]) -> list[int]:
    return [trial["number"] for page in found for trial in page]


def with_values(api: Any, direction: str = "maximize") -> str:
    """Ties, infinities, nulls in every state, best last and first."""
    name: str = api.create(directions=[direction])
    values: list[Any] = [
        0.5,
        0.5,
        "Infinity",
        None,
        0.1,
        "-Infinity",
        0.5,
        None,
        0.30000000000000004,
        0.3,
        "Infinity",
        0,
    ]
    api.imported(
        name,
        *[
            {"params": {"x": 0.5}, "state": "FAIL"}
            if value is None
            else {"params": {"x": 0.5}, "state": "COMPLETE", "values": [value]}
            for value in values
        ],
        {"params": {"x": 0.5}, "state": "PRUNED"},
        {"params": {"x": 0.5}, "state": "PRUNED", "values": [0.4]},
    )
    api.ask(name)
    return name


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 3, 50])
@pytest.mark.parametrize(
    ("direction", "expected"),
    [
        ("maximize", [2, 10, 0, 1, 6, 13, 8, 9, 4, 11, 5, 3, 7, 12, 14]),
        ("minimize", [5, 11, 4, 9, 8, 13, 0, 1, 6, 2, 10, 3, 7, 12, 14]),
    ],
)
def test_by_value_the_best_come_first_and_those_without_one_last(
    either: Any, size: int, direction: str, expected: list[int]
) -> None:
    name = with_values(either, direction)
    found = pages(either, f"/v1/studies/{name}/trials", order_by="value", page_size=size)
    assert numbers(found) == expected
    assert all(len(page) == size for page in found[:-1])


def test_by_number_is_how_they_come(api: Any) -> None:
    name = with_values(api)
    assert numbers(pages(api, f"/v1/studies/{name}/trials", page_size=4)) == list(range(15))
    assert numbers(pages(api, f"/v1/studies/{name}/trials", order_by="number")) == list(range(15))


def test_a_state_chooses(api: Any) -> None:
    name = with_values(api)
    path = f"/v1/studies/{name}/trials"
    assert numbers(pages(api, path, state="FAIL", page_size=1)) == [3, 7]
    assert numbers(pages(api, path, state="RUNNING")) == [14]
    assert numbers(pages(api, path, state="WAITING")) == []
    assert numbers(pages(api, path, state="PRUNED", order_by="value", page_size=1)) == [13, 12]
    for page in pages(api, path, state="COMPLETE", page_size=3):
        assert all(trial["state"] == "COMPLETE" for trial in page)


def test_each_item_is_the_trial_as_it_reads(api: Any) -> None:
    name = with_values(api)
    (page,) = pages(api, f"/v1/studies/{name}/trials")
    assert page == [api.trial(name, number) for number in range(15)]


def test_what_comes_while_paging_does_not_shift_the_pages(api: Any) -> None:
    name = with_values(api)
    path = f"/v1/studies/{name}/trials?order_by=value&page_size=3"
    first = api.get(path).json()
    api.imported(name, {"params": {"x": 0.5}, "state": "COMPLETE", "values": ["Infinity"]})
    second = api.get(path + "&page_token=" + first["next_page_token"]).json()
    assert numbers([first["items"], second["items"]]) == [2, 10, 0, 1, 6, 13]


def test_fifty_is_the_size_of_a_page(api: Any) -> None:
    name = api.create()
    api.ask(name, count=60)
    assert [len(page) for page in pages(api, f"/v1/studies/{name}/trials")] == [50, 10]
    assert [len(page) for page in pages(api, f"/v1/studies/{name}/trials", page_size=1000)] == [60]
    assert [len(page) for page in pages(api, f"/v1/studies/{name}/trials", page_size=30)] == [30, 30]


LISTINGS = ("/v1/studies", "/v1/workers", "/v1/studies/{}/trials")


@pytest.mark.parametrize("listing", LISTINGS)
@pytest.mark.parametrize("size", ["0", "-1", "1001", "1.5", "many", "", "99999999999999999999"])
def test_a_page_has_from_1_to_1000_items(api: Any, listing: str, size: str) -> None:
    answer = api.get(listing.format(api.create()), params={"page_size": size})
    assert api.pointers(answer) == ["/page_size"]


def forged(*content: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")


@pytest.mark.parametrize("listing", LISTINGS)
@pytest.mark.parametrize("token", ["x", "%", "é", "\u0000", "a" * 3000, "e30", "W10", "bnVsbA", "//8", "AAAA", "=" * 8])
def test_what_is_no_token_is_refused(either: Any, listing: str, token: str) -> None:
    answer = either.get(listing.format(either.create()), params={"page_token": token})
    assert either.pointers(answer) == ["/page_token"]


@pytest.mark.parametrize(
    "key", [10**30, -(10**30), "abc", [None, 10**30], ["abc", 1], [[1], 1], [True, True], {}, "\u0000", ["1e999", 1]]
)
def test_a_forged_token_is_answered_in_the_contracts_words(either: Any, key: Any) -> None:
    name = either.create()
    for listing, made_for in (
        ("/v1/studies", "studies "),
        ("/v1/workers", "workers"),
        (f"/v1/studies/{name}/trials", f"trials {name}  number"),
        (f"/v1/studies/{name}/trials?order_by=value", f"trials {name}  value"),
    ):
        query = "&" if "?" in listing else "?"
        answer = either.get(f"{listing}{query}page_token={forged(made_for, key)}")
        assert answer.status_code in (200, 422)


def test_a_token_holds_for_its_own_listing_only(api: Any) -> None:
    name, other = api.create(), api.create()
    for study in (name, other):
        api.ask(study, count=3)
    path = f"/v1/studies/{name}/trials"
    token = api.get(path, params={"page_size": 1}).json()["next_page_token"]
    assert api.get(path, params={"page_token": token}).status_code == 200
    for elsewhere, query in (
        (path, {"order_by": "value"}),
        (path, {"state": "RUNNING"}),
        (f"/v1/studies/{other}/trials", {}),
        ("/v1/studies", {}),
        ("/v1/workers", {}),
    ):
        assert api.pointers(api.get(elsewhere, params={**query, "page_token": token})) == ["/page_token"]


@pytest.mark.parametrize(
    ("query", "pointer"),
    [("state=DONE", "/state"), ("state=complete", "/state"), ("order_by=seed", "/order_by"), ("state=%00", "/state")],
)
def test_an_unknown_state_or_order_is_refused(api: Any, query: str, pointer: str) -> None:
    assert api.pointers(api.get(f"/v1/studies/{api.create()}/trials?{query}")) == [pointer]


def test_several_directions_have_no_order_by_value(api: Any) -> None:
    name = api.create(directions=["maximize", "minimize"])
    assert api.pointers(api.get(f"/v1/studies/{name}/trials?order_by=value")) == ["/order_by"]
    assert api.get(f"/v1/studies/{name}/trials?order_by=number").status_code == 200


def test_studies_are_listed_in_pages_and_by_state(own: Any) -> None:
    names = [own.create() for _ in range(7)]
    own.verb(names[2], "pause")
    own.verb(names[4], "cancel")
    found = pages(own, "/v1/studies", page_size=3)
    assert [study["name"] for page in found for study in page] == names
    assert [len(page) for page in found] == [3, 3, 1]
    assert [study["name"] for page in pages(own, "/v1/studies", state="PAUSED") for study in page] == [names[2]]
    assert pages(own, "/v1/studies", state="STOPPED") == [[]]
    assert own.pointers(own.get("/v1/studies?state=DONE")) == ["/state"]
    assert found[0][0] == own.study(names[0])


@pytest.mark.slow
def test_workers_are_listed_with_what_they_hold(own: Any) -> None:
    name = own.create()
    assert own.get("/v1/workers").json() == {"items": [], "next_page_token": None}
    for worker, count in (("c", 1), ("a", 2), ("b", 3)):
        own.ask(name, worker_id=worker, count=count)
    own.ask(name, worker_id="d", count=1)
    own.tell(name, 6, 0.5)
    found = pages(own, "/v1/workers", page_size=3)
    assert {worker["worker_id"]: worker["trials"] for page in found for worker in page} == {
        "a": 2,
        "b": 3,
        "c": 1,
        "d": 0,
    }
    assert set(found[0][0]) == {"worker_id", "last_seen_at", "trials", "draining", "labels", "told", "failed"}
    seen = found[0][0]["last_seen_at"]
    own.clock.turn(30)
    own.ask(name, worker_id="a")
    assert pages(own, "/v1/workers")[0][0]["last_seen_at"] > seen


def test_a_worker_that_reports_is_seen(own: Any) -> None:
    name = own.create()
    own.ask(name, worker_id="a")
    seen = pages(own, "/v1/workers")[0][0]["last_seen_at"]
    own.clock.turn(30)
    own.work(name, 0, "heartbeat")
    assert pages(own, "/v1/workers")[0][0]["last_seen_at"] > seen


@pytest.mark.parametrize("worker", ["never-seen", "a" * 300, "%00", "%C3%A9", "a%0A", "%ff", ""])
def test_a_worker_never_seen_cannot_drain(either: Any, worker: str) -> None:
    assert either.post(f"/v1/workers/{worker}:drain").status_code == 404


@pytest.mark.parametrize("worker", ["a/b", "a:b", "a b", "100%", "?#&", "..", "a:drain"])
def test_a_worker_of_any_printable_name_can_drain(api: Any, worker: str) -> None:
    from urllib.parse import quote

    api.ask(api.create(), worker_id=worker)
    answer = api.post(f"/v1/workers/{quote(worker, safe='')}:drain")
    assert (answer.status_code, answer.json()["worker_id"]) == (200, worker)
