"""Ship recipes/ in the wheel under a name of its own, so that ``qmix-trl`` runs it."""

from setuptools import find_namespace_packages, find_packages, setup

RECIPES = "qmix_trl_recipes"
folders = find_namespace_packages(include=["recipes", "recipes.*"])
setup(
    packages=[
        *find_packages(include=["qmix_trl", "qmix_trl.*"]),
        *(RECIPES + name.removeprefix("recipes") for name in folders),
    ],
    package_dir={RECIPES: "recipes"},
)
