"""Configuration fields: each error names the field, the value and what would do."""

import pytest

from cmjax.config.fields import ConfigError, Fields
from cmjax.config.recipes import change, load_recipe
from cmjax.config.renamed import with_new_names
from cmjax.core import curricula

CURRICULA = {"constant": curricula.constant, "square_root_growth": curricula.square_root_growth}


def call(text):
    return Fields({"curriculum": text}, "objective").call("curriculum", CURRICULA, total_steps=100)


def test_a_choice_is_called_with_what_is_written_and_what_is_given():
    assert int(call("constant(num_scales=18)")(0)) == 18
    assert int(call("square_root_growth(s0=2, s1=20)")(100)) == 21


def test_a_choice_keeps_its_name_and_its_parameters():
    fields = Fields({"curriculum": "square_root_growth(s0=2, s1=20)"})
    choice = fields.choice("curriculum", CURRICULA, total_steps=100)
    assert (choice.name, choice.parameters) == ("square_root_growth", {"s0": 2, "s1": 20})
    assert str(choice) == "square_root_growth(s0=2, s1=20)"
    assert int(choice.make()(100)) == 21


def test_a_section_is_a_choice_whose_parameters_are_fields():
    assert int(call({"name": "square_root_growth", "s0": 2, "s1": 20})(100)) == 21
    for section, message in (
        ({"name": "constnat", "num_scales": 3}, "must be one of constant"),
        ({"name": "constant", "n": 3}, "constant takes num_scales, not n"),
        ({"num_scales": 3}, "must have the field name, one of constant, square_root_growth"),
        (3, "must be one of constant, square_root_growth"),
    ):
        with pytest.raises(ConfigError, match=message):
            call(section)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("constnat(num_scales=3)", r"must be one of constant, square_root_growth \(did you mean constant\?\)"),
        ("constant(n=3)", "constant takes num_scales, not n"),
        ("constant", r"constant needs num_scales: write constant\(num_scales=…\)"),
        ("square_root_growth(s0=5, s1=3)", "s1 must be at least s0=5, got 3"),
        ("square_root_growth(s0=2, s1=3, total_steps=9)", "takes s0, s1, not total_steps"),
        ("constant(3)", "must be a name, or a name with parameters"),
        ("__import__('os').getcwd()", "must be a name, or a name with parameters"),
        ("constant(num_scales=__import__('os'))", "must be a name, or a name with parameters"),
    ],
)
def test_a_wrong_choice_names_the_field_and_the_choices(text, message):
    with pytest.raises(ConfigError, match=message) as raised:
        call(text)
    assert str(raised.value).startswith("config.objective.curriculum=")


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("3", lambda f: f.number("x")),
        (True, lambda f: f.number("x")),
        (2.5, lambda f: f.integer("x", at_least=1)),
        (0, lambda f: f.integer("x", at_least=1)),
        (-1.0, lambda f: f.number("x", above=0)),
        (float("nan"), lambda f: f.number("x", at_least=0)),
        (1, lambda f: f.boolean("x")),
        (1, lambda f: f.text("x")),
        ((), lambda f: f.numbers("x")),
        ("80,0.8", lambda f: f.numbers("x")),
        (3, lambda f: f.section("x")),
        ("c", lambda f: f.one_of("x", ["a", "b"])),
    ],
)
def test_a_wrong_value_is_refused_by_name(value, read):
    with pytest.raises(ConfigError, match=r"config\.s\.x="):
        read(Fields({"x": value}, "s"))


def test_a_field_that_nothing_reads_is_an_error():
    fields = Fields({"optimizer": {"learning_rate": 1.0, "warmup": 3}})
    fields.section("optimizer").number("learning_rate")
    with pytest.raises(ConfigError, match=r"config\.optimizer\.warmup: nothing reads this"):
        fields.done()


def test_a_missing_field_is_an_error():
    with pytest.raises(ConfigError, match=r"config\.steps is missing \(did you mean step\?\)"):
        Fields({"step": 3}).integer("steps", at_least=1)


def test_a_field_is_read_under_its_earlier_name():
    config = load_recipe("configs/digits_tcm.py")
    change(config, "figures.num", "7")
    change(config, "objective.share", "0.5")
    assert (config.metrics.num, config.objective.fraction) == (7, 0.5)
    old = {"figures": {"num": 3}, "objective": {"name": "tcm", "share": 0.25}, "steps": 1}
    assert with_new_names(old) == {"metrics": {"num": 3}, "objective": {"name": "tcm", "fraction": 0.25}, "steps": 1}
