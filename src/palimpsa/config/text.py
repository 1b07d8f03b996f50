"""Text that somebody else chose, a label or an error say, as a line, as Markdown and as a CSV file's cell."""

import html
import re
import unicodedata

# No XML has them, no terminal should be sent them, and no UTF-8 holds the last but two.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def printable(text: str) -> str:
    """Text without control characters and half characters, each of them replaced by U+FFFD.

    >>> printable("a\\x1b[2Jb")
    'a\N{REPLACEMENT CHARACTER}[2Jb'
    """
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def one_line(text: str) -> str:
    """Printable text in one line, any white space as one space."""
    return printable(" ".join(text.split()))


def is_line(text: str) -> bool:
    """Whether a text is a line that shows something: more than white space, and without control characters.

    >>> is_line("GLA"), is_line(" \N{ZERO WIDTH SPACE}"), is_line("a\\nb")
    (True, False, False)
    """
    visible = any(unicodedata.category(one)[0] not in "ZC" for one in text)
    return visible and re.search("[\x00-\x1f\x7f-\x9f\ud800-\udfff]", text) is None


def shortened(text: str, length: int) -> str:
    """At most `length` characters of a text.

    >>> shortened("Palimpsa-D", 10), shortened("Palimpsa-D", 6)
    ('Palimpsa-D', 'Palim…')
    """
    return text if len(text) <= length else f"{text[: length - 1]}…"


def markdown_text(text: str) -> str:
    """Text as Markdown that shows it as it is, in one line, also in a table: no tag, link, emphasis, code or formula.

    >>> print(markdown_text("<b>*GLA* [ours](x) | $k_t$ `a` palimpsa_d"))
    &lt;b&gt;\\*GLA\\* \\[ours\\](x) \\| \\$k_t\\$ \\`a\\` palimpsa_d
    """
    escaped = html.escape(one_line(text), quote=False)
    # An underscore within a word is no emphasis.
    escaped = re.sub(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", escaped)
    # A list or a heading, where it begins a line.
    return re.sub(r"^(\d*)([-+.)]|#+)(?=\s)", r"\1\\\2", escaped)


def to_cell(text: str) -> str:
    """Text as a cell of a CSV file, with an apostrophe before what a spreadsheet would compute; see `from_cell`.

    >>> to_cell("=1+1"), to_cell("'=1+1"), to_cell("it's"), to_cell("GLA")
    ("'=1+1", "''=1+1", "it's", 'GLA')
    """
    return f"'{text}" if _FORMULA.match(text) else text


def from_cell(cell: str) -> str:
    """The text that `to_cell` made a cell of.

    >>> from_cell("'=1+1"), from_cell("''=1+1"), from_cell("it's"), from_cell("=1+1")
    ('=1+1', "'=1+1", "it's", '=1+1')
    """
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
