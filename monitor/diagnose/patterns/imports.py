"""Modules and shared libraries that are missing or do not fit (CPython's import, ld.so)."""

from __future__ import annotations

from monitor.diagnose.model import FailureClass as F
from monitor.diagnose.model import Trust
from monitor.diagnose.rule import rule

IMPORTS_RULES = (
    rule(
        F.IMPORT_ERROR,
        Trust.CAUSE,
        "modulenotfounderror|importerror|packagenotfounderror",
        r"(?:^|\s|\.)(?:ModuleNotFound|Import|PackageNotFound)Error\b|DistributionNotFound",
        exact_case=True,
    ),
    rule(
        F.IMPORT_ERROR,
        Trust.CAUSE,
        "undefined symbol|failed to import|no module named|symbol lookup error|cannot import name|"
        "could not import module",
        r"undefined symbol|failed to import (?:transformers|diffusers|\w+[.\w]* because)|"
        r"no module named|symbol lookup error|cannot import name|could not import module",
    ),
    rule(
        F.IMPORT_ERROR,
        Trust.CAUSE,
        "cannot open shared object|not found (required by|glibc|cxxabi|error while loading shared",
        r"cannot open shared object|(?:GLIBC\w*|CXXABI)_[\d.]+'? not found|"
        r"error while loading shared libraries",
    ),
    rule(
        F.IMPORT_ERROR,
        Trust.CAUSE,
        "distributionnotfound|versionconflict|is not installed|please install|is required but|"
        "compiled with a different version of the abi|numpy.dtype size changed|"
        "numpy.core.multiarray",
        r"distributionnotfound|versionconflict|"
        r"error.{0,120}(?:is not installed|please install|is required but)|"
        r"numpy\.dtype size changed|numpy\.core\.multiarray failed",
    ),
)
