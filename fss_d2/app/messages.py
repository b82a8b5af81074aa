"""What a visitor is told of an error: one line, without the server's folders."""

import re

from fss_d2.engine.command_line import one_line

__all__ = ["EXPECTED_ERRORS", "public_message"]

# What the library raises for input that it cannot take. Others are bugs, of which a visitor sees nothing.
EXPECTED_ERRORS = (ValueError, OSError, RuntimeError)

_FOLDERS = re.compile(r"""(?:\b[A-Za-z]:)?(?:[\\/][^\s\\/:;,'"()<>]+)*[\\/](?=[^\s\\/])""")


def public_message(error: BaseException) -> str:
    """The message of an error on one line; of each path in it the last part is left.

    Args:
        error: one of `EXPECTED_ERRORS`.
    """
    lines = str(error).strip().splitlines()
    text = one_line(error) or (lines[0] if lines else type(error).__name__)
    return _FOLDERS.sub(_last_part, text)


def _last_part(found: re.Match[str]) -> str:
    """Nothing for leading folders; a slash between words ("and/or") stays."""
    start = found.start()
    inside_word = start > 0 and found.string[start - 1].isalnum()
    return found.group() if inside_word and len(found.group()) == 1 else ""
