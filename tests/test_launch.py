"""The launch files: what local.sh does with its processes, and that every other file says what the code reads."""

import operator
import os
import re
import signal
import subprocess
import time
import tomllib
from pathlib import Path

import pytest
import yaml

from cmjax.cli.command_line import MODES, declared
from configs import digits_ct

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
FILES = sorted(path for path in LAUNCH.iterdir() if path.is_file())
STOPPED = 75


@pytest.fixture
def start(tmp_path):
    """Start local.sh with a shell script in the place of every python; its pipe has what the processes say."""

    def start(script, *arguments, **environment):
        python = tmp_path / "python"
        python.write_text(f"#!/usr/bin/env bash\n{script}\n")
        python.chmod(0o755)
        env = {
            name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "PYTHON"))
        } | environment
        env["PATH"] = f"{tmp_path}:{env['PATH']}"
        command = [LAUNCH / "local.sh", *arguments]
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def test_every_process_gets_its_number_the_address_and_the_options(start):
    script = 'echo "$JAX_PROCESS_ID $JAX_NUM_PROCESSES $JAX_COORDINATOR_ADDRESS $*"'
    process = start(script, "2", "--config=a b", JAX_COORDINATOR_ADDRESS="host0:1234")
    said, _ = process.communicate(timeout=30)
    assert sorted(said.splitlines()) == [f"{i} 2 host0:1234 -m cmjax.main --config=a b" for i in range(2)]
    assert process.returncode == 0
    alone = start('echo "$JAX_COORDINATOR_ADDRESS"', "1")
    said, _ = alone.communicate(timeout=30)
    assert re.fullmatch(r"localhost:[23]\d{4}\n", said)
    assert alone.returncode == 0


def test_the_exit_code_is_that_of_the_first_to_fail(start):
    process = start("((JAX_PROCESS_ID == 1)) && exit 7; sleep 1; exit 9", "3")
    process.communicate(timeout=30)
    assert process.returncode == 7


def test_survivors_of_a_failure_are_killed_after_their_grace(start):
    script = "((JAX_PROCESS_ID == 0)) && exit 5; trap '' TERM; echo $$; exec sleep 100"
    began = time.monotonic()
    process = start(script, "3", CMJAX_GRACE_SECONDS="0")
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 5
    assert time.monotonic() - began < 20
    assert len(said.split()) == 2
    assert not [pid for pid in said.split() if Path("/proc", pid).exists()]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 3)])
def test_a_signal_reaches_every_process_once_and_their_code_is_given(start, number, code):
    script = (
        "trap 'echo TERM; sleep 0.5; exit 0' TERM; trap 'echo INT; sleep 0.5; exit 3' INT\n"
        "echo ready; for _ in {1..600}; do sleep 0.05; done"
    )
    process = start(script, "2")
    assert process.stdout is not None
    for _ in range(2):
        assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    said, _ = process.communicate(timeout=30)
    assert said.split() == [number.name.removeprefix("SIG")] * 2
    assert process.returncode == code


@pytest.mark.parametrize("arguments", [(), ("0",), ("two",), ("--config=configs/digits_ct.py",)])
def test_without_a_number_of_processes_local_sh_says_how_it_is_used(start, arguments):
    process = start("echo started", *arguments)
    said, error = process.communicate(timeout=30)
    assert (process.returncode, said) == (2, "")
    assert error.startswith("usage: launch/local.sh")
    assert error.count("\n") == 1


