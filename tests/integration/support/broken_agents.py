"""A module that cannot be imported, for the test that registers an agent of it."""

raise RuntimeError("the model's weights are not here")
