"""The page of an inspection: one file of HTML that shows every detailed head of inspection.json, without a network."""

from __future__ import annotations

import html
import json
import re
from importlib.resources import files
from pathlib import Path

from palimpsa.analysis.dashboard.privacy import Scrubber
from palimpsa.analysis.memory.inspection_file import read_inspection
from palimpsa.config.text import one_line, shortened
from palimpsa.runs.files import write_atomic

# Defined once, for every inspection; the numbers are in head.py and attribution.py of palimpsa.evaluation.memory.
WORDS = (
    (
        "attribution",
        "An output is o_t = scale q_t (M_t / I_t), and the memory M_t is a sum over all tokens s written so far of "
        "their keys times their values, each decayed since. So o_t is a sum of values with known weights: exact, "
        "nothing is approximated. The share of token s is the part of o_t along o_t itself that its value brings; "
        "below 0 it takes away. Shares of an output add up to 100%.",
    ),
    (
        "own pair",
        "A pair can be stored by its value's token and by those after it whose short convolution still sees its key. A "
        "query reads its own pair where the token with the largest share of its output is one of these.",
    ),
    (
        "consolidation",
        "What a token adds to the importance, k_s^2 times beta_s, decayed up to the end and summed over all entries, "
        "as a share of what all tokens left there: the shares add up to 1. A token counts as consolidated from "
        "1 / (number of tokens) on. Of a model without importances: the size |k_s| |v_s| of what it wrote, decayed, in "
        "the same way.",
    ),
    (
        "memory window",
        "N_t = 1 / (1 - alpha_t), in tokens: how long the memory would last if every token decayed it as token t does. "
        "With a decay for each key channel, the mean over channels. Its mean is ruled by the tokens that forget least.",
    ),
    (
        "recall by age",
        "The memory is asked for every stored token by that token's own key, after each later token. Of what it "
        "answers, the part that is that token's own value is an attribution as above; it is averaged over all tokens "
        "of the same age, each counting by the size |k_s| |v_s| of what it wrote. Recall halves after "
        "the last age up to which that share is at least half of what it is at age 0, when the token itself is read.",
    ),
    ("metaplasticity", "(I_max - I_min) / I_min of the importances at the end."),
)


def write_page(
    folder: Path, out_html: Path, plotly_js: str, scrubber: Scrubber | None = None, back: str | None = None
) -> Path:
    """Writes the page of the inspection in a folder, whole or not at all.

    Args:
        folder: with inspection.json.
        out_html: the file to write.
        plotly_js: where the page finds plotly.min.js: an address relative to it.
        scrubber: looks at what is said of the model and its origin, not at the text that was read; None: one that knows
            this machine.
        back: where the page with all results is, an address relative to this one; None: there is none.

    Returns:
        `out_html`.

    Raises:
        ResultError: see `read_inspection`.
        OSError: where it cannot be written.
    """
    scrubber = Scrubber.of_this_machine() if scrubber is None else scrubber
    content = read_inspection(folder)
    content |= {key: scrubber.data(content[key]) for key in ("model", "provenance")}
    rules = content["rules"]
    slots = {
        "BACK": "" if back is None else f'<p><a href="{html.escape(back, quote=True)}">All results</a></p>\n',
        "TITLE": html.escape(shortened(f"Memory of {one_line(content['model']['label'])}", 80)),
        "DATA": _script_json(content),
        "WORDS": _script_json(WORDS),
        "PLOTLY": html.escape(plotly_js, quote=True),
        "ENTRIES": html.escape(_sentence(rules["entries"])),
        "ATTRIBUTIONS": _script_json(_sentence(rules["attributions"]))[1:-1],
    }
    template = files("palimpsa.analysis.memory").joinpath("page.html").read_text(encoding="utf-8")
    # In one pass: what is filled in may look like another slot.
    return write_atomic(out_html, re.sub(r"@([A-Z]+)@", lambda found: slots[found[1]], template))


def _script_json(value: object) -> str:
    """JSON that ends no script element, whatever its texts hold."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
