"""What several processes that train together have to settle between them; knows no torch.

``agreement`` has the protocol and its argument, on one page; the files beside it are its parts.
"""

from .agreement import AGREED, Agreement
from .log import Store

__all__ = ["AGREED", "Agreement", "Store"]
