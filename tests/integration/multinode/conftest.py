"""One cluster for all tests of this folder; each starts the nodes that it needs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.multinode.local_cluster import LocalCluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    cluster = LocalCluster()
    yield cluster
    cluster.close()
