"""What all tests share.

With several processes (`-n 2 --dist loadgroup`) a file is one piece of work, so that its fixtures are made once. The
notebooks, which take longest, are two.
"""

import pytest

FIRST = ("book", "widgets")  # few tests, but long: begun early, so that the processes end together


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    order = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.path.parent.name, len(order)))
    notebooks = 0
    for item in items:
        group = item.path.stem
        if "lab" in getattr(item, "fixturenames", ()) and item.get_closest_marker("parametrize"):
            group, notebooks = f"{group}-{notebooks % 2}", notebooks + 1
        item.add_marker(pytest.mark.xdist_group(group))
