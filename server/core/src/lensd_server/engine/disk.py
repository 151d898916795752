"""What the disk says when it has no room, in whatever words it arrives."""

import errno
import os

#: No space left, quota used up, or a file beyond what this process may write.
_NO_ROOM = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


def is_full(error: BaseException) -> bool:
    """Whether ``error``, or what led to it, says that there is no room left to write."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _NO_ROOM:
            return True
        # Libraries in other languages raise a kind of their own, with the system's words in it.
        if any(os.strerror(number) in str(seen) for number in _NO_ROOM):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
