"""Parses what scontrol says about a job: a pure function."""

from __future__ import annotations

import re

_FIELD = re.compile(r"(?:^|\s)([A-Z][A-Za-z_/:]*)=")


def parse_job(text: str) -> dict[str, str]:
    """Return the fields of the first job in the output of `scontrol show job --oneliner`.

    A field begins with a capital after white space, so `ReqNodeList=` is not taken for `NodeList=`
    and the commas of `TRES=cpu=1,mem=2G` do no harm.
    """
    line = text.strip().partition("\n")[0]
    found = list(_FIELD.finditer(line))
    ends = [match.start() for match in found[1:]] + [len(line)]
    return {
        match.group(1): line[match.end() : end].strip()
        for match, end in zip(found, ends, strict=True)
    }
