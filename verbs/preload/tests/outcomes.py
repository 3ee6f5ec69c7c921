"""Runs one module of pyverbs' tests, and prints each test's name and outcome.

The arguments are a directory with the tests, a device and the name of a module.
"""

import sys
import unittest

DIRECTORY, DEVICE, MODULE = sys.argv[1:]
sys.path[:0] = [DIRECTORY, DIRECTORY + "/tests"]
sys.argv[1:] = ["--dev", DEVICE]

from args_parser import parser  # noqa: E402

parser.parse_args()


class Outcomes(unittest.TestResult):
    """Prints the outcome of each test when the test ends."""

    def startTest(self, test):
        super().startTest(test)
        self.outcome = "ok"

    def stopTest(self, test):
        super().stopTest(test)
        print("outcome", test.id(), self.outcome, flush=True)

    def note(self, error):
        self.outcome = f"{error[0].__name__}: {error[1]}".splitlines()[0]

    def addError(self, test, error):
        super().addError(test, error)
        self.note(error)

    def addFailure(self, test, error):
        super().addFailure(test, error)
        self.note(error)

    def addSubTest(self, test, subtest, error):
        super().addSubTest(test, subtest, error)
        if error:
            self.note(error)

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.outcome = f"skipped: {reason}".splitlines()[0]


suite = unittest.defaultTestLoader.loadTestsFromName("tests." + MODULE)
suite.run(Outcomes())
print("outcome end", flush=True)
