"""What a run takes of other runs: guidance by one that learned to go without labels, and a first stage's dropout."""

import logging

import pytest

from cmjax.config.fields import ConfigError
from cmjax.config.run import read_run
from cmjax.runs.dependencies import check_others
from cmjax.runs.record import write_record
from cmjax.runs.trained import open_trained
from configs import digits_classes, digits_ect, digits_guided_cd, digits_meanflow, digits_scm_cd


@pytest.fixture
def other(tmp_path):
    """A run's folder with a record alone: that of digits_classes, trained with this fraction of labels left out."""

    def folder(label_dropout):
        config = digits_classes.get_config().to_dict()
        if label_dropout is None:  # weights that no run here trained
            config.pop("data")
        else:
            config["data"]["label_dropout"] = label_dropout
        tmp_path.joinpath("other").mkdir()
        write_record(tmp_path / "other", config, (8, 8, 1), 10)
        return str(tmp_path / "other")

    return folder


def distilling(teacher, name="guided_cd", guidance=(1.0, 3.0)):
    config = {"guided_cd": digits_guided_cd, "scm_cd": digits_scm_cd}[name].get_config().to_dict()
    config["objective"] |= {"teacher": teacher, "guidance": guidance}
    config["net"] |= {"class_conditional": True, "guided": True}
    config["init_from"] = ""
    return read_run(config)


def started(other, **objective):
    config = digits_meanflow.get_config().to_dict()
    config["objective"] |= objective
    config["net"]["class_conditional"] = True
    config["init_from"] = other
    return read_run(config)


@pytest.mark.parametrize("name", ["guided_cd", "scm_cd"])
def test_a_guided_teacher_must_have_learned_to_go_without_labels(name, other):
    teacher = other(0.0)
    with pytest.raises(
        ConfigError, match=r"config\.objective\.teacher=.*data\.label_dropout=0, and config\.objective\.gui"
    ):
        check_others(distilling(teacher, name))
    check_others(distilling(teacher, name, guidance=(1.0, 1.0)))  # which takes nothing without a label


def test_a_guided_teacher_that_did_is_taken(other):
    check_others(distilling(other(0.1)))


def test_of_imported_weights_nothing_is_known(other, caplog):
    with caplog.at_level(logging.WARNING):
        check_others(distilling(other(None)))
    assert "nothing says whether config.objective.teacher=" in caplog.text


def test_a_guided_target_may_start_from_a_run_that_did(other):
    folder = other(0.1)
    check_others(started(folder, guidance=2.0))


def test_a_guided_target_may_not_start_from_a_run_that_did_not(other):
    folder = other(0.0)
    check_others(started(folder, guidance=0.5, blend=0.5))  # no part of the target is without a label
    with pytest.raises(ConfigError, match=r"config\.init_from=.*label_dropout=0, and config\.objective\.blend needs"):
        check_others(started(folder, blend=0.5))


def test_a_first_stage_drops_out_at_its_students_rate(tmp_path):
    config = digits_ect.get_config().to_dict()
    write_record(tmp_path, config, (8, 8, 1), None)
    assert open_trained(tmp_path).dropping_out(0.3).model.module.dropout == 0.3
