"""What all tests share: an environment that does not depend on whose it is."""

import os

# As in the Makefile, for those who call pytest themselves. Ray reads its flags once, at import.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Settings of a developer's own deployment are none of the tests'.
for name in [name for name in os.environ if name.startswith("TORPOR_")]:
    if not name.startswith("TORPOR_TEST_"):
        del os.environ[name]
