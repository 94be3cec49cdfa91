"""Signals that schedulers and terminals send: heard, and given back to the program that called."""

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cmjax import main
from cmjax.system.signals import NUMBERS, exit_on_signals, is_urgent, restore_signals
from tests.waiting import wait_for

ROOT = Path(__file__).parents[1]
NOTED = """
import os, signal, time
from cmjax.system.signals import stop_requests
for number in map(int, {numbers}):
    with stop_requests() as stop_requested:
        os.kill(os.getpid(), number)
        while not stop_requested():
            time.sleep(0.01)
        print(stop_requested(), flush=True)
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
"""


def test_each_signal_is_noted_where_a_run_can_save():
    numbers = [int(number) for number in NUMBERS]
    program = NOTED.format(numbers=numbers)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert [int(line) for line in done.stdout.split()] == numbers


def test_what_nohup_ignores_stays_ignored():
    program = "import os, signal, time\nfrom cmjax.system.signals import stop_requests\n"
    program += (
        "with stop_requests() as asked:\n  os.kill(os.getpid(), signal.SIGHUP)\n  time.sleep(.3)\n  print(asked())"
    )
    command = ["nohup", sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"


def test_only_ctrl_c_and_a_second_sigterm_give_up_a_save():
    assert is_urgent(signal.SIGINT, signal.SIGUSR1)
    assert is_urgent(signal.SIGTERM, signal.SIGTERM)
    assert not is_urgent(signal.SIGTERM, signal.SIGUSR1)  # of SLURM, at the limit after the warning
    assert not is_urgent(signal.SIGUSR1, signal.SIGUSR1)
    assert not is_urgent(signal.SIGHUP, signal.SIGTERM)


@pytest.mark.parametrize("arguments", [["--list"], ["status", "--workdir=/none"]])
def test_a_program_that_called_main_has_its_signals_back(monkeypatch, capsys, arguments):
    def handlers():
        return {number: signal.getsignal(number) for number in NUMBERS}

    monkeypatch.setattr(sys, "argv", ["cmjax", *arguments])
    monkeypatch.setattr(main, "_set_up_process", lambda: None)
    monkeypatch.delenv("XLA_FLAGS")
    mine = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        before = handlers()
        with pytest.raises(SystemExit):
            main.main()
        assert handlers() == before
        exit_on_signals(lambda *_: None)
        assert handlers() != before
        restore_signals()
        assert handlers() == before
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        signal.signal(signal.SIGUSR1, mine)


SMALL = (
    "--config=configs/digits_ct.py", "--config.net.width=16", "--config.net.depth=1", "--config.batch_size=16",
    "--config.metrics.num=0", "--config.samples.every=0", "--config.report=False", "--config.log.tensorboard=False",
    "--config.log.every=5", f"--config.steps={10**6}", f"--config.checkpoint.save_every={10**6}",
)  # fmt: skip


TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)
"""Of a new session: its terminal is that of standard input, whose end is a SIGHUP."""


def has_lines(path, number):
    return path.exists() and path.read_text().count("\n") >= number


@pytest.mark.parametrize("how", ["a scheduler's SIGUSR1, then its SIGTERM", "a terminal that is closed"])
def test_a_run_saves_and_ends(tmp_path, how):
    command = [sys.executable, "-m", "cmjax.main", *SMALL, f"--workdir={tmp_path / 'run'}"]
    of_terminal, terminal = pty.openpty()
    closed = "terminal" in how
    pipes = {"stdin": terminal, "stdout": terminal, "stderr": terminal} if closed else {"stderr": subprocess.DEVNULL}
    command = [sys.executable, "-c", TAKE_TERMINAL, *command] if closed else command
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes)
    os.close(terminal)
    wait_for(lambda: has_lines(tmp_path / "run" / "metrics.jsonl", 3), process)
    if closed:
        os.close(of_terminal)
    else:
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
    try:
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()  # of a million steps, where the signal did not end it
    (saved,) = [int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()]
    assert saved >= 15
