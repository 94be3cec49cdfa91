"""The reference of the configuration says what every field means, and what is read of it."""

from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
def configuration(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    import configuration

    return configuration


def test_every_field_that_is_read_has_a_meaning_and_no_other(configuration):
    table = configuration.texts()["fields"]
    top = {name for name, meaning in table.items() if isinstance(meaning, str)}
    explained = top | {f"{section}.{name}" for section in table.keys() - top for name in table[section]}
    assert explained == configuration.by_field().keys()


def test_what_is_said_of_choices_and_values_is_of_fields_that_have_them(configuration):
    texts, reads = configuration.texts(), configuration.by_field()
    assert {*texts["kinds"], *texts["absent"]} <= reads.keys()
    for field, choices in texts["choices"].items():
        assert choices.keys() <= {name for read in reads[field] for name in read.parameters.get("choices", ())}


def test_the_page_has_each_field_with_its_range_its_choices_and_its_default(configuration):
    parts = dict(part.partition("\n")[::2] for part in configuration.page().split("\n### "))
    fields = {heading.split("`")[1]: text for heading, text in parts.items() if heading.startswith("`")}
    assert fields.keys() == configuration.by_field().keys()
    assert fields["optimizer.clip_norm"].strip().endswith("\n\n- Number, at least 0\n- Default: `0`")
    assert "`cosine(warmup_steps=0)`: Falls from `peak` to zero" in fields["optimizer.schedule"]
    assert "- Default: `constant`" in fields["optimizer.schedule"]
    assert "`512` (`mlp`)" in fields["net.width"]
    assert "- Only of `psd`" in fields["objective.split"]
    assert "`c`: number, above 0" in fields["objective.distance"]
    assert "Only of" not in fields["objective.coupling"]
