"""A study file that breaks a rule is refused with the line, the pointer, the value, the rule and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpo_service.cli.study_file import LARGEST_FILE, StudyFileRefused, read_study_file
from hpo_service.domain.errors import Fault
from hpo_service.domain.search_space import FloatParameter

STUDIES = Path(__file__).parents[2] / "studies"

GOOD = """\
name = "mine"
sampler = { name = "random" }

[search_space]
learning_rate = { type = "float", low = 1e-6, high = 1e-2, log = true }
optimizer = { type = "categorical", choices = [
    "sgd",
    "momentum",
] }

[objective]
kind = "neural_network"
epochs = 5

[limits]
trials = 10
"""

# what is replaced, by what -> line, pointer, value, words of the rule, words of the hint
REFUSALS = {
    "an unknown key": (
        'sampler = { name = "random" }',
        'samplr = { name = "random" }',
        (2, "/samplr", '{"name": "random"}', "unknown key", "did you mean sampler?"),
    ),
    "an unknown key far from any other": (
        "epochs = 5\n\n[limits]",
        "epochs = 5\n\n[limits]\nzzz = 1",
        (16, "/limits/zzz", "1", "known here: trials, running, seconds, target, attempts", "leave it out"),
    ),
    "a misspelt key of a parameter": (
        "log = true",
        "logg = true",
        (5, "/search_space/learning_rate/logg", "true", "unknown key", "did you mean log?"),
    ),
    "a range upside down": (
        "low = 1e-6, high = 1e-2",
        "low = 1e-2, high = 1e-6",
        (5, "/search_space/learning_rate/high", "1e-06", "high (1e-06) is below low (0.01)", "swap low and high"),
    ),
    "a logarithmic range that touches 0": (
        "low = 1e-6",
        "low = 0",
        (5, "/search_space/learning_rate/low", "0", "must begin above 0", "small positive value"),
    ),
    "an unknown sampler": (
        '"random"',
        '"randon"',
        (2, "/sampler/name", '"randon"', "must be one of auto, random, tpe", 'did you mean "random"?'),
    ),
    "an unknown type": (
        'type = "float"',
        'type = "flot"',
        (5, "/search_space/learning_rate/type", '"flot"', "must be one of float, int, categorical", '"float"'),
    ),
    "no type": (
        'type = "float", ',
        "",
        (5, "/search_space/learning_rate/type", None, "is required", 'add: type = "float"'),
    ),
    "no low": ("low = 1e-6, ", "", (5, "/search_space/learning_rate/low", None, "is required", "add: low = ...")),
    "no name": ('name = "mine"', "", (None, "/name", None, "is required", "add: name = ...")),
    "a name with capitals": (
        '"mine"',
        '"My Study!"',
        (1, "/name", '"My Study!"', "1 to 63 lower-case letters", 'for example "my-study"'),
    ),
    "a parameter that the objective does not have": (
        "learning_rate =",
        "learning_rat =",
        (5, "/search_space/learning_rat", None, "is not a setting of neural_network", "did you mean 'learning_rate'?"),
    ),
    "a setting that the objective does not have": (
        "epochs = 5",
        "epoch = 5",
        (13, "/objective/epoch", "5", "is not a setting of neural_network", "did you mean 'epochs'?"),
    ),
    "a choice that the objective does not take, in a list over several lines": (
        '"momentum",',
        '"momentun",',
        (8, "/search_space/optimizer/choices/1", '"momentun"', "is not one of", "did you mean 'momentum'?"),
    ),
    "a setting in both places": (
        "epochs = 5",
        "learning_rate = 0.1",
        (5, "/search_space/learning_rate", None, "is fixed in the objective (0.1) as well", "keep one"),
    ),
    "a number in quotes": (
        "trials = 10",
        'trials = "10"',
        (16, "/limits/trials", '"10"', "must be an integer", "write it without quotes"),
    ),
    "a number out of range": ("trials = 10", "attempts = 0", (16, "/limits/attempts", "0", "must be at least 1", "")),
    "a number that is none": ("trials = 10", "seconds = nan", (16, "/limits/seconds", "NaN", "finite number", "")),
    "a section that is no table": (
        'sampler = { name = "random" }',
        "sampler = 3",
        (2, "/sampler", "3", "must be a table of keys and values", ""),
    ),
    "a kind of figure that there is not": (
        "trials = 10",
        'trials = 10\n[metadata.figure]\nkind = "grids"',
        (18, "/metadata/figure/kind", '"grids"', "must be one of best, settings, grid", 'did you mean "grid"?'),
    ),
    "a grid without its lines": (
        "trials = 10",
        'trials = 10\n[metadata.figure]\nkind = "grid"\npanels = "optimizer"',
        (17, "/metadata/figure/lines", None, "is required by kind grid", ""),
    ),
    "panels of a range": (
        "trials = 10",
        'trials = 10\n[metadata.figure]\nkind = "grid"\npanels = "learning_rate"\nlines = "optimizer"',
        (19, "/metadata/figure/panels", '"learning_rate"', "must be a categorical parameter", ""),
    ),
    "rounds of a study that has none": (
        "trials = 10",
        'trials = 10\n[metadata.figure]\nkind = "rounds"',
        (18, "/metadata/figure/kind", '"rounds"', "needs [narrowing]", ""),
    ),
    "an ensemble of one": (
        "trials = 10",
        'trials = 10\n[metadata.figure]\nkind = "ensemble"',
        (18, "/metadata/figure/kind", '"ensemble"', "needs [metadata.test] with ensemble = 2 or more", ""),
    ),
    "more networks than a test takes": (
        "trials = 10",
        "trials = 10\n[metadata.test]\nensemble = 101",
        (18, "/metadata/test/ensemble", "101", "must be at most 100", ""),
    ),
    "a winner confirmed with one seed": (
        "trials = 10",
        "trials = 10\n[metadata.confirm]\ntop = 3\nseeds = 1",
        (19, "/metadata/confirm/seeds", "1", "must be at least 2", ""),
    ),
    "a misspelt key of the confirmation": (
        "trials = 10",
        "trials = 10\n[metadata.confirm]\ntops = 3",
        (18, "/metadata/confirm/tops", "3", "unknown key; known here: top, seeds", "did you mean top?"),
    ),
    "a measure that nothing measures": (
        "trials = 10",
        'trials = 10\n[metadata.figure]\nkind = "best"\nexpected = [\n  { measure = "acuracy", reference = [1] },\n]',
        (20, "/metadata/figure/expected/0/measure", '"acuracy"', "must be one of value, validation_accuracy", ""),
    ),
    "an expectation of a choice that is not there": (
        "trials = 10",
        'trials = 10\n[metadata.figure]\nkind = "best"\n'
        'expected = [{ measure = "value", of = { optimizer = "adam" }, reference = [1] }]',
        (19, "/metadata/figure/expected/0/of/optimizer", '"adam"', "one of the choices sgd, momentum", ""),
    ),
    "a reference whose mean lies outside its range": (
        "trials = 10",
        'trials = 10\n[metadata.figure]\nkind = "best"\nexpected = [{ measure = "value", reference = [3, 1, 2] }]',
        (19, "/metadata/figure/expected/0/reference", "[3, 1, 2]", "[mean, lowest, highest], in this order", ""),
    ),
    "a count without a threshold": (
        "trials = 10",
        'trials = 10\n[metadata.figure]\nkind = "best"\n'
        'expected = [{ measure = "value", take = "below", reference = [3] }]',
        (19, "/metadata/figure/expected/0/threshold", None, "belongs to take = below, above, share_above", ""),
    ),
    "an unknown key of an expectation": (
        "trials = 10",
        'trials = 10\n[metadata.figure]\nkind = "best"\n'
        'expected = [{ measure = "value", tale = "mean", reference = [3] }]',
        (
            19,
            "/metadata/figure/expected/0/tale",
            '"mean"',
            "unknown key; known here: measure, of",
            "did you mean take?",
        ),
    ),
    "more trials than the rounds have": (
        "[limits]\ntrials = 10",
        "[narrowing]\nrounds = 2\ntrials_per_round = 4\n[limits]\ntrials = 10",
        (19, "/limits/trials", "10", "may not pass rounds × trials_per_round (2 × 4 = 8)", ""),
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_each_fault_is_shown_with_its_line_pointer_value_rule_and_what_to_do(case, write):
    before, after, (line, pointer, value, rule, hint) = REFUSALS[case]
    assert before in GOOD
    path = write("study.toml", GOOD.replace(before, after, 1))

    with pytest.raises(StudyFileRefused) as refused:
        read_study_file(path).spec()

    message = str(refused.value)
    assert message.startswith(f"{path}: 1 fault\n"), message
    where = "the file" if line is None else f"line {line}"
    assert f"  {where}: {pointer}" in message
    assert value is None or f"{pointer} = {value}\n" in message
    assert rule in message
    assert hint in message


LINE = 'learning_rate = { type = "float", low = 1e-6, high = 1e-2, log = true }'


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ('{ type = "uniform", low = 0.0, high = 1.0 }', '{ type = "float", low = 0.0, high = 1.0 }'),
        ('{ type = "loguniform", min = 1e-5, max = 0.1 }', '{ type = "float", low = 1e-05, high = 0.1, log = true }'),
        ('{ type = "choice", values = [0.1, 0.2] }', '{ type = "categorical", choices = [0.1, 0.2] }'),
        ("{ choices = [0.1, 0.2] }", '{ type = "categorical", choices = [0.1, 0.2] }'),
        ("{ values = [0.1, 0.2] }", '{ type = "categorical", choices = [0.1, 0.2] }'),
        ("[0.1, 0.2]", '{ type = "categorical", choices = [0.1, 0.2] }'),
        ("{ min = 0.1, max = 0.2 }", '{ type = "float", low = 0.1, high = 0.2 }'),
        ('{ type = "bool" }', '{ type = "categorical", choices = [true, false] }'),
        ('{ type = "int", min = 1, max = 8 }', '{ type = "int", low = 1, high = 8 }'),
        (
            '{ type = "qloguniform", low = 32, high = 256, q = 32 }',
            '{ type = "categorical", choices = [32, 64, 128, 256], ordered = true }',
        ),
        (
            '{ distribution = "log_uniform", min = -4.60517, max = -2.302585 }',
            '{ type = "float", low = 0.01, high = 0.1, log = true }',
        ),
        (
            '{ parameterType = "double", feasibleSpace = { min = "0.1", max = "0.2" } }',
            '{ type = "float", low = 0.1, high = 0.2 }',
        ),
        ('{ _type = "randint", _value = [1, 9] }', '{ type = "int", low = 1, high = 8 }'),
    ],
)
def test_a_parameter_in_another_tools_words_is_shown_as_it_should_be(write, theirs, ours):
    text = GOOD.replace(LINE, f"learning_rate = {theirs}")
    with pytest.raises(StudyFileRefused) as refused:
        read_study_file(write("study.toml", text)).spec()
    message = str(refused.value)
    assert "1 fault\n  line 5: /search_space/learning_rate" in message
    assert f"-> write: learning_rate = {ours}" in message
    # and what is shown is taken, but for what the network does not take
    again = GOOD.replace(LINE, f"learning_rate = {ours}").replace('kind = "neural_network"', 'kind = "mine"')
    read_study_file(write("again.toml", again)).spec()


def test_in_json_the_line_is_json(write):
    body = {"name": "mine", "search_space": {"a b": {"type": "uniform", "low": 0, "high": 1}}}
    with pytest.raises(StudyFileRefused) as refused:
        read_study_file(write("study.json", json.dumps(body))).spec()
    assert '-> write: "a b": {"type": "float", "low": 0, "high": 1}' in str(refused.value)


@pytest.mark.parametrize("text", ["model.lr = {}", "[search_space.model]\nlr = {}", "[search_space.model.lr]\n{}"])
@pytest.mark.parametrize("parameter", ['type = "float", low = 0.1, high = 0.2', "min = 0.1, max = 0.2"])
def test_a_name_with_a_dot_is_shown_in_quotes(write, text, parameter):
    table = "\n".join(parameter.split(", ")) if text.endswith("\n{}") else f"{{ {parameter} }}"
    written = f'name = "mine"\n[search_space]\n{text.replace("{}", table)}\n'
    with pytest.raises(StudyFileRefused) as refused:
        read_study_file(write("study.toml", written)).spec()
    assert '-> write: "model.lr" = { type = "float", low = 0.1, high = 0.2 }' in str(refused.value)
    assert "1 fault" in str(refused.value)


def test_all_faults_of_a_file_are_shown_at_once_in_the_order_of_its_lines(write):
    text = GOOD.replace("high = 1e-2", "high = 1e-9").replace('"random"', '"best"').replace("epochs = 5", "epoch = 5")

    with pytest.raises(StudyFileRefused) as refused:
        read_study_file(write("study.toml", text)).spec()

    message = str(refused.value)
    assert "3 faults" in message
    places = [message.index(place) for place in ("line 2: /sampler", "line 5: /search_space", "line 13: /objective")]
    assert places == sorted(places)


def test_a_fault_that_only_the_server_finds_gets_its_line_as_well(write):
    study_file = read_study_file(write("study.toml", GOOD.replace('"random" }', '"random", params = { x = 1 } }')))

    refused = study_file.server_refusal([Fault("/sampler/params/x", "random has no options")])

    assert "line 2: /sampler/params/x = 1\n      random has no options" in str(refused)


def test_json_is_read_like_toml_and_has_lines_too(write):
    body = {"name": "mine", "search_space": {"a": {"type": "float", "low": 1, "high": 0}}}
    path = write("study.json", json.dumps(body, indent=2))

    with pytest.raises(StudyFileRefused, match="line 7: /search_space/a/high = 0"):
        read_study_file(path).spec()


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.toml", 'name = "x\n', "not valid TOML: .*line 1"),
        ("a.toml", "a = 1\na = 2\n", "not valid TOML: .*line 2"),
        ("a.toml", '{"name": "x"}', "a JSON file's name ends in .json"),
        ("a.yaml", 'name: "x"\n', "this is YAML, and a study file is TOML or JSON"),
        ("a.toml", "# a search\nname: mine\nsearch_space:\n", "this is YAML, and a study file is TOML or JSON"),
        ("a.json", '{"name": "x",\n}', "line 1|line 2"),
        ("a.json", '{"name": "x", "name": "y"}', "'name' stands twice"),
        ("a.json", '{"name": NaN}', "NaN is not a JSON number"),
        ("a.json", "[1]", "a study is a JSON object, this is a list"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.toml", "#" * (LARGEST_FILE + 1), "1,048,577 bytes, but a study has at most"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(name, text, says, write):
    with pytest.raises(StudyFileRefused, match=says):
        read_study_file(write(name, text))


def test_a_file_that_is_not_there_is_named_with_the_nearest_one(write, tmp_path):
    write("mnist.toml", GOOD)

    with pytest.raises(StudyFileRefused, match=r"there is no such file; did you mean mnist\.toml\?"):
        read_study_file(tmp_path / "mnits.toml")


def test_a_file_that_is_no_text_says_on_which_line(tmp_path):
    (tmp_path / "a.toml").write_bytes(b"a = 1\nb = '\xff'\n")

    with pytest.raises(StudyFileRefused, match="line 2: not UTF-8 text"):
        read_study_file(tmp_path / "a.toml")


def test_the_shipped_searches_are_those_of_the_article():
    mnist, article = (read_study_file(STUDIES / f"{name}.toml").spec() for name in ("mnist", "hyperparameters"))

    assert mnist.narrowing is not None
    assert (mnist.narrowing.rounds, mnist.narrowing.trials_per_round, mnist.narrowing.expand) == (3, 40, True)
    assert (article.narrowing, article.limits.trials) == (None, 100)
    for study in (mnist, article):
        assert study.sampler.name == "random"
        assert study.objective == {"kind": "neural_network", "dataset": "mnist", "samples": 500, "epochs": 50}
        ranges = {
            name: (each.low, each.high, each.log)
            for name, each in study.search_space.items()
            if isinstance(each, FloatParameter)
        }
        assert ranges == {"learning_rate": (1e-6, 1e-2, True), "weight_decay": (1e-8, 1e-4, True)}
