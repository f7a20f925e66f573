"""Reads everything that describes the package from settings.ini."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

config = ConfigParser(delimiters=["="], interpolation=None)
config.read(Path(__file__).with_name("settings.ini"), encoding="utf-8")
about = config["DEFAULT"]


def lines(key: str) -> list[str]:
    "A setting of one line, or of one line an entry."
    return about[key].split("\n")[1:] if about[key].startswith("\n") else [about[key]]


extras = {key.removeprefix("extras_"): lines(key) for key in about if key.startswith("extras_")}

setup(
    version=about["version"],
    description=about["description"],
    keywords=about["keywords"].split(),
    python_requires=f">={about['min_python']}",
    install_requires=lines("requirements"),
    extras_require=extras,
    entry_points={
        "console_scripts": lines("console_scripts"),
        "nbdev": ["frl_dgt_nb=frl_dgt_nb._modidx:d"],
    },
)
