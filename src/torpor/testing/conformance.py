"""What every store must do, as tests.

A store of your own is tested by these lines in a pytest module:

    class TestMyStore(conformance.StoreConformance):
        @pytest.fixture
        async def store(self):
            yield MyStore()

Each test makes a tenant of its own, so one store may serve them all, one after the other.
"""

from torpor.testing import (
    conformance_catalog,
    conformance_commits,
    conformance_feed,
    conformance_nodes,
    conformance_ownership,
    conformance_restore_points,
    conformance_sessions,
)


class StoreConformance(
    conformance_sessions.Sessions,
    conformance_ownership.Ownership,
    conformance_commits.Commits,
    conformance_restore_points.RestorePoints,
    conformance_nodes.Nodes,
    conformance_catalog.Catalog,
    conformance_feed.WakeAndFeed,
):
    """The whole suite; the parts may be run on their own."""
