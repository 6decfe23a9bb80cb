"""A script, not a module: what a child Python of ggq begins with (see ``python_child``).

It runs under ``-I``, so that nothing is imported from elsewhere before the places are set.
"""

import importlib.util
import json
import os
import runpy
import site
import sys

_told = json.loads(os.environ.pop("GGQ_LAUNCH"))
sys.path[:] = _told["places"]
site.ENABLE_USER_SITE = _told["user_site"]  # pip looks at it
_spec = importlib.util.spec_from_file_location(
    "ggq", f"{_told['package']}/__init__.py", submodule_search_locations=[_told["package"]]
)
assert _spec is not None and _spec.loader is not None
sys.modules["ggq"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sys.modules["ggq"])
sys.argv[:] = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
