"""What the lines that a command prints mean, in the words of many languages and through bars, loggers and colours."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo_worker.output_lines import LONGEST_QUOTE, NotUnderstood, Reported, ResultLine, quoted, read_line

NAN = [
    "nan",
    "-nan",
    "NaN",
    "NAN",
    "+nan",
    "nan(0x8000000000000)",
    "-nan(ind)",
    "nan(snan)",
    "1.#QNAN",
    "-1.#IND",
    "1.#IND00",
    "qNaN",
    "-NaN",
]
INF = ["inf", "Inf", "INF", "Infinity", "infinity", "+inf", "+Inf", "+Infinity", "1.#INF", "1.#INF00", "∞"]


@pytest.mark.parametrize("word", NAN)
@pytest.mark.parametrize("form", ['{"value": %s}', '{"value":%s}\r\n', '{"value": "%s"}', "{'value': np.float64(%s)}"])
def test_nan_in_any_spelling_is_nan(form, word):
    ((value,),) = [result.values for result in read_line(form % word) if isinstance(result, ResultLine)]
    assert math.isnan(value)


@pytest.mark.parametrize("word", INF)
@pytest.mark.parametrize("form", ['{"value": %s}', '{"values": ["%s"]}', "{'value': %s}"])
def test_infinity_in_any_spelling_is_infinite(form, word):
    assert read_line(form % word) == [ResultLine((math.inf,), {})]
    assert read_line(form % f"-{word.removeprefix('+')}") == [ResultLine((-math.inf,), {})]


REPORTS = [
    ('{"step": 3, "value": 0.8}', Reported(3, 0.8, {})),
    ('  {"step": 3.0, "value": 1, "metrics": {"loss": 2}}\n', Reported(3, 1.0, {"loss": 2})),
    ('{"step": 3, "value": Infinity}', Reported(3, math.inf, {})),
    ('{"step": "3", "value": "0.8"}', Reported(3, 0.8, {})),
    ('{"step": 3, "value": 0.8, "loss": 2, "phase": "train"}', Reported(3, 0.8, {"loss": 2, "phase": "train"})),
    ('{"step": 3, "values": [0.8]}', Reported(3, 0.8, {})),
    ("{'step': 3, 'value': 0.8}", Reported(3, 0.8, {})),
    ("{ step: 3, value: 0.8 }", Reported(3, 0.8, {})),
]
RESULTS = [
    ('{"value": 0.9}', 0.9, {}),
    ('{"value": 9e-1}', 0.9, {}),
    ('{"value": .9}', 0.9, {}),
    ('{"value": +0.9}', 0.9, {}),
    ('{"value": "0.9"}', 0.9, {}),
    ('{"value": " 0.9 "}', 0.9, {}),
    ('{"value": [0.9]}', 0.9, {}),
    ('{"values": 0.9}', 0.9, {}),
    ('{"value": 0.9, }', 0.9, {}),
    ('{"value": 0.9, "metrics": {"f1": 1}}', 0.9, {"f1": 1}),
    ('{"value": 0.9, "epoch": 3, "metrics": {"f1": 1}}', 0.9, {"epoch": 3, "f1": 1}),
    ('{"value": 0.9, "epoch": 3, "name": "α", "last": true}', 0.9, {"epoch": 3, "name": "α", "last": True}),
    ('{"value": 0.9, "none": null, "per_class": [1, 2], "at": {"x": 1}}', 0.9, {"per_class": [1, 2], "at": {"x": 1}}),
    ('{"value": 0.9, "metrics": 4}', 0.9, {"metrics": 4}),
    ('{"value": 0.9, "log": "' + "x" * 2000 + '"}', 0.9, {}),
    ('{"value": 0.9, "a": "x\\u0000y\\ud800"}', 0.9, {"a": "x\ufffdy\ufffd"}),
    ('{"value": 0.9, "huge": 1e400}', 0.9, {}),
    ("{'value': 0.9}", 0.9, {}),
    ("{'value': 0.9, 'ok': True, 'note': None, 'text': \"it's\"}", 0.9, {"ok": True, "text": "it's"}),
    ("{'value': np.float64(0.9), 'n': np.int64(3)}", 0.9, {"n": 3}),
    ("{'value': numpy.float32(0.9)}", 0.9, {}),
    ("{'value': array([0.9], dtype=float32)}", 0.9, {}),
    ("{'value': Array(0.9, dtype=float32, weak_type=True)}", 0.9, {}),
    ("{'value': tensor(0.9, device='cuda:0', grad_fn=<NllLossBackward0>)}", 0.9, {}),
    ("{'value': <tf.Tensor: shape=(), dtype=float32, numpy=0.9>}", 0.9, {}),
    ("{'value': Decimal('0.9'), 'path': PosixPath('/x'), 'of': <object at 0x7f>}", 0.9, {}),
    ("{value: 0.9}", 0.9, {}),
    ('10/10 [======] {"value": 0.9}', 0.9, {}),
    (' 50%|█████     | 5/10\r100%|██████████| 10/10 {"value": 0.9}', 0.9, {}),
    ('9/10\x08\x08\x08\x08\x08\x0810/10 {"value": 0.9}', 0.9, {}),
    ('INFO:root:{"value": 0.9}', 0.9, {}),
    ('2026-01-01 12:00:00,123 [rank0] {run 7} - INFO - {"value": 0.9}', 0.9, {}),
    ('\x1b[32mINFO\x1b[0m {"value": \x1b[1;36m0.9\x1b[0m}\x1b[0m', 0.9, {}),
    ('\x1b]0;title\x07{"value": 0.9}', 0.9, {}),
    ('\ufeff{"value": 0.9}\r\n', 0.9, {}),
    ('caf\ufffd {"value": 0.9}', 0.9, {}),
    ("".join(letter + "\0" for letter in '{"value": 0.9}'), 0.9, {}),
    ("'{\"value\": 0.9}'", 0.9, {}),
    ('{"value": 0.9};', 0.9, {}),
    ('{"best": {"value": 3}} {"value": 0.9}', 0.9, {}),
]


@pytest.mark.parametrize(("line", "report"), REPORTS)
def test_a_line_reports(line, report):
    assert read_line(line) == [report]


@pytest.mark.parametrize(("line", "value", "metrics"), RESULTS)
def test_a_line_is_the_result(line, value, metrics):
    assert read_line(line) == [ResultLine((value,), metrics)]


def test_several_directions_have_several_values():
    assert read_line('{"values": [0.9, "-inf"]}') == [ResultLine((0.9, -math.inf), {})]
    assert read_line("{'values': array([0.9, 1. ])}") == [ResultLine((0.9, 1.0), {})]


def test_objects_in_one_line_are_read_one_after_the_other():
    line = 'x {"step": 0, "value": 1}{"step": 1, "value": 2}, {"value": 3}\n'
    assert read_line(line) == [Reported(0, 1.0, {}), Reported(1, 2.0, {}), ResultLine((3.0,), {})]


@pytest.mark.parametrize("number", [np.float64(0.9), np.float32(0.5), 1e-300, -0.0, 10**12, 5e-324])
def test_what_python_prints_of_a_number_is_that_number(number):
    ((value,),) = [result.values for result in read_line(repr({"value": number})) if isinstance(result, ResultLine)]
    assert value == float(number)


NOT_UNDERSTOOD = [
    ('{"value": 0,9}', "no object that can be read"),
    ('{"value": oops}', "no object that can be read"),
    ('{"value": 0.9', "no object that can be read"),
    ('"value": 0.9}', "no object that can be read"),
    ('  "value": 0.9,', "no object that can be read"),
    ('"{\\"value\\": 0.9}"', "no object that can be read"),
    ("{:value=>0.9}", "no object that can be read"),
    ("{value=0.9}", "no object that can be read"),
    ('{"value": 0.9f}', "no object that can be read"),
    ('{"value": 0x1p-3}', "no object that can be read"),
    ('{"value": 1.2.3}', "no object that can be read"),
    ('{"value": ' + "[" * 100_000, "no object that can be read"),
    ('{"value": 0.9} done', "does not stand at the line's end"),
    ('{"value": true}', "value is no number"),
    ("{'value': False}", "value is no number"),
    ('{"value": null}', "value is no number"),
    ('{"value": "high"}', "value is no number"),
    ('{"value": "90%"}', "value is no number"),
    ('{"value": ""}', "value is no number"),
    ('{"value": {"a": 1}}', "value is no number"),
    ('{"value": [0.9, null]}', "value is no number"),
    ('{"values": []}', "values is no number"),
    ("{'value': Fraction(1, 2)}", "value is no number"),
    ("{'value': <object at 0x7f>}", "value is no number"),
    ('{"value": 1' + "0" * 400 + "}", "value is no number"),
    ('{"value": 1e400}', "value is no number"),
    ('{"value": 0.9, "values": [1]}', "it has value and values"),
    ('{"Value": 0.9}', 'its key is "Value"'),
    ('{"step": -3, "value": 1}', "step is no whole number"),
    ('{"step": 2.5, "value": 1}', "step is no whole number"),
    ('{"step": true, "value": 1}', "step is no whole number"),
    ('{"step": Infinity, "value": 1}', "step is no whole number"),
    ('{"step": nan, "value": 1}', "step is no whole number"),
    ('{"step": 1e300, "value": 1}', "step is no whole number"),
    ('{"step": null, "value": 1}', "step is no whole number"),
    ('{"step": 1, "values": [1, 2]}', "a report has one value"),
]


@pytest.mark.parametrize(("line", "why"), NOT_UNDERSTOOD, ids=lambda value: ascii(value)[:40])
def test_what_looks_like_a_result_and_is_none_is_said(line, why):
    (said,) = read_line(line)
    assert isinstance(said, NotUnderstood)
    assert why in said.why
    assert said.line == quoted(line)
    assert len(said.line) <= LONGEST_QUOTE + 1


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{}",
        "0.9",
        "[0.9]",
        "epoch 3: 0.8",
        "value: 0.9",
        "best value = 0.9",
        '{"step": 3}',
        '{"loss": 0.3, "epoch": 3.0}',
        "{'eval_loss': 0.3, 'eval_runtime': 1.2}",
        '{"config": {"lr": {"value": 0.1}}}',
        'config {"lr": {"value": 0.1}} loaded',
        "Monitor(value=3)",
        "{" * 5000,
    ],
)
def test_a_line_that_is_not_for_us_says_nothing(line):
    assert read_line(line) == []


def test_a_quote_is_printable_and_cut():
    assert quoted("\x1b[31m{\x07\udce9\t\0x") == "{\\x07\ufffd \ufffdx"
    assert quoted("x" * 999) == "x" * LONGEST_QUOTE + "…"


@pytest.mark.parametrize(
    "line",
    [
        '{"a":' * 200_000 + ' "value": 1',
        '{"value": "' + "\\" * 1_000_000,
        "{, value" * 100_000,
        '{"value": f(' + "(" * 1_000_000,
        '{"value": <tf.' + "a" * 1_000_000,
        "{" + " ," * 500_000 + '{"value": x}',
    ],
    ids=lambda line: line[:12],
)
def test_an_endless_line_costs_little(line):
    began = time.process_time()
    read_line(line)
    assert time.process_time() - began < 10  # a quadratic reader would take hours


@given(st.text())
def test_any_line_is_read_without_an_error(line):
    for each in (line, "{" + line, '{"value": ' + line, "{'value': 1, " + line + "}"):
        read_line(each)
