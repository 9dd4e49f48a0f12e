"""What the client sends, and what the answers become."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hpo_service import client as sdk
from hpo_service.client import Client, Forbidden, Refused, Unauthenticated, UnexpectedAnswer, write_json
from hpo_service.domain import errors
from hpo_service.domain.errors import Fault, Invalid, Unavailable
from hpo_service.domain.key import draw

CODES = {
    "not_found": (404, errors.NotFound),
    "study_exists": (409, errors.StudyExists),
    "study_state": (409, errors.StudyStateConflict),
    "study_sealed": (409, errors.StudySealed),
    "lease_lost": (409, errors.LeaseLost),
    "trial_finished": (409, errors.TrialFinished),
    "result_conflict": (409, errors.ResultConflict),
    "precondition_failed": (412, errors.PreconditionFailed),
    "unauthenticated": (401, Unauthenticated),
    "forbidden": (403, Forbidden),
    "too_large": (413, Refused),
    "method_not_allowed": (405, Refused),
}


@pytest.mark.parametrize("code", CODES)
def test_every_code_of_the_contract_is_an_error_of_its_own_name(client, answering, code):
    status, error = CODES[code]
    answering(answering.problem(status, code))
    with pytest.raises(error) as caught:
        client.study("mine")
    assert caught.value.code == code
    assert caught.value.detail == f"because of {code}"


def test_broken_rules_keep_their_places(client, answering):
    faults = [{"pointer": "/search_space/lr/low", "detail": "low is 0"}, {"pointer": "/x", "detail": "unknown"}]
    answering(answering.answer(422, {"code": "invalid", "detail": "2 faults", "errors": faults}))
    with pytest.raises(Invalid) as caught:
        client.create_study("mine", search_space={"lr": sdk.log_uniform(1e-5, 1e-1)})
    assert caught.value.faults == (Fault("/search_space/lr/low", "low is 0"), Fault("/x", "unknown"))


def test_something_else_that_answers_is_named(client, answering):
    answering(answering.answer(200, b"<html>welcome</html>"))
    with pytest.raises(UnexpectedAnswer, match="right server"):
        client.version()
    answering(answering.answer(404, b"<html>nothing here</html>"))
    with pytest.raises(UnexpectedAnswer, match="right server"):
        client.version()


def test_a_gateway_without_a_server_behind_it_is_unavailable(script, answering):
    answering(answering.answer(502, b"<html>bad gateway</html>"))
    with pytest.raises(Unavailable, match="502"):
        Client(script.url, retries=sdk.NEVER).version()


def test_a_search_space_is_sent_in_the_form_of_the_contract(client, script, answering):
    answering(answering.answer(201, {"name": "mine"}))
    study = client.create_study(
        "mine", search_space={"lr": sdk.log_uniform(1e-5, 1e-1), "n": sdk.integer(1, 8)}, limits={"trials": 3}
    )
    assert study.name == "mine"
    body = script.requests[0].body
    assert body["search_space"]["lr"] == {
        "type": "float",
        "low": 1e-5,
        "high": 0.1,
        "log": True,
        "step": None,
        "when": None,
    }
    assert body["limits"] == {"trials": 3}


def test_the_token_goes_with_every_call_and_comes_from_the_environment(script, answering, monkeypatch):
    answering(answering.answer(body={}))
    key = draw()
    monkeypatch.setenv("HPO_TOKEN", key + "\n")
    monkeypatch.setenv("HPO_SERVER", script.url + "/")
    with Client() as client:
        client.version()
    assert script.requests[0].headers["Authorization"] == f"Bearer {key}"
    assert script.requests[0].path == "/version"


def test_the_token_may_be_in_a_file(script, answering, monkeypatch, tmp_path):
    answering(answering.answer(body={}))
    key = draw()
    (tmp_path / "key").write_text(key + "\n")
    monkeypatch.delenv("HPO_TOKEN", raising=False)
    monkeypatch.setenv("HPO_TOKEN_FILE", str(tmp_path / "key"))
    with Client(script.url) as client:
        client.version()
    assert script.requests[0].headers["Authorization"] == f"Bearer {key}"


def test_a_token_file_without_a_key_is_refused_with_its_name(monkeypatch, tmp_path):
    monkeypatch.delenv("HPO_TOKEN", raising=False)
    for content in (None, ""):
        if content is not None:
            (tmp_path / "key").write_text(content)
        monkeypatch.setenv("HPO_TOKEN_FILE", str(tmp_path / "key"))
        with pytest.raises(Unauthenticated, match=f"HPO_TOKEN_FILE names {tmp_path}/key"):
            Client()


def test_a_typo_in_a_token_is_told_without_asking_anybody_and_without_repeating_it():
    key = draw()
    typo = key[:10] + ("a" if key[10] != "a" else "b") + key[11:]
    with pytest.raises(Unauthenticated, match="checksum") as refused:
        Client("http://127.0.0.1:9", typo)
    assert typo[4:] not in str(refused.value)


def test_a_server_that_is_no_url_is_refused_at_once():
    with pytest.raises(Invalid, match="not a URL"):
        Client("127.0.0.1:8000")


def test_a_token_is_not_carried_to_another_place(client, script, answering):
    answering(answering.answer(307, {}, {"Location": script.url + "/elsewhere"}))
    with pytest.raises(UnexpectedAnswer):
        client.version()
    assert len(script.requests) == 1


def test_lists_are_read_page_by_page(client, script, answering):
    answering(
        answering.answer(body={"items": [{"number": 0}, {"number": 1}], "next_page_token": "a b"}),
        answering.answer(body={"items": [{"number": 2}], "next_page_token": None}),
    )
    trials = client.trials("mine", state="COMPLETE", page_size=2)
    assert [trial["number"] for trial in trials] == [0, 1, 2]
    assert script.requests[0].path == "/v1/studies/mine/trials?state=COMPLETE&page_size=2"
    assert script.requests[1].path.endswith("&page_token=a+b")


def test_names_cannot_reach_other_routes(client, script, answering):
    answering(answering.answer(body={}))
    client.study("../../version?x=1")
    assert script.requests[0].path == "/v1/studies/..%2F..%2Fversion%3Fx%3D1"


def test_a_value_that_is_no_number_in_json_is_a_string():
    written = json.loads(write_json({"a": float("nan"), "b": [float("-inf")], "c": np.float32(0.5), "d": np.arange(2)}))
    assert written == {"a": "NaN", "b": ["-Infinity"], "c": 0.5, "d": [0, 1]}


def test_an_unknown_object_is_refused_by_name():
    with pytest.raises(TypeError, match=r"^<class 'object'> has no form in JSON"):
        write_json({"a": object})


def test_an_export_is_read_piece_by_piece(client, script, answering):
    answering(answering.answer(200, b"number,state\n0,COMPLETE\n"))
    assert b"".join(client.export("mine", "csv")) == b"number,state\n0,COMPLETE\n"
    assert script.requests[0].path == "/v1/studies/mine/trials:export?format=csv"


def test_a_batch_with_refusals_is_an_answer(client, answering):
    results = [{"status": 200, "body": {}}, {"status": 409, "body": {"code": "lease_lost", "detail": "gone"}}]
    answering(answering.answer(207, {"results": results}))
    assert client.batch([]) == results


def test_the_message_of_an_error_names_the_request_that_the_servers_log_knows(client, answering):
    answering(answering.problem(409, "study_state", x_request_id="9f86d081-1a"))
    with pytest.raises(errors.StudyStateConflict) as caught:
        client.study("mine")
    assert caught.value.request_id == "9f86d081-1a"
    assert str(caught.value) == "because of study_state (request 9f86d081-1a)"
    assert caught.value.detail == "because of study_state"


def test_without_a_request_id_the_message_is_the_detail(client, answering):
    answering(answering.problem(409, "study_state"))
    with pytest.raises(errors.StudyStateConflict) as caught:
        client.study("mine")
    assert (caught.value.request_id, str(caught.value)) == (None, "because of study_state")
