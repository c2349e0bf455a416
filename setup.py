"""Hands the build over to CMake; see CMakeLists.txt and pyproject.toml."""

from setuptools import setup

setup(cmake_source_dir=".")
