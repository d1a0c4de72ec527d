"""The error map as a table: HTTP status, code and message together decide."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbot_core.sources.envelope import Outcome, classify, read_envelope

TABLE = [
    (200, "0", "", Outcome.OK),
    (200, "0", "success", Outcome.OK),
    (200, "400", "Required String parameter 'exchange' is not present", Outcome.REFUSED),
    (400, "400", "Required String parameter 'exchange' is not present", Outcome.REFUSED),
    (200, "400", "The requested pair does not exist on the exchange.", Outcome.REFUSED),
    (200, "1", "The requested pair does not exist on the exchange.", Outcome.REFUSED),
    (200, "400", "The interval '2h' is not supported", Outcome.BAD_INTERVAL),
    (200, "400", "invalid API key", Outcome.KEY_REJECTED),
    (401, "401", "API key missing.", Outcome.KEY_REJECTED),
    (401, None, "", Outcome.KEY_REJECTED),
    (200, "401", "Upgrade plan", Outcome.NOT_IN_PLAN),
    (401, "401", "Upgrade plan", Outcome.NOT_IN_PLAN),
    (
        200,
        "403",
        "The requested interval is not available for your current API plan.",
        Outcome.NOT_IN_PLAN,
    ),
    (403, None, "", Outcome.NOT_IN_PLAN),
    (404, "404", "Endpoint not found", Outcome.REFUSED),
    (405, None, "", Outcome.REFUSED),
    (408, None, "", Outcome.TRANSIENT),
    (422, "422", "", Outcome.REFUSED),
    (429, None, "", Outcome.RATE_LIMITED),
    (200, "429", "", Outcome.RATE_LIMITED),
    (200, "1", "Too Many Requests", Outcome.RATE_LIMITED),
    (200, "500", "Server Error", Outcome.TRANSIENT),
    (200, "50001", "Server Error", Outcome.TRANSIENT),
    (502, None, "", Outcome.TRANSIENT),
    (503, "0", "", Outcome.TRANSIENT),
    (400, "0", "", Outcome.REFUSED),
    (200, "30001", "API key problem", Outcome.KEY_REJECTED),
    (200, "40001", "whatever", Outcome.REFUSED),
]


@pytest.mark.parametrize(("status", "code", "msg", "outcome"), TABLE)
def test_error_map(status, code, msg, outcome):
    assert classify(status, code, msg) is outcome


@pytest.mark.parametrize(
    ("body", "container", "outcome"),
    [
        (b'{"code":"0","data":[]}', list, Outcome.OK),
        (b'{"code":0,"data":[1]}', list, Outcome.OK),
        (b'{"code":"0","message":"ok","success":true,"data":{}}', dict, Outcome.OK),
        (b'{"code":"0","data":{}}', list, Outcome.MALFORMED),
        (b'{"code":"0"}', list, Outcome.MALFORMED),
        (b'{"code":"0","data":[1,', list, Outcome.MALFORMED),
        (b"", list, Outcome.MALFORMED),
        (b"[]", list, Outcome.MALFORMED),
        (b'{"data":[]}', list, Outcome.MALFORMED),
        (b'{"code":"401","msg":null}', list, Outcome.KEY_REJECTED),
        (b'{"code":401,"msg":"Upgrade plan"}', list, Outcome.NOT_IN_PLAN),
        (b'{"code":"400","message":"interval wrong"}', list, Outcome.BAD_INTERVAL),
        (b'{"code":"0","data":[' + b"9" * 5000 + b"]}", list, Outcome.MALFORMED),
    ],
)
def test_bodies(body, container, outcome):
    assert read_envelope(200, body, container).outcome is outcome


@given(st.integers(100, 599), st.binary(max_size=60))
def test_no_body_is_taken_for_data_unless_it_is(status, body):
    envelope = read_envelope(status, body, list)
    assert envelope.outcome is not Outcome.OK
    assert envelope.data is None