def test_tpu_pod_sends_the_options_whole_to_every_worker(tmp_path):
    gcloud = tmp_path / "gcloud"
    gcloud.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    gcloud.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def run(*arguments):
        command = [LAUNCH / "tpu_pod.sh", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    sent = run("slice", "zone", "--config=c.py", "--config.net.name=a b").stdout
    assert "--worker=all" in sent
    assert r"python3 -m cmjax.main --config=c.py --config.net.name=a\ b" in sent
    missing = run("slice", "--config=c.py")
    assert missing.returncode == 2
    assert missing.stderr.startswith("usage: launch/tpu_pod.sh")


def test_the_gpu_job_names_its_processes_as_the_code_reads_them():
    service, job = yaml.safe_load_all((LAUNCH / "gke_gpu.yaml").read_text())
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert set(environment) == {"JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "JAX_COORDINATOR_ADDRESS"}
    assert int(environment["JAX_NUM_PROCESSES"]) == spec["completions"] == spec["parallelism"]
    assert environment["JAX_COORDINATOR_ADDRESS"].startswith(f"{job['metadata']['name']}-0.{pod['subdomain']}:")
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert _not_counted(spec) == {"Ignore"}
    assert _keeps_on(container, pod)


def test_the_tpu_job_has_a_pod_for_each_host_of_its_slice():
    job_set = yaml.safe_load((LAUNCH / "gke_tpu.yaml").read_text())
    (replicated,) = job_set["spec"]["replicatedJobs"]
    spec = replicated["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    hosts = rows * columns // container["resources"]["limits"]["google.com/tpu"]
    assert spec["completions"] == spec["parallelism"] == hosts
    assert "env" not in container
    assert _not_counted(spec) == {"FailJob"}
    (rule,) = job_set["spec"]["failurePolicy"]["rules"]
    assert rule == {"action": "RestartJobSetAndIgnoreMaxRestarts", "onJobFailureReasons": ["PodFailurePolicy"]}
    assert _keeps_on(container, pod)


def _not_counted(job_spec):
    """The actions for pods that were disrupted, or stopped and saved."""
    disrupted, stopped = job_spec["podFailurePolicy"]["rules"]
    assert disrupted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert stopped["onExitCodes"] == {"containerName": "cmjax", "operator": "In", "values": [STOPPED]}
    return {disrupted["action"], stopped["action"]}


def _keeps_on(container, pod):
    saves = pod["terminationGracePeriodSeconds"] >= 60 and pod["restartPolicy"] == "Never"
    return saves and f"--stopped_exit_code={STOPPED}" in container["args"]


def test_the_slurm_job_stops_saved_and_is_queued_again():
    text = (LAUNCH / "slurm.sbatch").read_text()
    directives = dict(re.findall(r"^#SBATCH --([\w-]+)=?(\S*)$", text, re.MULTILINE))
    assert directives["signal"] == "TERM@120"
    assert {"requeue", "open-mode"} <= set(directives)
    assert directives["gpus-per-node"] == directives["ntasks-per-node"]
    assert f"stopped={STOPPED}\n" in text


OF_SLURM = {"nodes", "job-name", "gpus-per-node", "gpus-per-task", "ntasks-per-node", "time", "signal", "requeue"}
OF_OTHERS = OF_SLURM | {
    *("open-mode", "kill-on-bad-exit"),
    *("zone", "worker", "command", "recurse"),  # gcloud
    "mca",  # Open MPI
    *("build-arg", "tag", "file", "no-cache-dir", "editable", "uid", "create-home"),  # the image
}
"""Options of other programs that the launch files run."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_launch_file_names_only_options_and_variables_that_there_are(path):
    text = path.read_text()
    options = {"mode", *(name for mode in MODES for name in declared(mode).names)}
    assert set(re.findall(r"(?<![\w-])--([a-z][\w-]*)", text)) <= options | OF_OTHERS
    variables = {"CMJAX_GRACE_SECONDS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "JAX_COORDINATOR_ADDRESS"}
    assert set(re.findall(r"\b(?:CM)?JAX_\w+", text)) <= variables


@pytest.mark.parametrize("path", [*FILES, ROOT / "tests" / "slurm.sh"], ids=lambda path: path.name)
def test_recipes_fields_and_extras_in_launch_files_exist(path):
    text = path.read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for named in re.findall(r"(?:EXTRA=|'\.\[)([a-z][\w,]+)", text):
        assert set(named.split(",")) <= set(extras)
    for recipe in re.findall(r"configs/\w+\.py", text):
        assert (ROOT / recipe).is_file()
    for field in re.findall(r"--config\.([\w.]+)=", text):
        operator.attrgetter(field)(digits_ct.get_config())
