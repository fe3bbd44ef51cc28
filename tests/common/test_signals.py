"""Protects signals: the first one ends a command in one line, or saves; the second one ends it at once."""

import os
import signal
import subprocess
import sys
import time

import pytest

from hf_tiny_transformer.common.errors import StoppedError, on_stop, run_command, stop_later

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_a_command_in_one_line(number, capsys):
    def main() -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        except Exception:  # what third-party code does
            raise AssertionError from None

    before = signal.getsignal(number)
    assert run_command(main) == 128 + number
    assert capsys.readouterr().err == f"error: {number.name}\n"
    assert signal.getsignal(number) is before


def test_a_signal_waits_for_the_end_of_a_block(capsys):
    done = []

    def main() -> None:
        with stop_later():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("saved")
        done.append("not reached")

    assert run_command(main) == 143 and done == ["saved"]


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        assert run_command(lambda: os.kill(os.getpid(), signal.SIGHUP)) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_first_signal_is_noted_and_the_second_ends_the_process_at_once():
    program = (
        "import os, signal, time\n"
        "from hf_tiny_transformer.common.errors import on_stop\n"
        "with on_stop(lambda number: print('noted', flush=True)):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "noted\n", "stopped at once\n")


def test_nested_blocks_restore_what_was_there():
    with pytest.raises(StoppedError, match="SIGHUP"), on_stop():
        noted = []
        with on_stop(noted.append):
            os.kill(os.getpid(), signal.SIGTERM)
        assert noted == [signal.SIGTERM]
        os.kill(os.getpid(), signal.SIGHUP)
