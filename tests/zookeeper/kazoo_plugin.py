"""Has kazoo's own tests run against the servers of a kind, in the place of those that they would start: for pytest,
`-p kazoo_plugin`, with KAZOO_SUITE_KIND, KAZOO_SUITE_DIRECTORY and KAZOO_SUITE_RESULTS (a file for one line per test)."""

import os

import kazoo.testing.harness
import servers

CLUSTER = servers.Cluster(os.environ["KAZOO_SUITE_KIND"], 3, os.environ["KAZOO_SUITE_DIRECTORY"])
RESULTS = {}


def pytest_configure(config):
    kazoo.testing.harness.get_global_cluster = lambda: CLUSTER
    CLUSTER.start()


def pytest_unconfigure(config):
    CLUSTER.stop()
    with open(os.environ["KAZOO_SUITE_RESULTS"], "w", encoding="utf-8") as file:
        for name, outcome in sorted(RESULTS.items()):
            file.write(f"{name} {outcome}\n")


def pytest_runtest_logreport(report):
    # A failure in setting up or tearing down is one as well.
    name = report.nodeid.rpartition("kazoo/tests/")[2]
    if report.when == "call" or report.outcome != "passed":
        if RESULTS.get(name) != "failed":
            RESULTS[name] = report.outcome
