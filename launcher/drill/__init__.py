"""The drill: a short run of the user's own configuration, undisturbed and with injected faults.

scenarios (what may be done where) and settings (how the configuration is shortened) are pure, plan
puts them together; conduct runs one scenario, session all of them; verdict judges run folders;
report, text and page tell.
"""

from __future__ import annotations
