"""Whether the host of a picture asks not to learn from it: the header X-Robots-Tag."""

import re
from collections.abc import Iterable

_OPT_OUTS = frozenset({"noai", "noimageai"})
# Directives that have a value; anything else before a colon is the name of a bot, to which the rest is addressed.
_WITH_VALUE = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
_ADDRESSED = re.compile(r"([\w.*-]+)\s*:(.*)", re.DOTALL)


def is_opted_out(headers: Iterable[str], our_name: str) -> bool:
    """Whether any of the X-Robots-Tag headers says `noai` or `noimageai` to all bots, or to `our_name` (lower case).

    `NoAI`, `noindex, noimageai` and `xmodal: noai` do; `otherbot: noai` does not. A bot's name holds for all that
    follows it in its header.
    """
    for header in headers:
        addressee = "*"
        for part in header.lower().split(","):
            directive = part.strip()
            addressed = _ADDRESSED.fullmatch(directive)
            if addressed and addressed[1] not in _WITH_VALUE:
                addressee, directive = addressed[1], addressed[2].strip()
            if directive in _OPT_OUTS and addressee in ("*", our_name):
                return True
    return False
