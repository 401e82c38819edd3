"""What the tests of this folder share: they import its other modules by their names."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
