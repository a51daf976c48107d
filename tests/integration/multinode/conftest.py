"""One cluster for all tests of this folder; each starts the nodes that it needs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.multinode.local_cluster import LocalCluster


@pytest.fixture(scope="module")
def _head() -> Iterator[LocalCluster]:
    cluster = LocalCluster()
    yield cluster
    cluster.close()


@pytest.fixture
def cluster(_head: LocalCluster) -> Iterator[LocalCluster]:
    """A head without nodes; what a test adds is gone after it."""
    yield _head
    _head.remove_nodes()
