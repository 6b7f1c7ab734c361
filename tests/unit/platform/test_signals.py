"""SIGTERM unwinds a program through its clean-up code and exits with the code of an interruption."""

import signal
import subprocess
import sys

PROGRAM = """
import sys, time
from searchrl.platform.signals import exit_on_sigterm
exit_on_sigterm()
try:
    print("ready", flush=True)
    time.sleep(60)
finally:
    print("cleaned up", flush=True)
"""


def test_sigterm_unwinds_the_program_and_says_that_it_was_interrupted() -> None:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=20)
    assert (process.returncode, output) == (143, "cleaned up\n")
