"""Why a message was not taken."""

from __future__ import annotations


class DeliveryError(Exception):
    """A channel did not take a message. ``transient``: worth another try at once.

    ``uncertain``: it may have arrived nevertheless. ``retry_after_s``: the receiver's wish.
    """

    def __init__(
        self,
        text: str,
        *,
        transient: bool = False,
        uncertain: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(text)
        self.transient = transient
        self.uncertain = uncertain
        self.retry_after_s = retry_after_s
